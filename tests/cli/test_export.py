import json
from pathlib import Path

import pytest
import torch
from onnxruntime import InferenceSession
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdcache.data.dataset import Dataset
from tests.cli.conftest import Run
from tests.cli.making import check_refusal

STUDENT = "tests.student.nets:small"


@pytest.fixture
def run(kdcache: Run, tmp_path: Path, complete: Path, dataset: Dataset) -> Path:
    """The folder of a run that train finished."""
    folder = tmp_path / "run"
    outcome = kdcache(
        *("train", "--data", dataset.root, "--cache", complete, "--student", STUDENT),
        *("--epochs", "1", "--batch-size", "7", "--workers", "0", "--out", folder),
    )
    assert outcome.code == 0
    return folder


def test_a_run_becomes_a_file_and_the_command_says_which(
    kdcache: Run, tmp_path: Path, run: Path
) -> None:
    out = tmp_path / "student.pt2"
    outcome = kdcache("export", run, out, "--student", STUDENT)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in outcome.stdout.splitlines())
    assert list(lines) == ["file", "weights", "student", "takes", "gives", "classes", "agrees"]
    assert lines["file"].startswith(f"{out} (")
    assert lines["weights"] == str(run / "student.safetensors")
    assert lines["student"] == STUDENT
    assert lines["takes"].startswith("uint8 pixels (batch, 3, 12, 12); computes (x / 255 - mean)")
    assert lines["gives"] == "float32 logits (batch, 5)"
    assert lines["classes"] == "5 (class0, class1, class2, …)"
    assert lines["agrees"].endswith("of their range; top-1 on 100% of 8 random images")
    pixels = torch.zeros(3, 3, 12, 12, dtype=torch.uint8)
    assert torch.export.load(out).module()(pixels).shape == (3, 5)


def test_with_json_the_result_is_alone_on_stdout(kdcache: Run, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "student.onnx"
    outcome = kdcache(
        *("export", run / "student.safetensors", out, "--student", STUDENT, "--size", "20"),
        *("--normalised", "--json"),
    )
    assert (outcome.code, outcome.stderr) == (0, "")
    value = outcome.value
    assert 0 <= value.pop("relative") < 1e-6
    assert 0 <= value.pop("max_difference") < 1e-4
    assert value == {
        "path": str(out), "size_bytes": out.stat().st_size, "student": STUDENT,
        "trained_as": STUDENT, "num_classes": 5, "size": 20,
        "classes": [f"class{n}" for n in range(5)], "takes": "images", "images": 8,
        "top1": 1.0, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
        "weights": str(run / "student.safetensors"),
    }  # fmt: skip
    (taken,) = InferenceSession(str(out), providers=["CPUExecutionProvider"]).get_inputs()
    assert (taken.type, taken.shape) == ("tensor(float)", ["batch", 3, 20, 20])


def test_a_student_of_a_run_of_before_is_exported_without_names(
    kdcache: Run, tmp_path: Path, run: Path
) -> None:
    path = run / "student.safetensors"
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["kdcache"])
    del notes["classes"]
    save_file(load_file(path), path, {"kdcache": json.dumps(notes)})
    outcome = kdcache("export", run, tmp_path / "student.pt2", "--student", STUDENT)
    assert "\nclasses  5, without names\n" in outcome.stdout


def test_a_moved_module_is_named_beside_the_one_trained(
    kdcache: Run, tmp_path: Path, run: Path
) -> None:
    outcome = kdcache("export", run, tmp_path / "a.pt2", "--student", "tests.cli.test_export:moved")
    assert f"student  tests.cli.test_export:moved, trained as {STUDENT}\n" in outcome.stdout


def moved(num_classes: int) -> torch.nn.Module:
    from tests.student.nets import small

    return small(num_classes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], f"runs only when you name it; repeat the command with --student {STUDENT}"),
        (["--student", "tests.student.nets:wide"], "weights do not fit the model"),
        (["--student", STUDENT, "--num-classes", "6"], "--num-classes 5, not 6"),
        (["--student", STUDENT, "--mean", "1,1,1"], "trained with --mean"),
        (["--student", STUDENT, "--std", "x"], "--std 'x'"),
        (["--student", STUDENT, "--size", "0"], "size: Input should be greater"),
        (["--student", "resnet18"], "expected torchvision:NAME, timm:NAME"),
    ],
)
def test_export_names_what_is_wrong(
    kdcache: Run, tmp_path: Path, run: Path, options: list[str], words: str
) -> None:
    check_refusal(kdcache("export", run, tmp_path / "student.pt2", *options), 2, words)
    assert not (tmp_path / "student.pt2").exists()


def test_export_refuses_places_and_sources_that_do_not_serve(
    kdcache: Run, tmp_path: Path, run: Path
) -> None:
    given = ["--student", STUDENT]
    check_refusal(kdcache("export", run, tmp_path / "a.pth", *given), 2, "ends in .pt2 or .onnx")
    check_refusal(kdcache("export", run, tmp_path / "no/a.pt2", *given), 2, "there is no folder")
    check_refusal(
        kdcache("export", tmp_path, tmp_path / "a.pt2", *given), 2, "no student.safetensors there"
    )
    (tmp_path / "a.pt2").touch()
    check_refusal(kdcache("export", run, tmp_path / "a.pt2", *given), 2, "add --overwrite")
    assert kdcache("export", run, tmp_path / "a.pt2", *given, "--overwrite").code == 0
    assert (tmp_path / "a.pt2").stat().st_size > 0
