"""The command line in this process, servers, a folder such as pages speak of, and the site."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.cli.conftest import kdcache
from tests.cli.making import write_weights
from tests.docs.blocks import ROOT
from tests.servers.fixtures import s3, swift_server

__all__ = ["kdcache", "s3", "swift_server"]


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


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; its warnings are errors."""
    out = tmp_path_factory.mktemp("site")
    command = re.search(r"\$\(BIN\)/python (-m sphinx .*)", (ROOT / "Makefile").read_text())
    assert command is not None
    words = shlex.split(command[1].replace("build/", f"{out}/"))
    assert {"-W", "-n"} <= set(words)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out / "docs"
