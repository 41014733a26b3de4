"""Claims about the golden caches of format version 1: readable for ever, here and elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.audit import check_objects, check_replay
from kdcache.cache.store import open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.document import load_dataset
from tests.cache import golden
from tests.interop import golden_reader

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "locks" / "readers"
READER = [ROOT / "tests" / "interop" / "golden_reader.py"]


def _uv() -> str:
    own = ROOT / ".uv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("uv is not there: run make setup")
    return found


@pytest.mark.parametrize("name", golden.CACHES)
def test_a_golden_cache_is_sound_and_holds_what_it_held(name: str) -> None:
    cache = open_cache(golden.FOLDER / name)
    assert list(check_objects(cache)) == []
    assert cache.totals().unusable == {0: (1,)}
    found = golden.decoded(cache)
    with np.load(golden.FOLDER / f"{name}.npz") as expected:
        assert set(expected.files) == set(found)
        for key in expected.files:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", golden.CACHES)
def test_the_views_of_a_golden_cache_are_made_again_bit_for_bit(name: str) -> None:
    cache = open_cache(golden.FOLDER / name)
    source = dataset_source(load_dataset(golden.DATA), cache.info.recipe)
    assert set(check_replay(cache, source, share=1)) == {None}


def test_zarr_and_the_text_of_the_format_read_the_golden_caches() -> None:
    assert golden_reader.differing() == []


def test_a_golden_cache_that_changed_is_named(tmp_path: Path) -> None:
    """The reader can fail."""
    shutil.copytree(golden.FOLDER / "v1-topk", tmp_path / "v1-topk")
    with np.load(golden.FOLDER / "v1-topk.npz") as expected:
        changed = dict(expected)
    changed["1-2-3"] = changed["1-2-3"] + 0.001
    np.savez(tmp_path / "v1-topk.npz", **changed)  # type: ignore[arg-type]  # of its stubs
    assert golden_reader.differing(tmp_path) == ["v1-topk 1-2-3"]


@pytest.mark.slow
def test_the_oldest_zarr_reads_the_golden_caches(tmp_path: Path) -> None:
    install = [_uv(), "pip", "install", "--quiet", "--require-hashes", "--target", str(tmp_path)]
    lock = ["--python", sys.executable, "-r", str(LOCKS / "zarr-oldest.txt")]
    subprocess.run([*install, *lock], check=True)
    done = subprocess.run(
        [sys.executable, *READER],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "3.1.3"), done.stderr


def _python(version: str) -> str:
    """Return a Python of that version, which may stand on the path, or where pyenv keeps them."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for place in (shutil.which(f"python{version}"), *map(str, kept)):
        if place and subprocess.run([place, "--version"], capture_output=True).returncode == 0:
            return place
    pytest.skip(f"there is no Python {version}")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_newer_pythons_and_zarrs_read_the_golden_caches(tmp_path: Path, version: str) -> None:
    uv, python = _uv(), tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", _python(version), python.parents[1]],
                   check=True)  # fmt: skip
    subprocess.run(
        [uv, "pip", "sync", "--quiet", "--require-hashes", LOCKS / "zarr-newest.txt"],
        env={**os.environ, "VIRTUAL_ENV": str(python.parents[1])}, check=True,
    )  # fmt: skip
    done = subprocess.run([python, *READER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.strip().split("."))) > (3, 1, 6)
