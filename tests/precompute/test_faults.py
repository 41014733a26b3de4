"""Claims about a job whose machine fails: what is committed stays exact, and a rerun mends all."""

import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed

from kdcache.cache.layout import Span, object_names
from kdcache.cache.manifest import committed
from kdcache.cache.objects import Folder
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import IncompleteError, KdcacheError, UsageError
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import Job, run_span
from tests import tiny
from tests.precompute.faults import (
    Change,
    Disk,
    Killed,
    Tree,
    exit_at,
    fail_at,
    full_from,
    kill_at,
    lay_out,
    watching,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five images in one tar."""
    return tiny.make_dataset(tmp_path_factory.mktemp("small"), 5)


def _job(path: Path, small: Dataset) -> Job:
    """A job of three spans of one view, with one array of targets."""
    recipe = tiny.make_recipe()
    return tiny.make_job(path, small, recipe, encoding="dense:f2", num_views=3, span_views=1)


@pytest.fixture(scope="module")
def whole(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The cache of the uninterrupted run."""
    job = _job(tmp_path_factory.mktemp("whole") / "c", small)
    run_inline(job)
    return job.cache


def _check(path: Path, whole: Cache) -> set[Span]:
    """Check that all that is committed is exact and nothing else seen; return the spans."""
    cache = open_cache(path)
    done = committed(cache.folder)
    assert cache.missing() == [span for span in whole.grid.spans() if span not in done]
    for span in whole.grid.spans():
        for view in whole.grid.views(span):
            if span in done:
                _check_tile(cache, whole, span.tar, view)
                continue
            for read in (cache.read_tile, cache.read_witness):
                with pytest.raises(IncompleteError, match=f"span {span} is not computed"):
                    read(span.tar, view)
    return done


def _check_tile(cache: Cache, whole: Cache, tar: int, view: int) -> None:
    found, expected = cache.read_tile(tar, view), whole.read_tile(tar, view)
    assert found.fields.keys() == expected.fields.keys()
    for name, field in expected.fields.items():
        assert found.fields[name].equal(field)
    assert found.usable.tolist() == expected.usable.tolist()
    witness = cache.read_witness(tar, view).tolist()
    assert witness == whole.read_witness(tar, view).tolist()


def _check_rerun(path: Path, small: Dataset, whole: Cache) -> None:
    """Run the job to its end, and check that its cache is byte for byte the uninterrupted one."""
    records = {record: record.read_bytes() for record in path.glob("commits/*.json")}
    job = _job(path, small)
    seal = run_inline(job)
    assert tiny.tree(path) == tiny.tree(whole.path)
    assert job.cache.valid_seal() == seal == whole.valid_seal()
    for record, data in records.items():
        assert record.read_bytes() == data, f"{record.name} was committed twice"
    # What is left of a record stays: nobody may scan the folder of all records for each of them.
    left = [entry for entry in path.rglob("*.partial") if entry.parent.name != "commits"]
    assert not left, "what a killed writer left was not swept"


# --- a job that ends before any change of a file ---------------------------------------------


@pytest.fixture(scope="module")
def begun(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a cache of which one span is committed."""
    job = _job(tmp_path_factory.mktemp("begun") / "c", small)
    run_span(job, Span(0, 0))
    return job.cache.path


@pytest.mark.slow
def test_a_job_interrupted_before_any_change_of_a_file_loses_no_span_and_shows_no_half_of_one(
    small: Dataset, whole: Cache, begun: Path, tmp_path: Path
) -> None:
    left = Counter[int]()
    for number in count():
        path = Path(shutil.copytree(begun, tmp_path / f"{number}"))
        told = {Span(0, 0)}
        try:
            with watching(path, kill_at(number)):
                job = _job(path, small)
                run_inline(job, committed=lambda c, told=told: told.add(Span(c.tar, c.run)))
            break
        except Killed:
            pass
        done = _check(path, whole)
        assert told <= done
        left[len(done)] += 1
        _check_rerun(path, small, whole)
    assert left.total() > 60
    assert set(left) == {1, 2, 3}
    assert left[1] > 20
    assert left[2] > 20


def _exit_at(number: int, path: Path, small: Dataset) -> None:
    with watching(path.parent, exit_at(number)):
        run_inline(_job(path, small))


@pytest.mark.slow
def test_a_process_that_ends_at_once_loses_no_span_and_shows_no_half_of_one(
    small: Dataset, whole: Cache, tmp_path: Path
) -> None:
    """From before the cache is there to its seal, at every third change of a file."""
    left = Counter[int | None]()
    for number in count(step=3):
        path = tmp_path / f"{number}" / "c"
        path.parent.mkdir()
        child = tiny.start(_exit_at, number, path, small)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
        left[len(_check(path, whole)) if path.exists() else None] += 1
        _check_rerun(path, small, whole)
    assert set(left) == {None, 0, 1, 2, 3}
    assert left.total() > 25


# --- a full disk -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_full_at_any_write_stops_the_job_with_a_message_and_a_rerun_completes(
    small: Dataset, whole: Cache, tmp_path: Path
) -> None:
    """At each start and middle of a file, sync, new name and new folder, creation included."""
    left = Counter[int | None]()
    for number in count():
        path, told = tmp_path / f"{number}" / "c", set[Span]()
        path.parent.mkdir()
        try:
            with watching(path.parent, full_from(number)):
                job = _job(path, small)
                run_inline(job, committed=lambda c, told=told: told.add(Span(c.tar, c.run)))
            break
        except UsageError as error:
            message = str(error)
        assert message.startswith(f"{path}: cannot "), message
        assert "No space left on device" in message
        assert not list(path.parent.rglob("*.partial"))
        if path.exists():
            done = _check(path, whole)
            assert told <= done
            left[len(done)] += 1
        else:
            assert not list(path.parent.iterdir()), "half a cache was left"
            left[None] += 1
        _check_rerun(path, small, whole)
    assert set(left) == {None, 0, 1, 2, 3}
    assert min(left.values()) > 5
    assert left.total() > 120


def test_a_disk_too_full_to_set_a_span_aside_says_why_the_span_failed(tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 5)
    sorted(images.rglob("*.*"))[1].write_bytes(b"no image")
    job = _job(tmp_path / "c", tiny.pack_images(images, tmp_path / "data"))
    with watching(tmp_path / "c", full_from(0)), pytest.raises(UsageError) as caught:
        run_inline(job)
    assert "cannot write why span 0-0 is not computed (" in str(caught.value)
    assert re.search(r"key class.*\): No space left on device; committed", str(caught.value))
    assert committed(job.cache.folder) == set()


# --- an error of the disk --------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_of_the_disk_at_any_change_of_a_file_is_told_or_does_not_matter(
    small: Dataset, whole: Cache, tmp_path: Path
) -> None:
    """Once, at each start and middle of a file, sync, new name and deletion."""
    stopped = 0
    for number in count():
        path, told, message = tmp_path / f"{number}" / "c", set[Span](), ""
        path.parent.mkdir()
        with watching(path.parent, fail_at(number)) as done:
            try:
                job = _job(path, small)
                run_inline(job, committed=lambda c, told=told: told.add(Span(c.tar, c.run)))
            except UsageError as error:
                message = str(error)
        if not message and len(done) <= number:
            break
        assert not message or "No such device or address" in message
        stopped += bool(message)
        if path.exists():
            assert told <= _check(path, whole)
        _check_rerun(path, small, whole)
    assert stopped > 150


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of errors that the store gives before it writes objects again."""
    left: list[int] = []
    write = Folder.write

    def fail_first(folder: Folder, objects: Mapping[str, bytes]) -> None:
        if left:
            number = left.pop()
            raise OSError(number, os.strerror(number))
        write(folder, objects)

    monkeypatch.setattr(Folder, "write", fail_first)
    monkeypatch.setattr("kdcache.precompute.span.wait_exponential", lambda **_: wait_fixed(0.01))
    return left


def test_a_store_that_does_not_answer_is_asked_again(
    small: Dataset, whole: Cache, tmp_path: Path, refusals: list[int]
) -> None:
    job = _job(tmp_path / "c", small)
    refusals += [errno.ESTALE, errno.EIO, errno.ETIMEDOUT] * 4
    run_inline(job)
    assert not refusals
    assert len(_check(tmp_path / "c", whole)) == 3


def test_a_store_that_never_answers_ends_the_job(
    small: Dataset, whole: Cache, tmp_path: Path, refusals: list[int], monkeypatch: Any
) -> None:
    job = _job(tmp_path / "c", small)
    monkeypatch.setattr("kdcache.precompute.span.RETRY_S", 0.2)
    refusals += [errno.EIO] * 1000
    with pytest.raises(UsageError, match=r"cannot write span 0-0: Input/output error; committed"):
        run_inline(job)
    assert 900 < len(refusals) < 998
    refusals.clear()
    _check_rerun(tmp_path / "c", small, whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_store_that_refuses_is_not_asked_again(
    small: Dataset, tmp_path: Path, refusals: list[int], number: int
) -> None:
    job = _job(tmp_path / "c", small)
    refusals += [number] * 3
    with pytest.raises(UsageError, match="cannot write span 0-0"):
        run_inline(job)
    assert len(refusals) == 2


# --- a power cut -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changes(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Change]:
    """All changes of files of a whole job, and marks of what its caller was told, by file."""
    root = tmp_path_factory.mktemp("watched")
    with watching(root) as found:
        job = _job(root / "c", small)
        found.append(Change("mark", "c/zarr.json"))

        def tell(span: Span) -> None:
            for name in (span.commit_name, *object_names(span, job.cache.info.specs).values()):
                found.append(Change("mark", f"c/{name}"))

        run_inline(job, committed=lambda commit: tell(Span(commit.tar, commit.run)))
        found.append(Change("mark", "c/seal.json"))
    return found


def test_no_change_of_a_file_escapes_the_watch(changes: list[Change], whole: Cache) -> None:
    disk = Disk()
    for change in changes:
        if change.kind != "mark":
            disk.apply(change)
    seen = {name: data for name, data in disk.seen().items() if data is not None}
    expected = {f"c/{name}": data for name, data in tiny.tree(whole.path).items()}
    records = {f"c/{span.commit_name}" for span in whole.grid.spans()} | {"c/seal.json"}
    assert seen.keys() == expected.keys() | records
    assert {name: seen[name] for name in expected} == expected


def _power_cuts(changes: Iterable[Change]) -> Iterator[Tree]:
    """Yield what may be left of the cache by a power cut after any change, each tree once."""
    disk, told, known = Disk(), set[str](), set[frozenset[tuple[str, bytes | None]]]()
    for change in changes:
        if change.kind == "mark":
            told.add(change.path)
        else:
            disk.apply(change)
        for tree in disk.survivors():
            assert told <= tree.keys(), f"lost after {change}: {told - tree.keys()}"
            of_cache = {n: data for n, data in tree.items() if f"{n}/".startswith("c/")}
            key = frozenset(of_cache.items())
            if key not in known:
                known.add(key)
                yield of_cache


@pytest.mark.slow
def test_a_power_cut_after_any_change_of_a_file_loses_nothing_that_the_job_told(
    changes: list[Change], small: Dataset, whole: Cache, tmp_path: Path
) -> None:
    left = Counter[int | None]()
    for number, tree in enumerate(_power_cuts(changes)):
        path = tmp_path / f"{number}" / "c"
        lay_out(tree, path.parent)
        left[len(_check(path, whole)) if path.exists() else None] += 1
        _check_rerun(path, small, whole)
    assert set(left) == {None, 0, 1, 2, 3}
    assert left.total() > 90


def _check_cuts(changes: list[Change], whole: Cache, root: Path) -> None:
    """Check what power cuts leave, as far as it does not need the job."""
    for number, tree in enumerate(_power_cuts(changes)):
        lay_out(tree, root / f"{number}")
        if tree:
            _check(root / f"{number}" / "c", whole)


FOUND = r"lost after|damaged|missing|committed; run|no cache"
FORGOTTEN: dict[
    str, Callable[[str, str], bool]
] = {  # what a sync is of, and of what the one before it was
    "files": lambda path, _: path.endswith(".partial"),
    "folders": lambda path, _: not path.endswith(".partial"),
    "objects": lambda path, _: path.startswith("c/logits/c/0/") and path.endswith(".partial"),
    "records": lambda path, _: path.startswith("c/commits/."),
    "names of objects": lambda path, _: bool(re.fullmatch(r"c/logits/c/0/\d/0", path)),
    "names of records": lambda path, _: path == "c/commits",
    "name of the records' folder": lambda path, last: (path, last) == ("c", "c/commits"),
    "name of the cache": lambda path, _: path == "",
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_sync_that_is_forgotten_would_be_found(
    changes: list[Change], whole: Cache, tmp_path: Path, what: str
) -> None:
    kept, last = [], ""
    for change in changes:
        if change.kind != "fsync" or not FORGOTTEN[what](change.path, last):
            kept.append(change)
        last = change.path
    assert len(kept) < len(changes)
    with pytest.raises((AssertionError, KdcacheError), match=FOUND):
        _check_cuts(kept, whole, tmp_path)
