"""Claims about the commands where teachers are several, of other classes, or looked at first."""

from pathlib import Path

import pytest
from torch import nn

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.models.ensemble import average_teachers
from kdcache.models.teacher import Preprocessing, load_teacher
from kdcache.student.folder import read_config
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import PLAIN, TEACHER, check_refusal, write_recipe, write_weights
from tests.models.planting import SIDE, save_program

OTHER = "tests.tiny:other_teacher"
STUDENT = "tests.student.nets:small"
LABELS = """
rest = "other"
[classes]
even = [0, "2..2"]
odd = [1]
other = []
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.toml"
    path.write_text(LABELS)
    return path


def precompute(
    kdcache: Run, dataset: Dataset, recipe: Path, cache: Path, *options: object
) -> Outcome:
    return kdcache(
        *("precompute", "--data", dataset.root, "--recipe", recipe, "--views", "2"),
        *("--cache", cache, "--device", "cpu", *options),
    )


def train(kdcache: Run, dataset: Dataset, out: Path, *options: object) -> Outcome:
    return kdcache(
        *("train", "--data", dataset.root, "--student", STUDENT, "--epochs", "2", "--workers", "0"),
        *("--batch-size", "8", "--device", "cpu", "--out", out, "--json", *options),
    )


# --- several teachers ----------------------------------------------------------------------


def test_two_teachers_make_one_cache_that_goes_on_and_is_verified(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path
) -> None:
    cache, both = tmp_path / "c", ["--teacher", TEACHER, "--teacher", OTHER, "--shares", "0.7,0.3"]
    assert precompute(kdcache, dataset, recipe, cache, *both, *PLAIN).code == 0
    info = open_cache(cache).info
    assert info.teacher["spec"] == f"{TEACHER} + {OTHER}"
    assert info.teacher["shares"] == [0.7, 0.3]
    # What the cache knows of normalisation and precision need not be said again.
    again = precompute(kdcache, dataset, recipe, cache, *both, "--json")
    assert again.value["spans_computed"] == 0
    specs = ["--spec", TEACHER, "--spec", OTHER, "--shares", "7,3"]
    checked = kdcache("verify", cache, "--data", dataset.root, "--teacher", "1", *specs, "--json")
    assert checked.value["teacher"]["rows_equal"] == 1
    other = kdcache("verify", cache, "--data", dataset.root, "--teacher", "1", *specs[:4])
    check_refusal(other, 3, "made by teacher")


def test_a_mean_of_teachers_that_normalise_otherwise_is_known_again(
    kdcache: Run, tmp_path: Path, dataset: Dataset
) -> None:
    grey = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    members = [tiny.make_teacher(), load_teacher(OTHER, None, preprocessing=grey)]
    teacher = average_teachers(members, (0.5, 0.5))
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), teacher=teacher).path
    verify = ["verify", cache, "--data", dataset.root, "--teacher", "1", "--spec", TEACHER]
    checked = kdcache(*verify, "--spec", OTHER, "--json")
    assert checked.value["teacher"]["rows_equal"] == 1
    assert "mean of logits, 0.5, 0.5" in kdcache("inspect", cache).stdout


def test_processes_load_all_teachers(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path, labels: Path
) -> None:
    weights = write_weights(tmp_path / "w.safetensors")
    both = ["--teacher", f"{TEACHER}@{weights}", "--teacher", OTHER, "--labels", labels, *PLAIN]
    both += ["--teacher-classes", "5"]
    assert precompute(kdcache, dataset, recipe, tmp_path / "one", *both).code == 0
    many = ["--engine", "processes", "--processes", "2"]
    outcome = precompute(kdcache, dataset, recipe, tmp_path / "two", *both, *many)
    assert outcome.code == 0, outcome.stderr
    ours, theirs = tiny.tree(tmp_path / "one"), tiny.tree(tmp_path / "two")
    assert {n: b for n, b in ours.items() if n != "zarr.json"} == {
        n: b for n, b in theirs.items() if n != "zarr.json"
    }


def test_a_student_learns_from_two_caches_and_is_measured_against_both(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path
) -> None:
    caches = []
    for name, teacher in (("a", TEACHER), ("b", OTHER)):
        caches.append(tmp_path / name)
        precompute(kdcache, dataset, recipe, caches[-1], "--teacher", teacher, *PLAIN)
    both = [option for cache in caches for option in ("--cache", cache)]
    val = ["--val-data", dataset.root]
    val += [option for cache in caches for option in ("--val-cache", cache)]
    run = tmp_path / "run"
    outcome = train(kdcache, dataset, run, *both, *val, "--weights", "3,1")
    assert outcome.code == 0, outcome.stderr
    joined = (read_config(run) or {})["joined"]
    assert joined["shares"] == [0.75, 0.25]
    assert [teacher["spec"] for teacher in joined["teachers"]] == [TEACHER, OTHER]
    evaluate = ["eval", run, "--student", STUDENT, "--data", dataset.root, *both]
    evaluate += ["--workers", "0", "--device", "cpu", "--json"]
    for options in ([], ["--weights", "3,1"]):  # the run's shares are those that hold
        score = kdcache(*evaluate, *options).value
        assert score["kl_nats"] == pytest.approx(outcome.value["val_kl_nats"], abs=1e-6)
    other = kdcache(*evaluate, "--weights", "1,3").value["kl_nats"]
    assert other != pytest.approx(outcome.value["val_kl_nats"], abs=1e-3)
    alone = train(kdcache, dataset, tmp_path / "alone", "--cache", caches[0], *val[:4])
    assert alone.value["val_kl_nats"] != pytest.approx(outcome.value["val_kl_nats"], abs=1e-3)
    other = train(kdcache, dataset, run, *both, *val, "--weights", "1,1", "--resume")
    assert other.code == 2
    assert "joined.shares [0.75, 0.25], this one has [0.5, 0.5]" in other.stderr


def test_several_teachers_look_on_online_or_fill_a_cache_while_training(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path, labels: Path
) -> None:
    teachers = ["--teacher", TEACHER, "--teacher", OTHER, "--weights", "3,1", "--labels", labels]
    teachers += ["--teacher-mean", "0,0,0", "--teacher-std", "1,1,1", "--recipe", recipe]
    online = train(kdcache, dataset, tmp_path / "online", "--learn", "online", *teachers)
    assert online.code == 0, online.stderr
    filled = ["--cache", tmp_path / "c", "--write-through", "--views", "2"]
    stored = train(
        kdcache, dataset, tmp_path / "stored", *filled, *teachers, "--teacher-classes", "5"
    )
    assert stored.code == 0, stored.stderr
    assert stored.value["loss"] == pytest.approx(online.value["loss"], rel=0.02)
    info = open_cache(tmp_path / "c").info
    assert (info.num_classes, info.teacher["shares"]) == (3, [0.75, 0.25])


# --- other classes -------------------------------------------------------------------------


def test_classes_are_mapped_at_precompute_or_when_read(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path, labels: Path
) -> None:
    teacher = ["--teacher", TEACHER, *PLAIN, "--encoding", "dense:f2"]
    precompute(kdcache, dataset, recipe, tmp_path / "plain", *teacher)
    mapping = ["--labels", labels]
    outcome = precompute(
        kdcache, dataset, recipe, tmp_path / "m", *teacher, *mapping, "--teacher-classes", "5"
    )
    assert outcome.code == 0, outcome.stderr
    info = open_cache(tmp_path / "m").info
    assert (info.num_classes, info.classes) == (3, ("even", "odd", "other"))
    losses = []
    for name, cache, options in (("r1", "plain", mapping), ("r2", "m", [])):
        val = ["--val-data", dataset.root, "--val-cache", tmp_path / cache]
        outcome = train(
            kdcache, dataset, tmp_path / name, "--cache", tmp_path / cache, *options, *val
        )
        assert outcome.code == 0, outcome.stderr
        losses.append((outcome.value["loss"], outcome.value["val_kl_nats"]))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    # A student on mapped classes may be measured on a cache that is mapped already.
    mixed = ["--val-data", dataset.root, "--val-cache", tmp_path / "m", *mapping]
    assert train(kdcache, dataset, tmp_path / "r3", "--cache", tmp_path / "plain", *mixed).value[
        "val_kl_nats"
    ] == pytest.approx(losses[0][1], rel=0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[classes]\na = [0]\nb = [1]", ["labels.toml", "rest", "drop"]),
        (
            "drop = true\n[classes]\na = [0]\nb = [9]",
            ["labels.toml, for ", "class 9; the teacher has 5"],
        ),
        ("drop = true\n[classes]\na = [0]\nb = [0]", ["0", "a"]),
        ("drop = true\n[classes]\na = ['class0']\nb = ['klass1']", ["klass1", "class1"]),
        ("drop = yes", ["not a TOML file"]),
    ],
)
def test_a_mapping_that_does_not_serve_is_refused(
    kdcache: Run, tmp_path: Path, dataset: Dataset, complete: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(text)
    outcome = train(kdcache, dataset, tmp_path / "run", "--cache", complete, "--labels", path)
    check_refusal(outcome, 2, *words)
    assert not (tmp_path / "run").exists()


# --- options that contradict each other ----------------------------------------------------


def test_options_that_contradict_each_other_are_refused(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path, complete: Path
) -> None:
    weights = write_weights(tmp_path / "w.safetensors")
    both = ["--teacher", TEACHER, "--teacher", OTHER]
    cases: list[tuple[list[object], list[str]]] = [
        ([*both, "--weights", weights], ["of which teacher", "SOURCE:NAME@WEIGHTS"]),
        ([*both, "--shares", "1"], ["share"]),
        (["--teacher", TEACHER, "--shares", "1"], ["are of several teachers"]),
        ([*both, "--shares", "1,x"], ["--shares '1,x': expected numbers"]),
        (["--teacher", TEACHER, "--mean", "0,0,0"], ["--mean and --std: give both"]),
        (["--teacher", f"{TEACHER}@{weights}", "--weights", weights], ["leave one out"]),
        (["--teacher", "onnx:nothing.onnx"], ["nothing.onnx"]),
        (["--teacher", "pt2:nothing.pt2"], ["nothing.pt2"]),
        (["--teacher", "tim:resnet18"], ["did you mean timm:"]),
    ]
    for options, words in cases:
        check_refusal(precompute(kdcache, dataset, recipe, tmp_path / "c", *options), 2, *words)
        assert not (tmp_path / "c").exists()
    runs: list[tuple[list[object], list[str]]] = [
        (["--cache", complete, "--weights", "1"], ["are of several caches"]),
        (["--cache", complete, "--cache", complete, "--weights", "1"], ["share"]),
        (
            ["--learn", "labels", "--recipe", recipe, "--weights", "1"],
            ["--weights: is of teachers"],
        ),
        (
            ["--cache", complete, "--cache", complete, "--teacher", TEACHER, "--write-through"],
            ["fills one cache"],
        ),
        (["--cache", complete, "--teacher-mean", "0,0,0"], ["there is no teacher; add --teacher"]),
    ]
    for options, words in runs:
        check_refusal(train(kdcache, dataset, tmp_path / "run", *options), 2, *words)


# --- teacher check -------------------------------------------------------------------------


def check(kdcache: Run, dataset: Dataset, *options: object) -> Outcome:
    return kdcache(
        "teacher", "check", TEACHER, "--data", dataset.root, *PLAIN, "--device", "cpu", *options
    )


def test_a_check_says_what_a_teacher_is_and_how_good(
    kdcache: Run, tmp_path: Path, dataset: Dataset
) -> None:
    outcome = check(kdcache, dataset)
    assert outcome.code == 0
    found = {line.split("  ")[0]: line for line in outcome.stdout.splitlines()}
    for name in ("teacher", "fingerprint", "normalises", "licence", "classes", "steadiness"):
        assert name in found, outcome.stdout
    assert "deterministic" in found["steadiness"]
    assert "images/s" in found["speed"]
    assert "top-1" in found["accuracy"]
    assert "calibration error" in found["accuracy"]
    value = check(kdcache, dataset, "--json").value
    assert value["id"] == tiny.make_teacher().description["id"]
    assert value["measures"]["own"]["samples"] == 24
    assert 0 <= value["measures"]["own"]["top1"] <= 1
    assert value["measures"]["shown"] is None
    assert value["steadiness"] == {"repeat_nats": 0.0, "batch_nats": 0.0}


def test_a_check_measures_what_a_recipe_shows_and_at_most_so_many(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path
) -> None:
    options = ["--recipe", recipe, "--samples", "10", "--batch-size", "5", "--json"]
    value = check(kdcache, dataset, *options).value
    # What its source does not say is as the recipe has it.
    assert value["measures"]["shown"] is None
    assert (value["measures"]["own"]["size"], value["measures"]["own"]["samples"]) == (12, 10)
    assert check(kdcache, dataset, *options[:-1], "--samples", "8").stdout.count("on 5 images") == 1


def test_a_check_of_a_teacher_that_takes_one_size_says_so(
    kdcache: Run, dataset: Dataset, recipe: Path, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, tiny.NUM_CLASSES)).eval()
    path = save_program(network, tmp_path / "net.pt2")
    arguments = ["teacher", "check", f"pt2:{path}", "--data", dataset.root, "--recipe", recipe]
    outcome = kdcache(*arguments, "--device", "cpu")
    assert outcome.code == 0, outcome.stderr
    assert "as shown     fails" in outcome.stdout
    made = f"it was made for {SIDE} pixels, the recipe shows it 12; [teacher] size = {SIDE}"
    assert made in outcome.stdout
    assert "a guess: its source does not say" in outcome.stdout
    assert "give --mean and --std if it is another" in outcome.stdout


def test_a_check_of_other_classes_measures_no_accuracy(kdcache: Run, dataset: Dataset) -> None:
    outcome = check(kdcache, dataset, "--teacher-classes", "7")
    assert outcome.code == 0
    assert "not measured" in outcome.stdout
    assert "has 7 classes, the dataset 5" in outcome.stdout


def test_a_check_needs_a_teacher_and_data(kdcache: Run, dataset: Dataset) -> None:
    check_refusal(kdcache("teacher", "check", "tests.tiny:nobody", "--data", dataset.root), 2)
    check_refusal(kdcache("teacher", "check", TEACHER, "--data", "/no"), 2, "/no")
