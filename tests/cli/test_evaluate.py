import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcache.cache.store import open_cache
from kdcache.cli.evaluate import extremes
from kdcache.data.dataset import Dataset
from kdcache.data.document import save_dataset
from kdcache.models.specs import build_network
from kdcache.student.classes import ClassTable
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import PLAIN, check_refusal
from tests.student.making import centre_cache

STUDENT = "tests.student.nets:small"
ZEROS, ONES = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
TORCHVISION = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The path of a cache of one central view of the dataset."""
    return centre_cache(tmp_path_factory.mktemp("centre") / "cache", dataset)


def write_student(path: Path, spec: str, **notes: object) -> Path:
    """Write the weights of a fresh student, and notes, if there are any."""
    torch.manual_seed(0)
    metadata = {"kdcache": json.dumps(notes)} if notes else None
    state = build_network(spec, num_classes=5).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a fresh small student, without notes."""
    return write_student(tmp_path_factory.mktemp("weights") / "student.safetensors", STUDENT)


Measure = Callable[..., Outcome]


@pytest.fixture
def measure(kdcache: Run, dataset: Dataset, centre: Path) -> Measure:
    """A function that runs eval of some weights; options go last."""

    def run(weights: Path, *options: object) -> Outcome:
        return kdcache(
            *("eval", weights, "--data", dataset.root, "--cache", centre, "--workers", "0"),
            *options,
        )

    return run


def test_eval_measures_what_train_measured(
    kdcache: Run, measure: Measure, tmp_path: Path, complete: Path, centre: Path, dataset: Dataset
) -> None:
    """With the run's own normalisation, which is not the teacher's."""
    trained = kdcache(
        *("train", "--data", dataset.root, "--student", STUDENT, "--epochs", "2"),
        *("--batch-size", "7", "--workers", "0", "--out", tmp_path / "run", "--cache", complete),
        *("--val-data", dataset.root, "--val-cache", centre, "--mean", "0.4,0.5,0.6", "--json"),
    ).value
    value = measure(tmp_path / "run", "--student", STUDENT, "--json").value
    names = ["samples", "top1", "kl_nats", "agreement", "calibration_error"]
    assert value.keys() == {*names, "top5", "teacher_top1", "teacher_top5"}
    assert value["samples"] == 24
    assert (value["top5"], value["teacher_top5"]) == (None, None)
    for name in (*names[1:], "teacher_top1"):
        assert value[name] == pytest.approx(trained[f"val_{name}"], rel=1e-5)
    file = tmp_path / "run/student.safetensors"
    lines = measure(file, "--student", STUDENT).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*names, "teacher"]
    assert lines[-1].split(maxsplit=1)[1] == f"top-1 {value['teacher_top1']:.1%}"


def test_eval_by_labels_alone_measures_what_it_does_beside_a_cache(
    kdcache: Run, measure: Measure, tmp_path: Path, weights: Path, dataset: Dataset
) -> None:
    path = write_student(
        tmp_path / "student.safetensors", STUDENT, num_classes=5, size=12, mean=ZEROS, std=ONES
    )
    arguments = [path, "--student", STUDENT, "--data", dataset.root, "--workers", "0"]
    alone = kdcache("eval", *arguments, "--json").value
    beside = measure(path, "--student", STUDENT, "--json").value
    assert {name for name in beside if alone[name] != beside[name]} == {
        "kl_nats", "agreement", "teacher_top1"
    }  # fmt: skip
    assert alone["top1"] is not None
    assert alone["kl_nats"] is None
    assert kdcache("eval", *arguments, "--size", "20", "--json").value["samples"] == 24
    bare = [weights, *arguments[1:], *PLAIN]
    check_refusal(kdcache("eval", *bare), 2, "does not say all of its student; add --size")
    for option in ("--labels", "--weights"):
        outcome = kdcache("eval", *arguments, option, "1")
        check_refusal(outcome, 2, f"{option}: is of a cache's targets, and there is no --cache")
    check_refusal(measure(path, "--student", STUDENT, "--size", "12"), 2, "leave it out")


def test_a_run_of_a_torchvision_student_needs_no_name(measure: Measure, tmp_path: Path) -> None:
    write_student(tmp_path / "student.safetensors", TORCHVISION, student=TORCHVISION)
    found = measure(tmp_path, "--json").value
    assert found == measure(tmp_path, "--student", TORCHVISION, "--json").value
    assert found["kl_nats"] is not None


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("evil_student:factory", 2, "repeat the command with --student evil_student:factory"),
        ("torchvision", 5, "expected torchvision:NAME"),
        ("", 5, "expected torchvision:NAME"),
        ("torchvision :x", 5, "expected torchvision:NAME"),
    ],
)
def test_code_that_a_file_names_is_never_imported(
    measure: Measure, tmp_path: Path, spec: str, code: int, words: str
) -> None:
    (tmp_path / "evil_student.py").write_text("raise SystemExit('run')")
    path = write_student(tmp_path / "student.safetensors", STUDENT, student=spec)
    sys.path.insert(0, str(tmp_path))
    try:
        outcome = measure(path)
    finally:
        sys.path.remove(str(tmp_path))
    check_refusal(outcome, code, words)
    assert "evil_student" not in sys.modules


@pytest.mark.parametrize(
    ("notes", "code", "words"),
    [
        ({}, 2, "does not say all of its student; add --student"),
        ({"size": 3}, 2, "does not say all of its student; add --student"),
        ({"student": 3}, 5, "its metadata cannot be read: student: "),
        ({"student": TORCHVISION, "mean": [0.1]}, 5, "its metadata cannot be read: mean"),
        ({"student": TORCHVISION, "std": [0, 0, 0]}, 2, "expected finite numbers, std above 0"),
        ({"student": "torchvision:resnet"}, 2, "torchvision has no model 'resnet'"),
        ({"student": "torchvision:resnet18"}, 2, "weights do not fit the model"),
        ({"student": TORCHVISION, "num_classes": 7}, 2, "weights do not fit the model"),
    ],
)
def test_notes_that_do_not_serve_are_refused(
    measure: Measure, tmp_path: Path, notes: dict[str, object], code: int, words: str
) -> None:
    path = write_student(tmp_path / "student.safetensors", TORCHVISION, **notes)
    check_refusal(measure(path), code, str(path) if "metadata" in words else "", words)


def test_classes_are_written_beside_the_scalars(
    measure: Measure, tmp_path: Path, weights: Path, dataset: Dataset
) -> None:
    path = tmp_path / "classes.csv"
    arguments = [weights, "--student", STUDENT, "--classes", path]
    value = measure(*arguments, "--json").value
    assert "classes" not in value
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "name", "samples", "top1", "agreement", "kl_nats"]
    assert [row["name"] for row in rows] == [f"class{n}" for n in range(5)]
    counts = np.bincount(dataset.labels)
    assert [int(row["samples"]) for row in rows] == counts.tolist()
    for name in ("top1", "agreement", "kl_nats"):
        mean = np.average([float(row[name]) for row in rows], weights=counts)
        assert mean == pytest.approx(value[name], rel=1e-5)
    assert "worst" not in measure(*arguments).stdout  # five are no more than a few
    outcome = measure(weights, "--student", STUDENT, "--classes", tmp_path / "no/classes.csv")
    check_refusal(outcome, 2, "no/classes.csv: cannot be written")


ROLLED = [f"class{n}" for n in (4, 0, 1, 2, 3)]


def test_images_whose_classes_are_numbered_otherwise_are_not_measured(
    kdcache: Run, tmp_path: Path, centre: Path, dataset: Dataset
) -> None:
    """As where a folder of class was renamed: their number is the same."""
    notes = {"num_classes": 5, "classes": ROLLED}
    path = write_student(tmp_path / "student.safetensors", STUDENT, **notes)
    arguments = ["eval", path, "--student", STUDENT, "--cache", centre, "--workers", "0"]
    words = "class 0 is 'class0', 1 is 'class1', 2 is 'class2'; of "
    words += f"{path} class 0 is 'class4', 1 is 'class0', 2 is 'class1'; pack the validation images"
    refused = kdcache(*arguments, "--data", dataset.root)
    check_refusal(refused, 3, str(dataset.root), words, "--classes-of")
    # The same cache, made when they had other names, serves them once they are right.
    again = tiny.relabelled(dataset, tmp_path / "again", ROLLED)
    assert kdcache(*arguments, "--data", again, "--json").value["top1"] is not None


def test_where_either_side_has_no_names_nothing_is_compared(
    measure: Measure, tmp_path: Path, weights: Path, dataset: Dataset
) -> None:
    named = write_student(tmp_path / "a.safetensors", STUDENT, num_classes=5, classes=ROLLED)
    save_dataset(replace(dataset, classes=None), tmp_path / "nameless")
    unlabelled = replace(dataset, labels=np.full_like(dataset.labels, -1))
    save_dataset(unlabelled, tmp_path / "unlabelled")
    for student, data in (
        (weights, dataset.root), (named, tmp_path / "nameless"), (named, tmp_path / "unlabelled")
    ):  # fmt: skip
        assert measure(student, "--student", STUDENT, "--data", data).code == 0


def test_the_worst_and_best_five_of_many_classes_are_named() -> None:
    values, ones = np.arange(11) / 10, np.ones(11, np.int64)
    table = ClassTable("label", np.arange(11)[::-1], ones, values, None, None)
    names = [f"n{number}" for number in range(11)]
    assert extremes(table, names) == {
        "worst top1": "n10 0.00, n9 0.10, n8 0.20, n7 0.30, n6 0.40",
        "best top1": "n0 1.00, n1 0.90, n2 0.80, n3 0.70, n4 0.60",
    }
    by_teacher = ClassTable("teacher", np.arange(11), ones, None, values, None)
    assert extremes(by_teacher, None)["worst agreement"].startswith("0 0.00, 1 0.10, ")
    assert extremes(ClassTable("label", ones[:10], ones[:10], values[:10], None, None), None) == {}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--cache", "/no"], 2, ["/no: no cache here"]),
        (["--student", "tests.student.nets:large"], 2, ["student.safetensors: weights do not"]),
        (["--student", "tests.student.nets:nobody"], 2, ["no factory named nobody"]),
        (["--batch-size", "0"], 2, ["batch_size is 0"]),
        (["--workers", "-1"], 2, ["num_workers is -1"]),
        (["--device", "abacus"], 2, ["device 'abacus'"]),
        (["--mean", "x"], 2, ["--mean 'x'"]),
        (["--data", "/no"], 2, ["/no/dataset.json: missing"]),
    ],
)
def test_eval_names_what_is_wrong(
    kdcache: Run,
    centre: Path,
    dataset: Dataset,
    weights: Path,
    options: list[str],
    code: int,
    words: list[str],
) -> None:
    outcome = kdcache(
        *("eval", weights, "--student", STUDENT, "--data", dataset.root, "--cache", centre),
        *("--workers", "0", *options),
    )
    check_refusal(outcome, code, *words)


def test_eval_refuses_weights_that_are_gone_damaged_or_diverged(
    kdcache: Run, tmp_path: Path, centre: Path, dataset: Dataset, weights: Path
) -> None:
    arguments = ["--student", STUDENT, "--data", dataset.root, "--cache", centre, "--workers", "0"]
    bad = tmp_path / "bad.safetensors"
    check_refusal(kdcache("eval", bad, *arguments), 2, f"{bad}: no such weights file")
    bad.write_bytes(weights.read_bytes()[:500])
    check_refusal(kdcache("eval", bad, *arguments), 2, f"{bad}: not a readable weights file")
    state = load_file(weights)
    state["6.bias"][0] = torch.nan
    save_file(state, bad)
    check_refusal(kdcache("eval", bad, *arguments), 2, "logits that are not finite")


def test_eval_takes_a_normalisation(
    kdcache: Run, centre: Path, dataset: Dataset, weights: Path
) -> None:
    arguments = [
        *("eval", weights, "--student", STUDENT, "--data", dataset.root, "--cache", centre),
        *("--workers", "0", "--json"),
    ]
    own = kdcache(*arguments).value
    assert kdcache(*arguments, *PLAIN).value == own  # that of the cache's teacher
    other = kdcache(*arguments, "--mean", "0.5,0.5,0.5").value
    assert other["kl_nats"] != pytest.approx(own["kl_nats"])


def test_eval_of_missing_views_is_incomplete(
    kdcache: Run, tmp_path: Path, dataset: Dataset, weights: Path
) -> None:
    part = tiny.precompute_first(tmp_path / "part", dataset, tiny.make_recipe(), spans=1)
    assert open_cache(part.path).missing()
    outcome = kdcache(
        *("eval", weights, "--student", STUDENT, "--data", dataset.root, "--cache", part.path)
    )
    check_refusal(outcome, 4, str(part.path), "run kdcache precompute again")
