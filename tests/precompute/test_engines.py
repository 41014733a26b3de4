"""Claims about the inline engine: each span once, shared among processes, nothing on a bad disk."""

import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.objects import Folder
from kdcache.cache.sealing import seal
from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import KdcacheError
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import Job, run_span
from tests import tiny

NUM_VIEWS = 24 * 4


def _journalled(job: Job, path: Path, pause_s: float = 0.0) -> Job:
    """Return the job with a teacher that notes each call's views in a file."""

    def note(pixels: Any) -> None:
        tiny.append_line(path, " ".join(str(tiny.pixel_digest(image)) for image in pixels))
        time.sleep(pause_s)

    return replace(job, teacher=tiny.watched(job.teacher, note))


def _seen(path: Path) -> Counter[str]:
    """Return how often each view was given to the teacher."""
    return Counter(path.read_text().split()) if path.exists() else Counter()


def _work(path: Path, dataset: Dataset, journal: Path, pause_s: float) -> None:
    run_inline(_journalled(tiny.make_job(path, dataset, tiny.make_recipe()), journal, pause_s))


@pytest.fixture(scope="module")
def expected(complete: Path) -> dict[str, bytes]:
    """The files of the uninterrupted run of one process."""
    return tiny.tree(complete)


def test_a_finished_job_has_nothing_to_do(
    dataset: Dataset, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for turn in range(2):
        _work(tmp_path / "c", dataset, tmp_path / "journal", 0)
        seen = _seen(tmp_path / "journal")
        assert (len(seen), seen.total()) == (NUM_VIEWS, NUM_VIEWS), turn
        assert tiny.tree(tmp_path / "c") == expected


def test_a_job_computes_what_is_missing_and_no_more(
    dataset: Dataset, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    _work(tmp_path / "c", dataset, tmp_path / "first", 0)
    (tmp_path / "c" / Span(1, 0).commit_name).unlink()
    _work(tmp_path / "c", dataset, tmp_path / "second", 0)
    source = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe()).source
    views = [source.render(1, rows, views=[0, 1]).pixels_GNHW3 for rows in source.blocks(1)]
    of_span = {str(tiny.pixel_digest(p)) for block in views for view in block for p in view}
    assert _seen(tmp_path / "second").keys() == of_span
    assert tiny.tree(tmp_path / "c") == expected


def test_processes_that_start_together_share_the_spans(
    dataset: Dataset, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    journals = [tmp_path / name for name in ("a", "b", "c")]
    children = [tiny.start(_work, tmp_path / "cache", dataset, j, 0.01) for j in journals]
    for child in children:
        child.join()
        assert child.exitcode == 0
    by_process = [_seen(journal) for journal in journals]
    together = sum(by_process, Counter())
    assert (len(together), together.total()) == (NUM_VIEWS, NUM_VIEWS)
    assert sum(bool(seen) for seen in by_process) > 1, "one process did all the work"
    assert tiny.tree(tmp_path / "cache") == expected
    assert open_cache(tmp_path / "cache").totals() == seal(open_cache(tmp_path / "cache"))


def _compute_when_told(path: Path, dataset: Dataset, span: Span, wire: Connection) -> None:
    job = tiny.make_job(path, dataset, tiny.make_recipe())
    with job.cache.folder.lock(2 * span.tar + span.run, wait=True) as held:
        wire.send(held)
        wire.recv()
        run_span(job, span)


@pytest.mark.parametrize("dies", [False, True])
def test_a_span_of_another_process_is_waited_for(
    dataset: Dataset, tmp_path: Path, expected: dict[str, bytes], dies: bool
) -> None:
    path, span = tmp_path / "c", Span(0, 1)
    tiny.make_job(path, dataset, tiny.make_recipe())
    ours, theirs = tiny.FORK.Pipe()
    holder = tiny.start(_compute_when_told, path, dataset, span, theirs)
    assert ours.recv() is True
    waiter = tiny.start(_work, path, dataset, tmp_path / "journal", 0.0)
    others = set(open_cache(path).grid.spans()) - {span}
    _until(lambda: committed(Folder(path)) == others)
    time.sleep(0.2)
    assert waiter.is_alive(), "the waiter went on without the span"
    assert committed(Folder(path)) == others, "the waiter computed a span that is held"
    if dies:
        holder.kill()
    else:
        ours.send("go")
    for child in (holder, waiter):
        child.join()
    assert waiter.exitcode == 0
    views_of_span = 2 * 10
    assert _seen(tmp_path / "journal").total() == NUM_VIEWS - (0 if dies else views_of_span)
    assert tiny.tree(path) == expected


def _until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.01)


# --- bad disks -----------------------------------------------------------------------------


def _attempt(limit: Callable[[], None], path: Path, dataset: Dataset, result: Connection) -> None:
    """Run the job under a limit of this process, and send the class and text of what it raises."""
    limit()
    try:
        run_inline(tiny.make_job(path, dataset, tiny.make_recipe()))
        result.send(("done", ""))
    except KdcacheError as error:
        result.send((type(error).__name__, str(error)))
    except BaseException as error:
        result.send((f"raw {type(error).__name__}", str(error)))


def _run_under(limit: Callable[[], None], path: Path, dataset: Dataset) -> tuple[str, str]:
    ours, theirs = tiny.FORK.Pipe(duplex=False)
    child = tiny.start(_attempt, limit, path, dataset, theirs)
    result: tuple[str, str] = ours.recv()
    child.join()
    return result


def _no_more_than(size_bytes: int) -> Callable[[], None]:
    """Let this process write no file beyond a size: as a full disk, in the middle of a write."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def test_a_full_disk_commits_nothing_and_a_rerun_completes(
    dataset: Dataset, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Objects here have 130 to 700 bytes, commit records 1,700, the consolidated root 8,000."""
    committed_at = []
    for size_bytes in (0, 200, 600, 2500):
        path = tmp_path / str(size_bytes)
        tiny.make_job(path, dataset, tiny.make_recipe())
        name, message = _run_under(_no_more_than(size_bytes), path, dataset)
        assert name == "UsageError", (size_bytes, name, message)
        assert "File too large; committed spans are safe; free space" in message
        committed_at.append(len(committed(Folder(path))))
        cache = open_cache(path)
        for span in committed(Folder(path)):
            cache.read_tile(span.tar, span.run * 2)
        assert not list(path.glob("*/c/**/*.partial"))
        tiny.precompute(path, dataset, tiny.make_recipe())
        assert tiny.tree(path) == expected, size_bytes
    assert committed_at[0] == 0
    assert committed_at[-1] == 6, "the last limit should stop only the seal"


def test_a_disk_that_is_full_from_the_start_creates_nothing(
    dataset: Dataset, tmp_path: Path
) -> None:
    name, message = _run_under(_no_more_than(100), tmp_path / "c", dataset)
    assert (name, list(tmp_path.iterdir())) == ("UsageError", [])
    assert "cannot create the cache: File too large" in message


def test_a_read_only_folder_is_refused_and_a_rerun_completes(
    dataset: Dataset, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    path = tmp_path / "c"
    os.chmod(tmp_path, 0o555)
    try:
        name, message = _run_under(tiny.without_root_rights, path, dataset)
        assert (name, "Permission denied" in message) == ("UsageError", True), message
    finally:
        os.chmod(tmp_path, 0o755)
    tiny.precompute_first(path, dataset, tiny.make_recipe(), spans=2)
    below = [path, *(p for p in path.rglob("*") if p.is_dir())]
    for folder in below:
        os.chmod(folder, 0o555)
    try:
        name, message = _run_under(tiny.without_root_rights, path, dataset)
        assert (name, "Permission denied" in message) == ("UsageError", True), message
        assert "run the same command again" in message
    finally:
        for folder in below:
            os.chmod(folder, 0o755)
    assert len(committed(Folder(path))) == 2
    tiny.precompute(path, dataset, tiny.make_recipe())
    assert tiny.tree(path) == expected


def _read_everything(path: Path, result: Connection) -> None:
    tiny.without_root_rights()
    cache = open_cache(path)
    tiles = [cache.read_tile(tar, view) for tar in range(3) for view in range(4)]
    result.send(sum(int(tile.usable.sum()) for tile in tiles))


def test_a_read_only_cache_is_read(complete: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(complete, tmp_path / "c"))
    below = [path, *path.rglob("*")]
    for entry in below:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        ours, theirs = tiny.FORK.Pipe(duplex=False)
        child = tiny.start(_read_everything, path, theirs)
        assert ours.recv() == NUM_VIEWS
        child.join()
    finally:
        for entry in below:
            entry.chmod(0o755)
