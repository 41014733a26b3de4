"""Claims about processes that end, are killed or fork while they ask stores."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.stores import clients
from kdcache.stores.location import Location
from kdcache.stores.store import AbandonedError, ForkedError, Store, abandon
from tests import tiny
from tests.servers import faults

DATA = bytes(range(256)) * 4000
ASKS = {
    "read": 'store.read("a")',
    "read_range": 'store.read_range("a", 0, 50)',
    "size": 'store.size("a")',
    "names": "list(store.names())",
    "write": 'store.write("a", b"")',
    "large": 'store.write_file("a", Path(sys.argv[2]))',
    "fill": 'store.read_to_file("a", Path(sys.argv[2]), size_bytes=50)',
}
SCRIPT = """
import signal, sys
from pathlib import Path
from kdcache.stores import filling, store as module
from kdcache.stores.location import parse_place
from kdcache.stores.store import Store

signal.signal(signal.SIGINT, signal.default_int_handler)
module.PART_BYTES = filling.RANGE_BYTES = 100_000
store = Store(parse_place(sys.argv[1]))
"""


def started(lines: str, place: str, path: Path) -> subprocess.Popen[bytes]:
    """Return a process that runs lines of Python with a store."""
    return subprocess.Popen([sys.executable, "-c", f"{SCRIPT}{lines}", place, str(path)])


def wait_until(true: Callable[[], bool]) -> None:
    """Return once it is true."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("ask", ASKS)
def test_an_interrupt_ends_a_request_that_waits(
    bucket: Store, s3: faults.Proxy, tmp_path: Path, ask: str
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    s3.plan = faults.always(faults.stalled(60))
    path = tmp_path / ("file" if ask == "large" else "new")
    lines = f"try: {ASKS[ask]}\nexcept KeyboardInterrupt: sys.exit(42)"
    process = started(lines, bucket.place.url, path)
    try:
        wait_until(lambda: len(s3.requests) > 0)
        process.send_signal(signal.SIGINT)
        before = time.monotonic()
        assert process.wait(30) == 42
        assert time.monotonic() - before < 5  # of 60
    finally:
        process.kill()
        process.wait()


def test_an_interrupt_ends_a_wait_between_requests(
    bucket: Store, s3: faults.Proxy, tmp_path: Path
) -> None:
    s3.plan = faults.always(faults.status(503))
    lines = "try: store.read('a')\nexcept KeyboardInterrupt: sys.exit(42)"
    process = started(lines, bucket.place.url, tmp_path)
    try:
        wait_until(lambda: len(s3.requests) > 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 42
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", [faults.stalled(60), faults.status(503)])
def test_threads_that_wait_are_ended_by_abandon(
    bucket: Store, s3: faults.Proxy, fault: faults.Fault
) -> None:
    bucket.write("a", DATA)
    s3.plan = faults.always(fault)
    ended: list[Exception] = []

    def read() -> None:
        try:
            bucket.read("a")
        except Exception as error:
            ended.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(s3.asked("GET")) >= 8)
    abandon()
    before = time.monotonic()
    for thread in threads:
        thread.join()
    assert time.monotonic() - before < 5
    assert [type(error) for error in ended] == [AbandonedError] * 8
    s3.plan = None
    assert bucket.read("a") == DATA


def test_a_process_ends_in_order_while_threads_of_it_ask(bucket: Store, tmp_path: Path) -> None:
    bucket.write("a", DATA)
    lines = """
import threading, time
from kdcache.stores.store import AbandonedError
def read():
    try:
        while True: store.read("a")
    except AbandonedError:
        pass
for _ in range(8): threading.Thread(target=read, daemon=True).start()
time.sleep(0.3)
"""
    for _ in range(3):
        command = [sys.executable, "-X", "dev", "-c", f"{SCRIPT}{lines}", bucket.place.url, "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_is_refused_at_once(bucket: Store, tmp_path: Path) -> None:
    bucket.write("a", DATA)
    Store(tmp_path).write("a", DATA)

    def child() -> None:
        for store in (bucket, Store(tmp_path), Store(Location("http://127.0.0.1:1"))):
            before = time.monotonic()
            with pytest.raises(ForkedError, match="forked from one that had opened stores"):
                store.read("a")
            assert time.monotonic() - before < 5

    process = tiny.start(child)
    process.join(30)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert not alive
    assert process.exitcode == 0
    assert bucket.read("a") == DATA


# --- killed processes ----------------------------------------------------------------------


@pytest.mark.parametrize("sent", [1, 4, 8])
def test_a_killed_writer_of_a_large_file_leaves_no_object(
    bucket: Store, s3: faults.Proxy, tmp_path: Path, sent: int
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    s3.plan = faults.after(sent, faults.stalled(60))
    process = started(
        'store.write_file("a", Path(sys.argv[2]))', bucket.place.url, tmp_path / "file"
    )
    wait_until(lambda: len(s3.requests) > sent)
    process.kill()
    process.wait()
    s3.plan = None
    assert bucket.size("a") is None
    assert list(bucket.names()) == []
    bucket.write_file("a", tmp_path / "file")
    assert bucket.read("a") == DATA


def test_a_killed_reader_goes_on_where_it_was(
    bucket: Store, s3: faults.Proxy, tmp_path: Path
) -> None:
    bucket.write("a", DATA)
    lines = f'store.read_to_file("a", Path(sys.argv[2]), size_bytes={len(DATA)})'
    had = 0
    for turn in range(4):
        s3.requests.clear()
        s3.plan = faults.after(3, faults.stalled(60)) if turn < 3 else None
        process = started(lines, bucket.place.url, tmp_path / "copy")
        if turn < 3:
            wait_until(lambda: len(s3.requests) > 3)
            assert not (tmp_path / "copy").exists()
            process.kill()
        process.wait()
        first = int(s3.requests[0].range.removeprefix("bytes=").partition("-")[0])
        assert first == had
        had += 300_000
    assert (tmp_path / "copy").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["copy"]


def test_of_two_processes_that_read_to_one_file_one_reads(
    bucket: Store, s3: faults.Proxy, tmp_path: Path
) -> None:
    bucket.write("a", DATA)
    s3.requests.clear()
    s3.delay_s = 0.1
    lines = f'store.read_to_file("a", Path(sys.argv[2]), size_bytes={len(DATA)})'
    processes = [started(lines, bucket.place.url, tmp_path / "copy") for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "copy").read_bytes() == DATA
    assert len(s3.asked("GET")) == -(-len(DATA) // 100_000)


def test_a_full_disk_is_told_with_the_files_name(
    bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("a", DATA)
    (tmp_path / ".copy.partial").symlink_to("/dev/full")
    with pytest.raises(clients.UsageError, match="copy: cannot be written: No space left"):
        bucket.read_to_file("a", tmp_path / "copy", size_bytes=len(DATA))
