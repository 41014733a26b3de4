"""Pages run as they stand: own-data, recipes, choose-an-encoding, keep-a-cache, debug-a-mismatch,
plan, and the README's Looking after caches; and the reader of format.md.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from kdcache.cache.store import open_cache
from kdcache.recipe.schema import load_recipe
from tests.cache import golden
from tests.cli.conftest import Outcome, Run
from tests.cli.making import TEACHER
from tests.docs.blocks import find_blocks, lines_of
from tests.docs.running import exchanged, precompute, run_here
from tests.student import nets

pytestmark = pytest.mark.slow

STUDENT = ["--student", "tests.student.nets:small"]  # code is imported only when it is named
MORE = {"eval": STUDENT, "export": STUDENT, "plan": ["--probe-s", "0.2"]}


def _run_page(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch, **exchange: str
) -> list[tuple[str, Outcome]]:
    """Run a page's commands; return each one's name and outcome."""
    lines = exchanged(lines_of(f"docs/how-to/{name}.md"), exchange)
    given = [line.replace("torchvision:resnet50", TEACHER) for line in lines]
    return run_here(run, given, more=MORE, monkeypatch=monkeypatch)


def test_own_data_runs(place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    precompute(kdcache, "build/teaching")
    train = ["train", "--data", "build/train", "--cache", "build/teaching", *STUDENT]
    size = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--out", "build/run"]
    assert kdcache(*train, *size).code == 0
    for made in ("train", "val"):
        shutil.rmtree(place / "build" / made)  # the page makes it
    save_file(nets.small(7).state_dict(), "pretrained.safetensors")
    tuned, short = STUDENT[1], "--epochs 1 --workers 0 --batch-size 8"
    exchange = {
        "--student torchvision:resnet50": f"--student {tuned}",
        "check torchvision:resnet50": f"check {tuned}",
        "torchvision:resnet50 --weights build/teacher": f"{tuned} --weights build/teacher",
        "--epochs 20 --batch-size 32": short,
    }
    done = [name for name, _ in _run_page(kdcache, "own-data", monkeypatch, **exchange)]
    teaching = ["train", "teacher", "precompute"]
    assert done == [
        *("init", *["pack"] * 3, "index", *teaching, *["precompute"] * 2, "eval", "export"),
    ]
    assert not open_cache(place / "build/tuned-cache").missing()
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
    precompute(kdcache, "build/cache")
    precompute(kdcache, "node1/cache", views=64)
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
    precompute(kdcache, "build/cache")
    done = [name for name, _ in _run_page(kdcache, "debug-a-mismatch", monkeypatch)]
    assert done == ["doctor", "doctor", "index", "verify", "inspect", "recipe", "verify"]
    [code] = find_blocks("docs/how-to/debug-a-mismatch.md", "python")
    exec(compile(code.text, code.page, "exec"), {})


def test_plan_runs(place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = find_blocks("docs/how-to/plan.md", "console")[0].text.splitlines()
    [(_, outcome)] = _run_page(kdcache, "plan", monkeypatch, **{"classes 1000": "classes 5"})
    names = [line.split()[0] for line in outcome.stdout.splitlines()[1:]]
    assert names == [line.split()[0] for line in shown[2:]]
    assert "104 of each of 12 images, in spans of 8; 300 epochs use each 2.88" in outcome.stdout
    assert (place / "plan.png").is_file()


def test_looking_after_caches_runs(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    precompute(kdcache, "build/cache")
    *before, extend, doctor, show = lines_of("README.md", heading="Looking after caches")
    run_here(kdcache, [*before, extend], monkeypatch=monkeypatch)
    precompute(kdcache, "build/cache", views=64)
    [(_, judged), (_, shown)] = run_here(kdcache, [doctor, show], monkeypatch=monkeypatch)
    assert "caches made elsewhere replay bit for bit here" in judged.stdout
    assert "views, of which 0 differ" in shown.stdout


def test_the_reader_of_the_format_reads_a_golden_cache() -> None:
    [code] = find_blocks("docs/format.md", "python")
    assert "kdcache." not in code.text
    names: dict[str, Any] = {}
    exec(compile(code.text, code.page, "exec"), names)
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
    [shown] = find_blocks("docs/format.md", "json")
    value = json.loads(shown.text)
    real = json.loads((golden.FOLDER / "v1-packed/commits/0-0.json").read_bytes())
    assert real.keys() - value.keys() == {"fidelity"}
    for name, part in value.items():
        whole = real[name]
        assert part == ({k: whole[k] for k in part} if isinstance(part, dict) else whole), name
