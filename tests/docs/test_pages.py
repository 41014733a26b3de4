"""Pages run as they stand: own-data, recipes, choose-an-encoding, keep-a-cache, debug-a-mismatch;
and the reader of format.md.

A command that needs what is not at hand is only parsed, by test_blocks.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.cache.store import open_cache
from kdcache.recipe.schema import load_recipe
from tests import tiny
from tests.cache import golden
from tests.cli.conftest import Run
from tests.cli.making import ROOT, TEACHER, write_weights
from tests.docs.blocks import blocks_of

pytestmark = pytest.mark.slow

NOT_AT_HAND = ("torchvision:CIFAR100", "…")
STUDENT = ["--student", "tests.student.nets:small"]  # code is imported only when it is named
INSTEAD = {"torchvision:resnet50": TEACHER}
MORE = {"eval": STUDENT, "export": STUDENT}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, tars, a teacher's weights, and a cache of 16 views."""
    place = tmp_path_factory.mktemp("pages")
    for part, count in (("train", 12), ("val", 6)):
        folder = tiny.write_images(place / "photos" / part, count)
        tiny.pack_images(folder, place / "build" / part)
    shutil.copytree(place / "build/train", place / "build/tars")
    for name in ("dataset.json", "dataset.npz"):
        (place / "build/tars" / name).unlink(missing_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(place / "arrays.npz", images=images, labels=np.arange(6) % 3)
    write_weights(place / "teacher.safetensors")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def _precompute(run: Run, cache: str, *, views: int = 16) -> None:
    teacher = ["--teacher", TEACHER, "--weights", "teacher.safetensors"]
    recipe = ["--recipe", "funmatch", "--views", views]
    outcome = run("precompute", "--data", "build/train", *teacher, *recipe, "--cache", cache)
    assert outcome.code == 0, outcome.stderr


def _run_page(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Run a page's commands that can run here; return each one's name and outcome."""
    found: list[tuple[str, Any]] = []
    for block in blocks_of(ROOT / f"docs/how-to/{name}.md"):
        for words in block.commands() if block.language == "sh" else []:
            if any(word in NOT_AT_HAND for word in words):
                continue
            with monkeypatch.context() as changed:
                while "=" in words[0]:
                    changed.setenv(*words.pop(0).split("=", 1))
                words, out = (words[: words.index(">")], words[-1]) if ">" in words else (words, "")
                assert words[0] == "kdcache"
                arguments = [INSTEAD.get(word, word) for word in words[1:]]
                if arguments[0] == "pack":  # the page makes what is there already
                    shutil.rmtree(arguments[2], ignore_errors=True)
                outcome = run(*arguments, *MORE.get(words[1], []))
            assert outcome.code == 0, (words, outcome.stderr)
            if out:
                Path(out).write_text(outcome.stdout)
            found.append((words[1], outcome))
    return found


def test_own_data_runs(place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _precompute(kdcache, "build/teaching")
    train = ["train", "--data", "build/train", "--cache", "build/teaching", *STUDENT]
    size = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--out", "build/run"]
    assert kdcache(*train, *size).code == 0
    done = [name for name, _ in _run_page(kdcache, "own-data", monkeypatch)]
    assert done == ["init", "pack", "pack", "index", *["precompute"] * 2, "eval", "export"]
    assert not open_cache(place / "build/cache").missing()
    assert (place / "student.pt2").is_file()


def test_recipes_runs(place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(kdcache, "recipes", monkeypatch)
    assert (place / "preview.png").is_file()
    assert load_recipe(place / "my.toml") == load_recipe("randaugment")


def test_choose_an_encoding_runs(
    place: Path,
    kdcache: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [(_, outcome)] = _run_page(kdcache, "choose-an-encoding", monkeypatch)
    assert "--encoding " in outcome.stdout.splitlines()[-1]
    assert (place / "encodings.png").is_file()


def test_keep_a_cache_runs(place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _precompute(kdcache, "build/cache")
    _precompute(kdcache, "node1/cache", views=64)
    for copy in ("node2/cache", "backup/cache"):
        shutil.copytree("node1/cache", copy)
    done = [name for name, _ in _run_page(kdcache, "keep-a-cache", monkeypatch)]
    assert done == ["status", "status", "extend", "merge", "slice", "repair"]
    assert not open_cache(place / "build/cache").missing()
    assert open_cache(place / "build/small").grid.num_views == 16


def test_debug_a_mismatch_runs(
    place: Path,
    kdcache: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _precompute(kdcache, "build/cache")
    done = [name for name, _ in _run_page(kdcache, "debug-a-mismatch", monkeypatch)]
    assert done == ["doctor", "doctor", "index", "verify", "inspect", "recipe", "verify"]
    code = [
        b for b in blocks_of(ROOT / "docs/how-to/debug-a-mismatch.md") if b.language == "python"
    ]
    exec(compile(code[0].text, "debug-a-mismatch.md", "exec"), {})


def test_the_reader_of_the_format_reads_a_golden_cache() -> None:
    code = [b for b in blocks_of(ROOT / "docs/format.md") if b.language == "python"]
    assert "kdcache." not in code[0].text
    names: dict[str, Any] = {}
    exec(compile(code[0].text, "format.md", "exec"), names)
    with np.load(golden.FOLDER / "v1-packed.npz") as expected:
        keys = [key for key in expected.files if key.endswith("-1")]
        assert len(keys) == 8
        for key in keys:
            tar, view, _ = map(int, key.split("-"))
            found = names["read_packed"](golden.FOLDER / "v1-packed", tar, view)
            usable = ~np.isnan(found[:, 0])
            assert usable.tolist() == ([True, False, True, True, True] if tar == 0 else [True] * 3)
            np.testing.assert_allclose(found[usable], expected[key], rtol=1e-5, atol=1e-5)


def test_the_commit_record_of_the_format_is_a_part_of_the_golden_one() -> None:
    [shown] = [b for b in blocks_of(ROOT / "docs/format.md") if b.language == "json"]
    value = json.loads(shown.text)
    real = json.loads((golden.FOLDER / "v1-packed/commits/0-0.json").read_bytes())
    assert real.keys() - value.keys() == {"fidelity"}
    for name, part in value.items():
        whole = real[name]
        assert part == ({k: whole[k] for k in part} if isinstance(part, dict) else whole), name


def test_the_keys_of_json_are_those_that_commands_print(place: Path, kdcache: Run) -> None:
    page = (ROOT / "docs/reference/json.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \| (.*) \|$", page, re.MULTILINE)
    stated = {
        name: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys)))
        for names, keys in rows
        for name in re.findall(r"`([\w ]+)`", names)
    }
    teacher = ["--teacher", TEACHER, "--weights", "teacher.safetensors"]
    made = ["--recipe", "funmatch", "--views", 8, "--cache", "build/cache"]
    train = ["--cache", "build/cache", "--epochs", 1, "--batch-size", 8, "--workers", 0]
    measured = ["--data", "build/train", "--cache", "build/cache"]
    commands: dict[str, list[Any]] = {
        "pack": ["photos/val", "build/other"],
        "index": ["build/tars"],
        "precompute": ["--data", "build/train", *teacher, *made],
        "inspect": ["build/cache"],
        "status": ["build/cache"],
        "verify": ["build/cache", "--data", "build/train"],
        "train": ["--data", "build/train", *train, *STUDENT, "--out", "build/run"],
        "eval": ["build/run", *measured, *STUDENT],
        "compare": ["build/run"],
        "extend": ["build/cache", "--views", 16],
        "recipe check": [],
    }
    assert commands.keys() - {"train"} == stated.keys()
    for name, arguments in commands.items():
        outcome = kdcache(*name.split(), *arguments, "--json")
        assert outcome.code == 0, (name, outcome.stderr)
        if name in stated:
            assert outcome.value.keys() == stated[name], name
