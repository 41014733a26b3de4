"""A file that is filled from its start, and gone on with where a killed process ended.

Invariant: the file itself is there only once it is whole; what is read meanwhile lies beside it.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from kdcache.errors import UsageError
from kdcache.files import PARTIAL, sync

RANGE_BYTES = 8 << 20

Read = Callable[[int, int], bytes]  # of an offset and a number of bytes


def fill(path: Path, size_bytes: int, read: Read) -> None:
    """Write a file of so many bytes; of several processes that do, one reads and the others wait.

    Raises:
        UsageError: the file cannot be written.
        Others: of read.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_there(file, partial):  # another process was faster
                return fill(path, size_bytes, read) if not path.exists() else None
            _go_on(file, size_bytes, read)
            os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is None:  # of read: the object is missing
            raise
        raise UsageError(
            f"{path}: cannot be written: {error.strerror}; free space, or check rights"
        ) from error


def _is_there(file: BinaryIO, partial: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), partial.stat())
    except FileNotFoundError:
        return False


def _go_on(file: BinaryIO, size_bytes: int, read: Read) -> None:
    if file.tell() > size_bytes:
        file.truncate(0)
    while (start := file.seek(0, os.SEEK_END)) < size_bytes:
        file.write(read(start, min(RANGE_BYTES, size_bytes - start)))
        file.flush()
    os.fsync(file.fileno())
