"""Claims about kdcache recipe: show, preview, check."""

import json
from pathlib import Path

import pytest
from PIL import Image

from kdcache.data.dataset import Dataset
from kdcache.recipe.schema import load_recipe, presets
from tests.cli.conftest import Run

NAMES = ("centre", "consistent", "funmatch", "mild", "randaugment")


def test_the_presets_are_those_that_the_help_names(kdcache: Run) -> None:
    assert presets() == NAMES
    text = " ".join(kdcache("recipe", "preview", "--help").stdout.split())
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_shown_as_a_recipe_of_its_own(name: str, kdcache: Run, tmp_path: Path) -> None:
    outcome = kdcache("recipe", "show", name)
    assert outcome.code == 0
    (tmp_path / "mine.toml").write_text(outcome.stdout)
    assert load_recipe(tmp_path / "mine.toml").id == load_recipe(name).id


def test_the_presets_keep_their_ids() -> None:
    assert {name: load_recipe(name).id[:16] for name in NAMES} == {
        "centre": "c89476e9b7cdb979",
        "consistent": "55c4202e1de4edfb",
        "funmatch": "43322e47e1f0c4f5",
        "mild": "e159b062ed57a4a0",
        "randaugment": "4f924b6cf40a41c4",
    }


@pytest.mark.parametrize("command", [("show",), ("preview", "--data", "x", "--out", "y.png")])
def test_a_name_that_is_no_preset_is_refused_with_those_there_are(
    command: tuple[str, ...], kdcache: Run, dataset: Dataset
) -> None:
    words = [str(dataset.root) if word == "x" else word for word in command[1:]]
    outcome = kdcache("recipe", command[0], "funmatsch", *words)
    assert outcome.code == 2
    assert f"preset; presets: {', '.join(NAMES)}\n" in outcome.stderr


def test_a_file_of_a_presets_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("funmatch").write_text('seed = 3\nsize = 8\ncrop = { law = "full" }\n')
    assert load_recipe("funmatch").seed == 3


def test_a_preview_is_a_picture(kdcache: Run, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    outcome = kdcache(
        "recipe", "preview", "centre", "--data", dataset.root, "--out", out, "--rows", "2",
        "--views", "1",
    )  # fmt: skip
    assert outcome.code == 0
    assert outcome.stdout == f"{out}: 2 images, 1 views of each\n"
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > 2 * 224
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tar", "99"), "--tar 99: "),
        (("--out", "/nowhere/at/all.png"), "/nowhere/at"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    more: tuple[str, ...], message: str, kdcache: Run, dataset: Dataset, tmp_path: Path
) -> None:
    out = () if "--out" in more else ("--out", tmp_path / "a.png")
    outcome = kdcache("recipe", "preview", "mild", "--data", dataset.root, *out, *more)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_this_machine_makes_the_right_pixels(kdcache: Run) -> None:
    outcome = kdcache("recipe", "check", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.stdout)
    assert found["pixels"] == 1
    assert found["jpeg"][-1] == "pillow"
    assert set(found["versions"]) == {"numpy", "pillow", "simplejpeg", "torch"}
