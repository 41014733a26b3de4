"""Fixtures that several folders share; tests must leave them as they are."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from kdcache.cache.store import Cache
    from kdcache.data.dataset import Dataset
    from tests.report.browser import Browser

# Before torch is imported: networks this small lose by more threads, and tests share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# CI tries the same examples each time; at a desk, others are looked for. No example is timed: the
# cores may be busy.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("desk", deadline=None)
settings.load_profile("desk")
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> "Dataset":
    """24 images in three tars of 10, 10 and 4."""
    from tests import tiny  # imports torch

    return tiny.make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory, dataset: "Dataset") -> Path:
    """The path of a complete cache of the dataset: 4 views in spans of 2, topk:3 of 5 classes."""
    from tests import tiny

    path = tmp_path_factory.mktemp("complete") / "cache"
    return tiny.precompute(path, dataset, tiny.make_recipe()).path


@pytest.fixture
def cache(tmp_path: Path, complete: Path) -> "Cache":
    """A copy of the complete cache, to be damaged at will."""
    from kdcache.cache.store import open_cache

    shutil.copytree(complete, tmp_path / "copy")
    return open_cache(tmp_path / "copy")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """A real browser; tests are skipped where none is installed."""
    from tests.report.browser import find_browser, run_browser

    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    with run_browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running
