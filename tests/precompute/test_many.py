"""Claims about processes that are started on one cache at once, by mistake or on purpose."""

from collections import Counter
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.precompute.engines import run_inline
from tests import tiny

NUM_VIEWS = 24 * 4


def _work(path: Path, dataset: Dataset, journal: Path, num_workers: int, start: Barrier) -> None:
    """Create or open the cache and fill it; the teacher notes the views of each call."""

    def note(pixels: Any) -> None:
        tiny.append_line(journal, " ".join(str(tiny.pixel_digest(image)) for image in pixels))

    start.wait()
    job = tiny.make_job(path, dataset, tiny.make_recipe())
    run_inline(
        replace(job, teacher=tiny.watched(job.teacher, note), num_workers=num_workers),
    )


@pytest.mark.parametrize(("processes", "num_workers"), [(2, 0), (2, 1), (8, 0)])
def test_processes_started_at_once_make_the_cache_of_one_and_compute_nothing_twice(
    dataset: Dataset, complete: Path, tmp_path: Path, processes: int, num_workers: int
) -> None:
    """With eight there are more processes than spans, and the cache is created by all of them."""
    for turn in range(3):
        path, journal = tmp_path / f"{turn}" / "c", tmp_path / f"journal{turn}"
        start = tiny.FORK.Barrier(processes)
        args = (path, dataset, journal, num_workers, start)
        children = [tiny.start(_work, *args) for _ in range(processes)]
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * processes
        seen = Counter(journal.read_text().split())
        assert len(seen) == NUM_VIEWS, "views were lost"
        assert seen.total() == NUM_VIEWS, "views were computed twice"
        assert tiny.tree(path) == tiny.tree(complete)
        assert [entry.name for entry in path.parent.iterdir()] == ["c"]
        cache = open_cache(path)
        assert cache.missing() == []
        assert cache.valid_seal() == open_cache(complete).valid_seal()
        assert not list(path.rglob("*.partial"))
