"""Claims about kdcache init: files that work as they are, and nothing written over."""

import json
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from safetensors.torch import save_file

from kdcache.data.document import load_dataset
from kdcache.recipe.schema import load_recipe, preset_text, presets
from kdcache.report.plan import views_of_epochs
from tests import tiny
from tests.cli.conftest import Run
from tests.cli.making import check_refusal
from tests.student.nets import small

# By target the commands that it runs, when all above are done.
STEPS = {
    "pack": ["pack", "pack"],
    "teacher": ["train"],
    "plan": ["plan"],
    "precompute": ["precompute", "precompute"],
    "verify": ["verify"],
    "train": ["train"],
    "eval": ["eval"],
    "show": ["show", "show"],
    "export": ["export"],
}
GIVEN = {
    "TEACHER": "tests.student.nets:small",
    "TEACHER_EPOCHS": "1",
    "STUDENT": "tests.student.nets:small",
    "VIEWS": "2",
    "EPOCHS": "2",
    "BATCH": "8",
}

MORE = {"plan": ["--probe-s", "0"], "train": ["--workers", "0"], "eval": ["--workers", "0"]}


def _commands(folder: Path, target: str, *words: str) -> list[list[str]]:
    """Return the words of each command that make would run."""
    given = [f"{name}={value}" for name, value in GIVEN.items()]
    done = subprocess.run(
        ["make", "-n", "-f", "kdcache.mk", target, *given, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("kdcache ")]


@pytest.mark.parametrize("name", presets())
def test_the_recipe_is_the_preset(kdcache: Run, tmp_path: Path, name: str) -> None:
    outcome = kdcache("init", tmp_path / "new", "--recipe", name)
    assert outcome.code == 0
    assert load_recipe(tmp_path / "new/recipe.toml").id == load_recipe(name).id


def test_the_targets_lead_from_photos_to_a_student_and_are_done_once(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_images(tmp_path / "photos/train", 12)
    tiny.write_images(tmp_path / "photos/val", 4)
    outcome = kdcache("init", tmp_path / "work", "--images", tmp_path / "photos/train", "--json")
    assert outcome.code == 0
    assert outcome.value["next"] == f"make -C {tmp_path / 'work'} -f kdcache.mk pack"
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", sys.path[:])
    save_file(small(7).state_dict(), "pretrained.safetensors")
    for preset in ("recipe.toml", "centre", "mild"):
        text = Path(preset).read_text() if preset.endswith("toml") else preset_text(preset)
        Path(preset).with_suffix(".toml").write_text(re.sub(r"size = 224\b", "size = 16", text))
    sizes = ["VAL_RECIPE=centre.toml", "TEACHER_RECIPE=mild.toml"]
    for target, commands in STEPS.items():
        done = []
        for words in _commands(Path(), target, *sizes):
            outcome = kdcache(*words[1:], *MORE.get(words[1], []), "--quiet", "--json")
            assert outcome.code == 0, (words, outcome.stderr)
            done.append(words[1])
        assert done == commands
    for target in ("pack", "teacher", "precompute"):
        assert _commands(Path(), target) == []
    (again,) = _commands(Path(), "train")
    assert "--resume" in again
    assert load_dataset(Path("build/val")).num_classes == tiny.NUM_CLASSES
    metrics = json.loads(Path("build/run/metrics.jsonl").read_text().splitlines()[-1])
    assert "val_kl_nats" in metrics
    for made in ("student.pt2", "run.html", "cache.html"):
        assert (Path("build") / made).is_file()


def test_the_steps_are_listed(kdcache: Run, tmp_path: Path) -> None:
    assert kdcache("init", tmp_path).code == 0
    command = ["make", "-C", tmp_path, "-s", "--no-print-directory", "-f", "kdcache.mk"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["steps", *STEPS]


def test_train_alone_does_all_that_it_needs(kdcache: Run, tmp_path: Path) -> None:
    assert kdcache("init", tmp_path).code == 0
    words = _commands(tmp_path, "train", "WEIGHTS=", "TRAIN_ARGS=--quiet")
    assert [command[1] for command in words] == ["pack", "precompute", "train"]
    assert "--weights" not in words[1]
    assert words[2][-1] == "--quiet"
    words = _commands(tmp_path, "train", "PRETRAINED=")
    assert [command[1] for command in words] == ["pack", "train", "precompute", "train"]
    assert words[1][words[1].index("--out") + 1] == "build/teacher"
    assert "--init" not in words[1]
    assert not [word for command in words for word in command if "val" in word]


@pytest.mark.parametrize("name", ["recipe.toml", "kdcache.mk"])
def test_nothing_is_written_over(kdcache: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    check_refusal(kdcache("init", tmp_path), 2, f"{tmp_path / name}: is there already")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_images_that_make_cannot_name_or_that_are_not_there_are_refused(
    kdcache: Run, tmp_path: Path
) -> None:
    for name in ("my photos", "photos(1)", "O'Brien", "photos;id", "a$b#c"):
        (tmp_path / name).mkdir()
        odd = kdcache("init", tmp_path / "a", "--images", tmp_path / name)
        check_refusal(odd, 2, "make takes paths of letters", "link to it by another")
    check_refusal(kdcache("init", tmp_path / "a", "--images", tmp_path / "none"), 2, "no folder")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["-n", "torchvision:CIFAR100"])
def test_images_of_odd_names_are_a_folder_all_the_same(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert kdcache("init", f"--images=./{name}").code == 0
    assert f"\nIMAGES ?= ./{name}\n" in (tmp_path / "kdcache.mk").read_text()


@pytest.mark.parametrize("name", ["a b", "$HOME#x", "-dash"])
def test_the_next_command_can_be_pasted(kdcache: Run, tmp_path: Path, name: str) -> None:
    outcome = kdcache("init", tmp_path / name, "--json")
    words = shlex.split(outcome.value["next"])
    assert words[:3] == ["make", "-C", str(tmp_path / name)]


def test_images_are_found_from_a_folder_behind_a_link(kdcache: Run, tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    (tmp_path / "photos").mkdir()
    assert kdcache("init", tmp_path / "link", "--images", tmp_path / "photos").code == 0
    ((_, _, images, *_), *_) = _commands(tmp_path / "link", "pack")
    assert (tmp_path / "real/deep" / images).resolve() == (tmp_path / "photos").resolve()


def test_the_views_of_the_fragment_are_enough_for_its_epochs() -> None:
    text = (resources.files("kdcache.cli") / "kdcache.mk").read_text("utf-8")
    views, epochs = (
        int(re.findall(rf"^{n} \?= (\d+)$", text, re.M)[0]) for n in ("VIEWS", "EPOCHS")
    )
    assert views_of_epochs(epochs).num_views == views


def test_the_next_command_is_told(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(r"next +make -f kdcache.mk pack IMAGES=photos/train\n", kdcache("init").stdout)
