"""Claims about pieces that are brought to this disk before they are needed."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcache.errors import KdcacheError, UsageError
from kdcache.stores.ahead import Wanted, ahead, bring_all
from kdcache.stores.disk import DiskCache, EvictedError, Piece, disk_cache, read_piece
from kdcache.stores.location import Location
from tests import tiny
from tests.serving import Served, served

DATA = bytes(range(250))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web/all").write_bytes(DATA)
    with served(tmp_path / "web") as found:
        yield found


def _wanted(server: Served, number: int, name: str = "all") -> Wanted:
    piece = Piece(server.location, name, 10 * number, 10, "v")
    return Wanted(piece, lambda data: data == DATA[10 * number : 10 * number + 10])


def test_requests_come_in_order_when_their_pieces_are_here(server: Served) -> None:
    def alter(name: str, span: str, data: bytes) -> bytes:
        del name
        time.sleep(0.02 * (data[0] % 3))
        return data

    server.alter = alter
    seen = []
    for number, error in ahead(range(20), [lambda n: [_wanted(server, n)]], depth=8):
        assert error is None
        assert disk_cache().holds(_wanted(server, number).piece)
        seen.append(number)
    assert seen == list(range(20))
    assert server.count("all") == 20


def test_a_piece_that_many_need_is_asked_for_once(server: Served) -> None:
    list(ahead(range(50), [lambda n: [_wanted(server, n % 2)]], depth=16))
    assert server.count("all") == 2


def test_no_more_requests_are_taken_than_may_be_on_the_way(server: Served) -> None:
    taken = []

    def requests() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    coming = ahead(requests(), [lambda n: [_wanted(server, n)]], depth=4)
    for number, _ in coming:
        assert len(taken) <= number + 5
    assert len(taken) == 20


def test_pieces_on_the_way_take_a_share_of_the_disk(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_DISK_LIMIT", "100B")
    taken = []

    def requests() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for number, _ in ahead(requests(), [lambda n: [_wanted(server, n)]], depth=16):
        assert len(taken) <= number + 3  # of 10 bytes each, and at most a quarter of 100
    assert disk_cache().used_bytes <= 100


def test_a_later_stage_knows_what_an_earlier_one_brought(server: Served) -> None:
    def later(number: int) -> list[Wanted]:
        assert disk_cache().holds(_wanted(server, number).piece)
        return [_wanted(server, number + 10)]

    stages = [lambda n: [_wanted(server, n)], later]
    assert [n for n, _ in ahead(range(10), stages)] == list(range(10))
    assert server.count("all") == 20


def test_an_error_comes_with_the_request_that_it_is_of(server: Served) -> None:
    def stage(number: int) -> list[Wanted]:
        if number == 2:
            raise UsageError("no")
        return [_wanted(server, number, "none" if number == 4 else "all")]

    found = dict(ahead(range(6), [stage, lambda n: [_wanted(server, n + 6)]]))
    assert list(found) == list(range(6))
    assert {n: str(e) for n, e in found.items() if e is not None} == {2: "no"}  # 4: its reader's
    assert isinstance(found[2], KdcacheError)


def test_ending_early_leaves_no_thread_at_work(server: Served) -> None:
    coming = ahead(range(20), [lambda n: [_wanted(server, n)]], depth=8)
    next(coming)
    coming.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 5
    while any(t.name.startswith("ahead") for t in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_pieces_are_brought_and_those_that_cannot_be_are_left_to_their_readers(
    server: Served,
) -> None:
    bring_all([_wanted(server, 0), _wanted(server, 1, "none"), _wanted(server, 2)])
    held = [disk_cache().holds(_wanted(server, n).piece) for n in range(3)]
    assert held == [True, False, True]


def test_what_is_not_right_is_asked_for_once_more_and_never_kept(server: Served) -> None:
    wrong = [True, False, True, True]

    def alter(name: str, span: str, data: bytes) -> bytes:
        del name, span
        return bytes(len(data)) if wrong.pop(0) else data

    server.alter = alter
    assert _wanted(server, 1).read() == DATA[10:20]
    assert disk_cache().holds(_wanted(server, 1).piece)
    assert _wanted(server, 2).read() == bytes(10)
    assert not disk_cache().holds(_wanted(server, 2).piece)


def test_a_child_forked_while_a_piece_is_kept_does_not_keep_the_account(
    tmp_path: Path, server: Served
) -> None:
    del server
    cache, begun, ended = DiskCache(tmp_path / "d", limit_bytes=10**6), tmp_path / "b", []
    cache.folder.mkdir()
    with cache._account():
        child = tiny.start(_wait_for, begun)
    piece = Piece(Location("s3://b"), "n", 0, 3, "v")
    thread = threading.Thread(target=lambda: (cache.put(piece, b"abc"), ended.append(True)))
    thread.start()
    thread.join(5)
    went_on = bool(ended)
    begun.touch()
    child.join(10)
    thread.join(10)
    assert child.exitcode == 0
    assert went_on
    assert cache.get(piece) == b"abc"


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    os._exit(0 if time.monotonic() < end - 10 else 1)


def test_a_forked_child_reads_what_is_here_and_says_what_is_not(server: Served) -> None:
    _wanted(server, 0).read()
    child = tiny.start(_read_in_child, server.location)
    child.join(20)
    assert child.exitcode == 0


def _read_in_child(location: Location) -> None:
    assert read_piece(Piece(location, "all", 0, 10, "v")) == DATA[:10]
    with pytest.raises(EvictedError, match="KDCACHE_DISK_LIMIT"):
        read_piece(Piece(location, "all", 10, 10, "v"))
