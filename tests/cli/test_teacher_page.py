"""Claims of docs/how-to/teachers.md: its commands run as they stand there, its files are read."""

import sys
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from kdcache.recipe.schema import load_recipe
from kdcache.targets.labels import load_labels, resolve
from tests import tiny
from tests.cli.conftest import Run
from tests.cli.making import TEACHER, write_weights
from tests.docs.blocks import find_blocks, lines_of
from tests.docs.running import exchanged, run_here

PAGE = "docs/how-to/teachers.md"

# What stands in for networks that take minutes, or a network.
INSTEAD = {
    "timm:vit_base_patch16_384.augreg_in21k_ft_in1k": TEACHER,
    "torchvision:resnet50": TEACHER,
    "torchvision:resnet18": "tests.student.nets:small",
    "timm:mobilenetv3_small_100": "timm:test_resnet",
    "--epochs 48": "--epochs 2 --batch-size 8 --workers 0",
    "--labels labels.toml …": "--labels labels.toml --student tests.student.nets:small "
    "--epochs 1 --batch-size 8 --workers 0 --data build/train --out build/mapped",
    "precompute …": "precompute --data build/train --recipe funmatch --views 8 --cache build/cache "
    f"--teacher {TEACHER} --teacher-classes 5",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with build/train, build/val, two teachers' weights and the page's labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for part, count in (("train", 20), ("val", 9)):
        folder = tiny.write_images(tmp_path / "images" / part, count)
        tiny.pack_images(folder, tmp_path / "build" / part)
    write_weights(tmp_path / "a.safetensors")
    write_weights(tmp_path / "b.safetensors", "other_teacher")
    (tmp_path / "labels.toml").write_text(find_blocks(PAGE, "toml")[1].text)
    return tmp_path


def test_its_commands_run_one_after_the_other(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_here(kdcache, exchanged(lines_of(PAGE), INSTEAD), monkeypatch=monkeypatch)
    made = [*["precompute"] * 3, "train", "eval", "verify"]
    assert [name for name, _ in done] == [
        "teacher",
        *made,
        "precompute",
        "train",
        "train",
        "export",
    ]
    joined = open_cache(place / "build/mean").info.teacher
    assert (joined["shares"], joined["average"]) == ([0.7, 0.3], "logits")


def test_its_files_are_read(place: Path) -> None:
    recipe, _ = find_blocks(PAGE, "toml")
    path = place / "recipe.toml"
    path.write_text(recipe.text)
    found = load_recipe(path)
    assert (found.size_for("student"), found.size_for("teacher")) == (224, 384)
    mapping = resolve(load_labels(place / "labels.toml"), num_classes=5, names=None, source="")
    assert mapping.student_C.tolist() == [0, 1, 0, 2, 2]
