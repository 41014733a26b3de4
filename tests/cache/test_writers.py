"""Claims about heartbeat files: who works is seen, who died is told, and no job depends on them."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache import writers
from kdcache.cache.audit import check_objects
from kdcache.cache.layout import Span
from kdcache.cache.merge import prepare_merge, prepare_slice, run_copying
from kdcache.cache.objects import Folder
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.writers import Heartbeat, Writer, read_writers
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.precompute.engines import run_inline
from tests import tiny
from tests.cache.filling import full
from tests.cache.keeping import files

BODY: dict[str, Any] = {
    "host": "node7",
    "pid": 12,
    "device": "cuda:0",
    "started": "2026-01-02T03:04:05+00:00",
    "updated": "2026-01-02T03:05:05+00:00",
    "spans_done": 3,
    "spans_todo": 9,
    "views_done": 640,
    "views_per_s": 10.5,
    "span": "4-1",
}


def _heartbeat(path: Path) -> Heartbeat:
    return Heartbeat(Folder(path), device="cpu", span_views=2)


def _only(path: Path) -> Writer:
    found, notes = read_writers(Folder(path))
    assert notes == []
    (writer,) = found
    return writer


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.01)


def _leave(path: Path, name: str, *, age_s: float = 0, data: bytes | None = None) -> Path:
    """Write what another writer left so long ago."""
    file = path / "writers" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(json.dumps(BODY).encode() if data is None else data)
    os.utime(file, (time.time() - age_s,) * 2)
    return file


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat often."""
    monkeypatch.setattr(writers, "BEAT_S", 0.02)


@pytest.mark.usefixtures("quick")
def test_a_writer_says_what_it_does_and_leaves_nothing(
    tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    commit = open_cache(complete).commit(Span(0, 1))
    with _heartbeat(tmp_path) as beat:
        started = _only(tmp_path)
        assert (started.pid, started.device, started.span) == (os.getpid(), "cpu", None)
        assert started.name.startswith(f"{started.host}-{started.pid}-")
        beat.expect(6)
        beat.begin(Span(0, 1))
        beat.begin(Span(2, 0))
        beat.advance(10)
        _until(lambda: _only(tmp_path).views_per_s > 0)
        assert _only(tmp_path).span == Span(0, 1)
        beat.end(Span(0, 1), commit)
        _until(lambda: _only(tmp_path).spans_done == 1)
        seen = _only(tmp_path)
        assert (seen.spans_todo, seen.views_done, seen.span) == (6, 20, Span(2, 0))
        assert seen.is_alive
        beat.end(Span(2, 0))
        _until(lambda: _only(tmp_path).span is None)
    assert list(tmp_path.iterdir()) == []


def test_the_rate_is_that_of_the_last_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(writers.time, "monotonic", lambda: now)
    beat, rates = _heartbeat(tmp_path), []
    for images in [5] * 20 + [0] * 20:  # 10 views in 5 seconds, then none
        now += 5
        beat.advance(images)
        beat._beat()
        rates.append(_only(tmp_path).views_per_s)
    assert rates[:20] == [2.0] * 20
    assert sorted(rates[20:], reverse=True) == rates[20:]
    assert (rates[25], rates[-1]) == (1.0, 0.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_job_is_seen_while_its_teacher_takes_long_and_its_end_leaves_nothing(
    dataset: Dataset, tmp_path: Path, error: type[BaseException] | None
) -> None:
    seen: list[Writer] = []

    def take_long(_: object) -> None:
        if len(seen) < 2:
            before = (tmp_path / "c/writers" / f"{_only(tmp_path / 'c').name}.json").stat()
            seen.append(_only(tmp_path / "c"))
            file = tmp_path / "c/writers" / f"{seen[0].name}.json"
            _until(lambda: file.stat().st_mtime_ns > before.st_mtime_ns)
        elif error is not None:
            raise error

    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    job = replace(job, teacher=tiny.watched(job.teacher, take_long))
    if error is None:
        run_inline(job)
    else:
        with pytest.raises((KeyboardInterrupt, UsageError)):
            run_inline(job)
    assert (seen[-1].spans_todo, seen[-1].span) == (6, Span(0, 0))
    assert not (tmp_path / "c/writers").exists()


def _beat_for_ever(path: Path) -> None:
    with _heartbeat(path):
        time.sleep(600)


def test_a_killed_writer_is_silent_until_the_next_one_sweeps(tmp_path: Path) -> None:
    child = tiny.start(_beat_for_ever, tmp_path)
    _until(lambda: read_writers(Folder(tmp_path))[0])
    living = _only(tmp_path)
    file = tmp_path / "writers" / f"{living.name}.json"
    assert (living.pid, living.is_alive) == (child.pid, True)
    os.utime(file, (time.time() - 30,) * 2)
    assert _only(tmp_path).is_alive, "it lives, and was slow"
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    dead = _only(tmp_path)
    assert not dead.is_alive
    assert 29 < dead.silent_s < 40
    with _heartbeat(tmp_path):
        assert _only(tmp_path).pid == os.getpid()
    assert not file.exists()


def test_a_writer_of_another_machine_is_silent_after_a_minute(tmp_path: Path) -> None:
    _leave(tmp_path, "node7-12-0a0b.json", age_s=50)
    writer = _only(tmp_path)
    assert (writer.is_alive, writer.span, writer.views_done) == (True, Span(4, 1), 640)
    _leave(tmp_path, "node7-12-0a0b.json", age_s=70)
    assert not _only(tmp_path).is_alive


def test_a_writer_sweeps_what_is_a_day_old_and_what_died_here(tmp_path: Path) -> None:
    here, this = writers._here(), os.getpid()
    child = tiny.start(time.sleep, 0)
    child.join()
    old = ["node7-1-0000.json", ".node7-1-0001.json.1.partial", "anything"]
    here_dead = [f"{here}-{child.pid}-0002.json", f".{here}-{child.pid}-0003.json.9.partial"]
    earlier = [f"{here}-{this}-0004.json"]  # of a job before, in this process
    kept = ["node7-1-0005.json", f"{here}-{os.getppid()}-0006.json", "else"]
    for name in old:
        _leave(tmp_path, name, age_s=90_000)
    for name in here_dead + earlier:
        _leave(tmp_path, name, data=b"")
    for name in kept:
        _leave(tmp_path, name, age_s=80_000)
    with _heartbeat(tmp_path):
        left = {entry.name for entry in (tmp_path / "writers").iterdir()}
        assert left.isdisjoint({*old, *here_dead, *earlier})
        assert left.issuperset(kept)
    assert {entry.name for entry in (tmp_path / "writers").iterdir()} == set(kept)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**BODY, "device": "\x1b[2J"}).encode(),
        json.dumps({**BODY, "host": "h" * 300}).encode(),
        json.dumps({**BODY, "views_per_s": float("nan")}).encode(),
        json.dumps({**BODY, "views_per_s": "fast"}).encode(),
        json.dumps({**BODY, "spans_done": -1}).encode(),
        json.dumps({**BODY, "spans_done": True}).encode(),
        json.dumps({**BODY, "started": "2026-01-02T03:04:05"}).encode(),
        json.dumps({**BODY, "span": "one"}).encode(),
        json.dumps({k: v for k, v in BODY.items() if k != "pid"}).encode(),
    ],
)
def test_a_damaged_file_is_noted_and_the_others_are_read(tmp_path: Path, data: bytes) -> None:
    _leave(tmp_path, "node7-12-0a0b.json")
    damaged = _leave(tmp_path, "node8-12-0a0b.json", data=data)
    _leave(tmp_path, ".node9-12-0a0b.json.12.partial", data=b"{")  # is being written
    found, notes = read_writers(Folder(tmp_path))
    assert [writer.name for writer in found] == ["node7-12-0a0b"]
    assert notes == [f"{damaged}: damaged; may be deleted"]


def test_a_folder_in_a_files_place_is_noted(tmp_path: Path) -> None:
    (tmp_path / "writers/node8-12-0a0b.json").mkdir(parents=True)
    found, notes = read_writers(Folder(tmp_path))
    assert (found, len(notes)) == ([], 1)
    with _heartbeat(tmp_path):
        assert _only_of(tmp_path, os.getpid()).is_alive


def _only_of(path: Path, pid: int) -> Writer:
    (writer,) = [writer for writer in read_writers(Folder(path))[0] if writer.pid == pid]
    return writer


@pytest.mark.parametrize("off_s", [-3600, -20, 20, 3600])
def test_a_clock_that_differs_from_the_file_systems_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    _leave(tmp_path, "node7-12-0a0b.json", age_s=1)
    _leave(tmp_path, "node8-12-0a0b.json", age_s=300)
    right = time.time
    monkeypatch.setattr(writers.time, "time", lambda: right() + off_s)
    found, _ = read_writers(Folder(tmp_path))
    assert [writer.is_alive for writer in found] == [True, False]
    assert found[1].silent_s == pytest.approx(300, abs=20)
    assert len(list((tmp_path / "writers").iterdir())) == 2, "the clock was asked, a file left"


def test_a_heartbeat_that_cannot_be_written_stops_no_job(
    dataset: Dataset, tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers, "BEAT_S", 0.001)
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    (tmp_path / "c/writers").write_bytes(b"in the way")
    run_inline(job)
    (tmp_path / "c/writers").unlink()
    assert tiny.tree(tmp_path / "c") == tiny.tree(complete)
    for name in ("note", "drop", "modified"):
        monkeypatch.setattr(Folder, name, fail)
    with _heartbeat(tmp_path):
        time.sleep(0.02)


def test_a_cache_that_is_deleted_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with _heartbeat(tmp_path / "c") as beat:
        shutil.rmtree(tmp_path / "c")
        beat._beat()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_writer_whose_file_was_deleted_writes_it_again(tmp_path: Path) -> None:
    with _heartbeat(tmp_path):
        shutil.rmtree(tmp_path / "writers", ignore_errors=True)
        _until(lambda: read_writers(Folder(tmp_path))[0])


# --- the cache's content ---------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> Cache:
    """A sealed cache in which somebody left two files."""
    cache = full(tmp_path / "c").cache
    seal(cache)
    _leave(cache.path, "node7-12-0a0b.json")
    _leave(cache.path, ".node8-12-0a0b.json.12.partial", data=b"{")
    return cache


def test_what_writers_left_is_no_part_of_the_cache(watched: Cache, tmp_path: Path) -> None:
    assert list(check_objects(watched)) == []
    assert seal(watched) == watched.valid_seal()
    run_copying(prepare_merge(tmp_path / "merged", [watched.path]))
    run_copying(prepare_slice(watched.path, tmp_path / "cut", num_views=4))
    shutil.rmtree(watched.path / "writers")
    assert files(tmp_path / "merged") == files(tmp_path / "cut") == files(watched.path)
