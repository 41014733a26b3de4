"""The README's words, run as they stand there; and two tables of docs/."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdcache.errors import KdcacheError
from kdcache.recipe.schema import load_recipe
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import ROOT
from tests.docs.blocks import find_blocks, lines_of, words_of
from tests.student import nets

README = (ROOT / "README.md").read_text()
STUDENT = "tests.student.nets:small"

# What stands in for networks that take minutes.
INSTEAD = {
    "torchvision:resnet50": STUDENT,  # the teacher is a student, too: of labels
    "torchvision:resnet18": STUDENT,
    "20": "1",
    "48": "2",
}
MORE = {
    "train": ["--batch-size", "8"],
    "eval": ["--student", STUDENT],  # code is imported only when it is named
    "export": ["--student", STUDENT],
    "verify": [
        *("--teacher", "0.1", "--spec", STUDENT),
        *("--weights", "build/teacher/student.safetensors"),
    ],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])  # factories are imported from there, too
    return tmp_path


def test_the_five_minute_tour_runs_from_photos_to_a_measured_student(
    place: Path, kdcache: Run
) -> None:
    tiny.write_images(place / "photos/train", 20)
    tiny.write_images(place / "photos/val", 7, seed=1)
    save_file(nets.small(7).state_dict(), "pretrained.safetensors")
    outcomes: dict[str, list[Outcome]] = {}
    for line in lines_of("README.md", heading="Five minutes with your own photos"):
        words = words_of(line)
        assert words[0] == "kdcache"
        arguments = [INSTEAD.get(word, word) for word in words[1:]]
        outcome = kdcache(*arguments, *MORE.get(words[1], []), "--json")
        assert outcome.code == 0, (words, outcome.stderr)
        outcomes.setdefault(words[1], []).append(outcome)
    assert list(outcomes) == ["pack", "train", "precompute", "inspect", "verify", "eval", "export"]

    packed = [outcome.value for outcome in outcomes["pack"]]
    assert [(value["samples"], value["tars"], value["num_classes"]) for value in packed] == [
        (20, 1, 5),
        (7, 1, 5),
    ]
    views, central = (outcome.value for outcome in outcomes["precompute"])
    assert (views["views"], views["spans_computed"], central["views"]) == (24, 3, 1)
    inspected = outcomes["inspect"][0].value
    assert inspected["id"] == views["id"]
    assert (inspected["coverage"], inspected["views_stored"]) == (1, 480)
    verified = outcomes["verify"][0].value
    assert (verified["damaged"], verified["spans_missing"]) == ([], 0)
    assert verified["replay"] == {"blocks": 1, "differing": []}
    assert verified["teacher"]["same"] is True
    assert verified["teacher"]["rows"] > 0
    taught, trained = (outcome.value for outcome in outcomes["train"])
    measured = outcomes["eval"][0].value
    assert (taught["epoch"], taught["val_samples"]) == (1, 7)
    assert (trained["epoch"], trained["reuse"], trained["val_samples"]) == (2, 2 / 24, 7)
    assert measured["samples"] == 7
    for name in ("top1", "kl_nats", "agreement"):
        assert measured[name] == pytest.approx(trained[f"val_{name}"], abs=1e-6)
    assert (place / "build/run/student.safetensors").exists()
    assert (place / "student.pt2").exists()

    for name in ("precompute", "train"):  # what people read goes elsewhere
        assert outcomes[name][0].stderr.count("\n") >= 1
    assert "3 spans of 8 views to do" in outcomes["precompute"][0].stderr
    assert "2 of 24 stored views, each used once" in outcomes["train"][1].stderr
    assert "epoch 2/2: loss " in outcomes["train"][1].stderr


def test_the_loop_of_the_readme_runs(place: Path) -> None:
    """Three classes and a batch of 32, as it says."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (36, 12, 12, 3), dtype=np.uint8)
    np.savez(place / "arrays.npz", images=images, labels=np.arange(36) % 3)
    dataset = tiny.pack_images(place / "arrays.npz", place / "build/train", rows_per_tar=20)
    teacher = tiny.make_teacher(num_classes=3)
    recipe = tiny.make_recipe(size=8)
    tiny.precompute(place / "build/cache", dataset, recipe, teacher=teacher, encoding="dense:f2")
    [code] = find_blocks("README.md", "python", heading="In your own loop")
    names: dict[str, object] = {}
    exec(compile(code.text, code.page, "exec"), names)
    state, loss = names["state"], names["loss"]
    assert isinstance(state, dict)
    assert (state["epoch"], state["batch"]) == (48, 0)
    assert isinstance(loss, torch.Tensor)
    assert bool(loss.isfinite())


def test_the_recipe_that_the_page_shows_is_funmatch(tmp_path: Path) -> None:
    found, *_ = find_blocks("docs/how-to/recipes.md", "toml")
    (tmp_path / "recipe.toml").write_text(found.text)
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.id == load_recipe("funmatch").id


def test_the_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    rows = re.findall(r"^\| (\d) \| (\w+) \|", page, re.MULTILINE)
    codes = {kind.__name__.removesuffix("Error").lower(): kind.exit_code
             for kind in KdcacheError.__subclasses__()}  # fmt: skip
    assert len(rows) == 6
    for code, name in rows:
        assert codes[name] == int(code)


def test_every_file_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"docs/[\w./-]+\.md", README))
    assert len(named) >= 15
    for name in named:
        assert (ROOT / name).is_file(), name
