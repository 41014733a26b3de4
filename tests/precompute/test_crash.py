"""Claims about a killed job: nothing committed is lost or done twice, nothing half done is left."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.objects import Folder
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.precompute.engines import run_inline
from tests import tiny

KILLS = 20
PAUSE_S = 0.015  # of each call of the teacher, so that most kills hit a span at work
RECIPE = tiny.make_recipe()


def _work(path: Path, dataset: Dataset, journal: Path, pause_s: float) -> None:
    """Run the job; its teacher notes the views of each call, in one write before its work."""

    def note(pixels: Any) -> None:
        tiny.append_line(journal, " ".join(str(tiny.pixel_digest(image)) for image in pixels))
        time.sleep(pause_s)

    job = tiny.make_job(path, dataset, RECIPE)
    run_inline(replace(job, teacher=tiny.watched(job.teacher, note)))


@pytest.fixture(scope="module")
def views_of(dataset: Dataset) -> dict[Span, set[str]]:
    """The views of each span, by the digest of their pixels."""
    source, found = dataset_source(dataset, RECIPE), {}
    for tar in range(source.num_tars):
        for run in range(2):
            blocks = [
                source.render(tar, rows, views=[2 * run, 2 * run + 1]).pixels_GNHW3
                for rows in source.blocks(tar)
            ]
            images = [image for block in blocks for view in block for image in view]
            found[Span(tar, run)] = {str(tiny.pixel_digest(image)) for image in images}
    assert len(set().union(*found.values())) == 24 * 4, "two views have equal pixels"
    return found


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_repeat_nothing(
    dataset: Dataset, complete: Path, views_of: dict[Span, set[str]], tmp_path: Path
) -> None:
    """Rounds of one cache each: killed at random moments of a whole run's time until it is done."""
    expected, rng = tiny.tree(complete), np.random.default_rng(0)
    started = time.monotonic()
    whole = tiny.start(_work, tmp_path / "whole", dataset, tmp_path / "journal", PAUSE_S)
    whole.join()
    whole_s = time.monotonic() - started
    assert tiny.tree(tmp_path / "whole") == expected
    kills = in_spans = rounds = 0
    while kills < KILLS:
        rounds += 1
        path, sure = tmp_path / f"cache{rounds}", set[Span]()
        while True:
            journal = tmp_path / f"journal{rounds}-{kills}"
            child = tiny.start(_work, path, dataset, journal, PAUSE_S)
            if kills < KILLS:
                child.join(rng.uniform(0, whole_s))
                child.kill()
            child.join()
            seen = Counter(journal.read_text().split()) if journal.exists() else Counter[str]()
            for span in sure:
                assert not views_of[span] & seen.keys(), f"{span} was committed, yet done again"
            if child.exitcode == 0:
                break
            assert child.exitcode == -signal.SIGKILL
            kills += 1
            sure = committed(Folder(path)) if path.exists() else set()
            unsure = [span for span in views_of if span not in sure]
            in_spans += any(views_of[span] & seen.keys() for span in unsure)
        _check_end(path, expected, views_of)
    assert kills == KILLS
    assert in_spans >= KILLS // 4, f"only {in_spans} kills hit a span at work"


def _check_end(path: Path, expected: dict[str, bytes], spans: Any) -> None:
    assert {k: v for k, v in tiny.tree(path).items() if not k.endswith(".partial")} == expected
    assert not list(path.glob("*/c/**/*.partial")), "a killed writer's file was not swept"
    cache = open_cache(path)
    assert committed(cache.folder) == set(spans)
    for span in spans:
        cache.read_tile(span.tar, 2 * span.run)
        cache.read_witness(span.tar, 2 * span.run)


# --- a kill before every change of a file ----------------------------------------------------

CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open")


def _die_before(change: int, root: str) -> None:
    """Kill this process at its change-th change of files below root; counted from 0."""
    count = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not str(args[0]).startswith(root):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if count == change:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(watch)


def _run(path: Path, dataset: Dataset) -> Cache:
    """Run a job of two spans with one array of targets."""
    options: dict[str, Any] = {"encoding": "dense:f2", "num_views": 2, "span_views": 1}
    return tiny.precompute(path, dataset, RECIPE, **options)


def _run_until(change: int, path: Path, dataset: Dataset) -> None:
    _die_before(change, str(path.parent))
    _run(path, dataset)


def _killed_runs(root: Path, dataset: Dataset) -> Iterator[Path]:
    """Yield the cache of a run killed before its first change of a file, its second, to its end."""
    for first in range(0, 1000, 2):  # two at a time
        paths = [root / f"{first + i}" / "c" for i in range(2)]
        children = [tiny.start(_run_until, first + i, p, dataset) for i, p in enumerate(paths)]
        for child in children:
            child.join()
        for child, path in zip(children, paths, strict=True):
            if child.exitcode == 0:
                return
            assert child.exitcode == -signal.SIGKILL
            yield path


@pytest.mark.slow
def test_a_kill_before_any_change_of_a_file_is_mended_by_a_rerun(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = tiny.make_dataset(tmp_path_factory.mktemp("small"), 5)
    whole = _run(tmp_path / "whole", dataset)
    expected, spans = tiny.tree(whole.path), list(whole.grid.spans())
    left: Counter[str] = Counter()
    for path in _killed_runs(tmp_path, dataset):
        done = _check_left(path, left)
        records = {span: (path / span.commit_name).read_bytes() for span in done}
        again = _run(path, dataset)
        found = {k: v for k, v in tiny.tree(path).items() if not k.endswith(".partial")}
        assert found == expected, path
        assert again.missing() == []
        assert not list(path.glob("*/c/**/*.partial"))
        for span, record in records.items():
            assert (path / span.commit_name).read_bytes() == record, "a span was done twice"
    assert left["nothing"] > 5
    assert all(left[f"{done} of {len(spans)} committed"] > 5 for done in range(3)), left
    assert left["objects without record"] > 5


def _check_left(path: Path, left: Counter[str]) -> set[Span]:
    """Check what a killed run left, count its kind, and return the committed spans."""
    if not path.exists():
        left["nothing"] += 1
        return set()
    cache = open_cache(path)
    done = committed(cache.folder)
    for span in done:
        cache.read_tile(span.tar, span.run)
        cache.read_witness(span.tar, span.run)
    left[f"{len(done)} of 2 committed"] += 1
    left["objects without record"] += any(
        (path / "logits" / "c" / "0" / str(span.run)).exists() for span in cache.missing()
    )
    return done
