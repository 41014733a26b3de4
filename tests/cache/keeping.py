"""What tests of extending, merging, slicing and repairing share: whole trees, damage and kills."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache import objects
from kdcache.errors import KdcacheError
from tests import tiny

CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open")


def files(path: Path) -> dict[str, bytes]:
    """Return the bytes of all files below path, but for the lock and what killed writers left."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != ".lock" and not file.name.endswith(".partial")
    }


def flip(path: Path, at: int = 5) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def refusal(run: Callable[..., object], *args: Any, **options: Any) -> str | None:
    """Return what a call says when it refuses; None if it does not."""
    try:
        run(*args, **options)
    except KdcacheError as error:
        return str(error)
    return None


@contextmanager
def disk_of(writes: int) -> Iterator[None]:
    """Let so many files be written whole, and then no more: as on a disk that is full."""
    fill, left = objects._fill, writes

    def fill_some(path: Path, data: bytes) -> None:
        nonlocal left
        if not left:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        fill(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_fill", fill_some)
        yield


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


def _run_until(change: int, root: Path, run: Callable[[Path], object]) -> None:
    _die_before(change, str(root))
    run(root)


def killed_runs(
    root: Path,
    prepare: Callable[[Path], object],
    run: Callable[[Path], object],
    *,
    start: Callable[..., BaseProcess] = tiny.start,
) -> Iterator[Path]:
    """Yield folders in which a run was killed before its first change of a file, its second, ….

    prepare makes what the run, which gets the same folder, starts from. start: runs it in a child.
    """
    for first in range(0, 1000, 2):  # two at a time
        folders = [root / f"killed{first + number}" for number in range(2)]
        for folder in folders:
            prepare(folder)
        children = [
            start(_run_until, first + number, folder, run) for number, folder in enumerate(folders)
        ]
        for child in children:
            child.join()
        for child, folder in zip(children, folders, strict=True):
            if child.exitcode == 0:
                return
            assert child.exitcode == -signal.SIGKILL
            yield folder
