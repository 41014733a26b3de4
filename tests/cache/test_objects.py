"""Claims about a folder of objects: whole or not at all, made once, locked by one process."""

import errno
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.objects import Folder
from kdcache.errors import CorruptError
from tests import tiny


def test_a_published_object_is_never_replaced(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.publish("a/b.json", b"first")
    assert not folder.publish("a/b.json", b"second")
    assert folder.read("a/b.json") == b"first"
    assert folder.names("a") == ["b.json"]


def test_an_object_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for text in (b"first", b"second"):
        assert folder.publish("seal.json", text, replace=True)
    assert folder.read("seal.json") == b"second"
    assert folder.names(".") == ["seal.json"]


def _publish_all(path: Path, mine: bytes, gate: Any, wins: Connection) -> None:
    gate.wait()
    folder = Folder(path)
    wins.send([name for name in range(40) if folder.publish(f"c/{name}", mine * 1000)])


def test_of_racing_publishers_exactly_one_wins_each_object(tmp_path: Path) -> None:
    gate = tiny.FORK.Barrier(3)
    children, pipes = [], []
    for mine in (b"a", b"b", b"c"):
        ours, theirs = tiny.FORK.Pipe(duplex=False)
        children.append(tiny.start(_publish_all, tmp_path, mine, gate, theirs))
        pipes.append(ours)
    wins = {mine: pipe.recv() for mine, pipe in zip(b"abc", pipes, strict=True)}
    for child in children:
        child.join()
    assert sorted(name for names in wins.values() for name in names) == list(range(40))
    for mine, names in wins.items():
        assert all(Folder(tmp_path).read(f"c/{name}") == bytes([mine]) * 1000 for name in names)
    assert len(Folder(tmp_path).names("c")) == 40


def test_a_failed_publish_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Folder(tmp_path).publish("c/x", b"data")
    assert Folder(tmp_path).names("c") == []


def test_writing_replaces_what_is_there_and_sweeps_what_a_killed_writer_left(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path)
    for name in ("a/c/0/0/0", "a/c/0/0/.0.123.partial", "a/c/0/1/0", "a/c/0/1/.0.123.partial"):
        folder.publish(name, b"x")
    folder.write({"a/c/0/0/0": b"new", "b/c/9": b"other"})
    assert (folder.read("a/c/0/0/0"), folder.read("b/c/9")) == (b"new", b"other")
    assert folder.names("a/c/0/0") == ["0"]
    assert folder.names("a/c/0/1") == [".0.123.partial", "0"], "another span's may be at work"


def test_a_missing_object_has_no_digest(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.publish("x", b"abc")
    assert folder.digest("x") == {
        "size_bytes": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    with pytest.raises(CorruptError, match="y: missing"):
        folder.digest("y")


def _hold(path: Path, number: int, told: Connection) -> None:
    with Folder(path).lock(number, wait=True) as held:
        told.send(held)
        time.sleep(60)


def _wait_for(path: Path, number: int, told: Connection) -> None:
    with Folder(path).lock(number, wait=True) as held:
        told.send(held)


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    hears, tells = tiny.FORK.Pipe(duplex=False)
    holder = tiny.start(_hold, tmp_path, 7, tells)
    assert hears.recv() is True
    with Folder(tmp_path).lock(7, wait=False) as held:
        assert not held
    with Folder(tmp_path).lock(8, wait=False) as held:
        assert held, "another number is another lock"
    waiter = tiny.start(_wait_for, tmp_path, 7, tells)
    assert not hears.poll(0.2), "the waiter got a lock that is held"
    holder.kill()
    assert hears.recv() is True
    for child in (holder, waiter):
        child.join()
    with Folder(tmp_path).lock(7, wait=False) as held:
        assert held
