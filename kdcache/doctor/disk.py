"""How fast a folder's disk is, measured within seconds and a bounded part of its free space."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from kdcache.doctor.section import Section, judged
from kdcache.errors import UsageError
from kdcache.files import sync, write_whole

MOST_BYTES, PIECE_BYTES = 64 << 20, 4 << 20
FREE_SHARE = 16  # of the free space, one part in so many is written at most
LIMIT_S = 1.5
MOST_FILES, FILE_BYTES = 256, 1000
SLOW_MB_S = 50


def disk(folder: Path) -> Section:
    """Return what writing, reading and small files cost in a folder; nothing of it stays there.

    Raises:
        UsageError: the folder is missing or cannot be written, or its disk is as good as full.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no folder to measure; name one that is there with --folder")
    free = shutil.disk_usage(folder).free
    size = min(MOST_BYTES, free // FREE_SHARE) // PIECE_BYTES * PIECE_BYTES
    if size == 0:
        raise UsageError(f"{folder}: {free >> 20} MiB are free, too little to measure: free space")
    try:
        with tempfile.TemporaryDirectory(prefix=".kdcache-doctor-", dir=folder) as name:
            written, write_s = _write(Path(name) / "large", size)
            read_s = _read(Path(name) / "large")
            files_per_s = _small_files(Path(name))
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; free space, or check rights") from None
    write, read = (written / seconds / 1e6 for seconds in (write_s, read_s))
    text = (
        f"{folder}: writes {write:,.0f} MB/s, reads {read:,.0f} MB/s, {files_per_s:,.0f} small "
        f"files/s, all synced; {free / 1e9:,.1f} GB free"
    )
    warning = "slow; put caches on a faster disk" if min(write, read) < SLOW_MB_S else None
    return judged(
        text,
        warning,
        folder=str(folder),
        free_bytes=free,
        measured_bytes=written,
        write_mb_s=write,
        read_mb_s=read,
        files_per_s=files_per_s,
    )


def _write(path: Path, size: int) -> tuple[int, float]:
    """Return how many bytes were written and synced, at most size, and the seconds it took."""
    piece, started, written = os.urandom(PIECE_BYTES), time.monotonic(), 0
    with path.open("wb", buffering=0) as file:
        while written < size and time.monotonic() - started < LIMIT_S:
            written += file.write(piece)
            os.fsync(file)
    return written, max(time.monotonic() - started, 1e-9)


def _read(path: Path) -> float:
    """Return the seconds that reading a file takes, from the disk if the system forgets it."""
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.monotonic()
        while file.read(PIECE_BYTES):
            pass
    return max(time.monotonic() - started, 1e-9)


def _small_files(folder: Path) -> float:
    """Return how many files a second are written as commit records are."""
    data, started, count = bytes(FILE_BYTES), time.monotonic(), 0
    while count < MOST_FILES and time.monotonic() - started < LIMIT_S:
        write_whole(folder / str(count), lambda partial: partial.write_bytes(data))
        count += 1
    sync(folder)
    return count / max(time.monotonic() - started, 1e-9)
