"""Claims about the disk cache, which many processes share and any of them may die in."""

import errno
import fcntl
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.stores import disk
from kdcache.stores.disk import DiskCache, EvictedError, Piece, disk_cache, read_piece
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests import tiny
from tests.servers import faults

PLACE = Location("s3://bucket/cache")


def piece(number: int, size: int = 1000, *, version: str = "") -> Piece:
    """Return a piece by its number."""
    return Piece(PLACE, "object", number, size, version)


def content(number: int, size: int = 1000) -> bytes:
    """Return the bytes of the piece of a number."""
    return random.Random(number).randbytes(size)


def files(cache: DiskCache) -> list[Path]:
    """Return the files of all entries."""
    return [path for path in cache.folder.glob("*/*") if not path.name.endswith(".partial")]


def locked_bytes(cache: DiskCache) -> int:
    """Return the bytes of all entries while nobody puts."""
    with (cache.folder / "used").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return cache.used_bytes


def run(*functions: Callable[[], None]) -> None:
    """Run functions in processes of their own, all at once."""
    processes = [tiny.start(function) for function in functions]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


# --- keeping -------------------------------------------------------------------------------


def test_what_is_put_is_got_and_pieces_differ_by_all_that_names_them(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "disk", limit_bytes=10**6)
    one = Piece(PLACE, "a", 0, 3, "v")
    others = [
        one._replace(location=PLACE / "b"),
        one._replace(name="b"),
        one._replace(offset=1),
        one._replace(version="w"),
    ]
    assert cache.get(one) is None
    assert not cache.holds(one)
    for number, other in enumerate([one, *others]):
        cache.put(other, b"%03d" % number)
    assert [cache.get(other) for other in [one, *others]] == [b"%03d" % n for n in range(5)]
    assert all(map(cache.holds, others))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4000)), max_size=30))
def test_all_entries_together_never_exceed_the_limit(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int]]
) -> None:
    cache = DiskCache(tmp_path_factory.mktemp("disk"), limit_bytes=10_000)
    for number, size in puts:
        cache.put(piece(number, size), content(number, size))
        assert cache.used_bytes <= 10_000
        assert cache.get(piece(number, size)) == content(number, size)


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit_bytes=1000)
    cache.put(piece(0, 900), content(0, 900))
    cache.put(piece(1, 1000), content(1, 1000))
    assert cache.get(piece(1, 1000)) is None
    assert cache.get(piece(0, 900)) == content(0, 900)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit_bytes=10 * 1008)
    for number in range(10):
        cache.put(piece(number), content(number))
        path = next(path for path in files(cache) if path.read_bytes()[:1000] == content(number))
        os.utime(path, (number, number))
    assert cache.get(piece(0)) == content(0)
    assert cache.holds(piece(2))
    cache.put(piece(10), content(10))
    kept = [number for number in range(11) if cache.get(piece(number)) is not None]
    assert kept == [0, *range(2, 11)]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "digest"])
def test_a_damaged_entry_is_as_none_and_is_put_anew(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path, limit_bytes=10**6)
    cache.put(piece(0), content(0))
    (path,) = files(cache)
    data = bytearray(path.read_bytes())
    if damage in ("flip", "digest"):
        data[5 if damage == "flip" else -1] ^= 1
    else:
        data = {"cut": data[:-1], "empty": bytearray(), "longer": data + b"x"}[damage]
    path.write_bytes(data)
    assert cache.get(piece(0)) is None
    cache.put(piece(0), content(0))
    assert cache.get(piece(0)) == content(0)


# --- many processes ------------------------------------------------------------------------


def test_processes_that_put_at_once_keep_the_limit(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit_bytes=60_000)

    def put(seed: int) -> Callable[[], None]:
        def child() -> None:
            order = random.Random(seed)
            for _ in range(150):
                number = order.randrange(300)
                cache.put(piece(number), content(number))
                assert locked_bytes(cache) <= 60_000
                got = cache.get(piece(order.randrange(300)))
                assert got is None or len(got) == 1000

        return child

    run(*map(put, range(4)))
    assert 0.8 * 60_000 < cache.used_bytes <= 60_000
    for number in range(300):
        assert cache.get(piece(number)) in (None, content(number))


def test_processes_killed_at_any_moment_leave_right_entries_and_no_lock(tmp_path: Path) -> None:
    cache, moments = DiskCache(tmp_path, limit_bytes=200_000), random.Random(5)

    def child() -> None:
        order = random.Random(os.getpid())
        while True:
            number = order.randrange(400)
            cache.put(piece(number, 20_000), content(number, 20_000))

    for _ in range(15):
        processes = [tiny.start(child) for _ in range(2)]
        time.sleep(moments.uniform(0.01, 0.06))
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert cache.used_bytes - sum(p.stat().st_size for p in tmp_path.glob("*/.*")) <= 200_000
    found = [cache.get(piece(number, 20_000)) for number in range(400)]
    assert any(found)
    assert all(data in (None, content(n, 20_000)) for n, data in enumerate(found))
    before = time.monotonic()
    cache.put(piece(500, 20_000), content(500, 20_000))
    assert time.monotonic() - before < 1
    assert cache.get(piece(500, 20_000)) == content(500, 20_000)


def test_what_dead_processes_were_writing_is_swept_once_it_is_old(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit_bytes=10**6)
    cache.put(piece(0), content(0))
    (path,) = files(cache)
    for name, age in (("old", disk.OLD_S + 60), ("new", 0)):
        partial = path.with_name(f".{name}.1.partial")
        partial.touch()
        os.utime(partial, (time.time() - age,) * 2)
    cache.evict(10**6)
    assert [p.name for p in tmp_path.glob("*/.*")] == [".new.1.partial"]
    assert cache.get(piece(0)) == content(0)


@pytest.mark.parametrize("account", [b"", b"x", b"99999999", b"-5"])
def test_an_account_that_a_killed_process_left_is_counted_anew(
    tmp_path: Path, account: bytes
) -> None:
    cache = DiskCache(tmp_path, limit_bytes=10 * 1008)
    for number in range(10):
        cache.put(piece(number), content(number))
    (tmp_path / "used").write_bytes(account)
    cache.put(piece(10), content(10))
    assert cache.used_bytes == int((tmp_path / "used").read_bytes())
    assert 9000 < cache.used_bytes <= 10 * 1008


# --- full and read-only folders ------------------------------------------------------------


def as_user_without_rights(function: Callable[[], None]) -> Callable[[], None]:
    """Return the function, run where permissions count for root too."""

    def child() -> None:
        tiny.without_root_rights()
        function()

    return child


def test_a_folder_that_cannot_be_written_serves_what_it_has(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "disk", limit_bytes=10**6)
    cache.put(piece(0), content(0))
    for path in [cache.folder, *cache.folder.iterdir()]:
        path.chmod(0o500 if path.is_dir() else 0o400)

    def child() -> None:
        assert cache.get(piece(0)) == content(0)
        assert cache.holds(piece(0))
        with pytest.raises(UsageError, match=r"disk: the disk cache cannot be used: Permission"):
            cache.put(piece(1), content(1))

    run(as_user_without_rights(child))


@pytest.mark.parametrize("room", [0, 5000, 20_000])
def test_a_disk_that_is_full_before_the_limit_keeps_what_it_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    cache, write = DiskCache(tmp_path, limit_bytes=10**6), disk.write_whole

    def on_small_disk(path: Path, *args: Any, **options: Any) -> bool:
        if cache.used_bytes + 1008 > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *args, **options)

    monkeypatch.setattr(disk, "write_whole", on_small_disk)
    for number in range(60):
        if room == 0:
            with pytest.raises(UsageError, match="cannot be used: No space left"):
                cache.put(piece(number), content(number))
        else:
            cache.put(piece(number), content(number))
            assert cache.get(piece(number)) == content(number)
            assert cache.used_bytes == int((tmp_path / "used").read_bytes())


# --- reading through it --------------------------------------------------------------------


@pytest.fixture
def through(
    bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Piece]:
    """Pieces of an object in a bucket, with a disk cache of their own."""
    monkeypatch.setenv(disk.FOLDER, str(tmp_path / "disk"))
    bucket.write("object", content(0, 5000))
    place = bucket.place
    assert isinstance(place, Location)
    return lambda offset: Piece(place, "object", offset, 1000, "v")


def test_a_piece_is_asked_for_once_and_read_by_forked_workers(
    through: Callable[[int], Piece], s3: faults.Proxy
) -> None:
    for _ in range(3):
        assert read_piece(through(500)) == content(0, 5000)[500:1500]
    assert len(s3.asked("GET")) == 1

    def worker() -> None:
        assert read_piece(through(500)) == content(0, 5000)[500:1500]
        with pytest.raises(EvictedError, match="object: not on this disk any more; raise KDCACHE"):
            read_piece(through(700))

    run(worker)


def test_a_damaged_piece_is_asked_for_again(
    through: Callable[[int], Piece], s3: faults.Proxy
) -> None:
    read_piece(through(0))
    (path,) = files(disk_cache())
    path.write_bytes(b"x" * path.stat().st_size)
    assert read_piece(through(0)) == content(0, 5000)[:1000]
    assert len(s3.asked("GET")) == 2


@pytest.mark.parametrize("folder", ["file", "file/below", "/dev/full"])
def test_a_folder_that_cannot_be_written_stops_no_process_that_can_ask_the_store(
    through: Callable[[int], Piece], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(disk.FOLDER, str(tmp_path / folder))
    for _ in range(2):
        assert read_piece(through(500)) == content(0, 5000)[500:1500]
    with pytest.raises(UsageError, match="the disk cache cannot be used: Not a directory"):
        disk_cache().put(through(500), content(0))


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("50GB", 50 * 10**9), ("1.5 t", 15 * 10**11), ("200MiB", 2 * 10**8), ("7", 7), ("0", 0)],
)
def test_the_limit_is_a_size(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv(disk.LIMIT, text)
    assert disk_cache().limit_bytes == size


@pytest.mark.parametrize("text", ["much", "-5GB", "5XB", "1e9"])
def test_another_limit_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(disk.LIMIT, text)
    with pytest.raises(UsageError, match=r"KDCACHE_DISK_LIMIT: .* is no size"):
        disk_cache()


def test_the_folder_is_the_users_cache_folder_unless_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(disk.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk_cache().folder == tmp_path / "kdcache"
    monkeypatch.setenv(disk.FOLDER, str(tmp_path / "other"))
    assert disk_cache().folder == tmp_path / "other"
