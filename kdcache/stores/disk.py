"""Parts of remote objects that are kept on this disk, within a limit, for all processes.

Invariant: an entry is whole, or not there, or told by its digest and fetched anew; all of them
together never take more than the limit, but for what dead processes were writing. The least
recently used go first.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from kdcache.errors import UsageError
from kdcache.files import PARTIAL, write_whole
from kdcache.stores.location import Location
from kdcache.stores.store import ForkedError, Store

FOLDER, LIMIT = "KDCACHE_DISK_CACHE", "KDCACHE_DISK_LIMIT"  # of the environment
DEFAULT_LIMIT = "20GB"
KEEP = 0.9  # share of the limit that is left when entries must go
OLD_S = 3600.0  # of partial files that are swept
_DIGEST_BYTES = 8
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", re.IGNORECASE)


class Piece(NamedTuple):
    """A part of an object. version: what changes when the object does, such as its sha256."""

    location: Location
    name: str
    offset: int
    size_bytes: int
    version: str


class DiskCache:
    """Pieces in a folder. Holds no file open, so that it works in forked processes."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def get(self, piece: Piece) -> bytes | None:
        """Return a piece that is kept; None without, or if its file is damaged or unreadable."""
        path = self._path(piece)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # a folder that is only read still serves
            os.utime(path)
        kept = memoryview(data)[:-_DIGEST_BYTES]
        if len(kept) != piece.size_bytes or data[-_DIGEST_BYTES:] != _digest(kept):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        return data[:-_DIGEST_BYTES]

    def holds(self, piece: Piece) -> bool:
        """Return whether a piece is kept, and note that it is used."""
        path = f"{self.folder}/{_file_name(piece)}"  # joining paths takes as long again
        with suppress(OSError):
            os.utime(path)
        return os.access(path, os.R_OK)

    def put(self, piece: Piece, data: bytes) -> None:
        """Keep a piece, unless it alone is larger than the limit.

        Where the disk is full before the limit is reached, half of what is kept goes.

        Raises:
            UsageError: the folder cannot be written, or is full of other things.
        """
        path, size = self._path(piece), len(data) + _DIGEST_BYTES
        if size > self.limit_bytes:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._account() as account:
                if path.exists():
                    return
                account.reserve(size)
                try:
                    _write(path, data)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    account.halve(size)
                    _write(path, data)
        except OSError as error:
            raise self._refused(error) from error

    @property
    def used_bytes(self) -> int:
        """Return the bytes of all entries, by their files."""
        used = 0
        for entry in self._entries():
            with suppress(FileNotFoundError):  # another process may evict meanwhile
                used += entry.stat().st_size
        return used

    def _path(self, piece: Piece) -> Path:
        return self.folder / _file_name(piece)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                yield from entries

    @contextmanager
    def _account(self) -> Iterator["_Account"]:
        """Hold the folder's account: how many bytes all entries take."""
        with (self.folder / "used").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield _Account(self, file.fileno())
            finally:  # a process that was forked meanwhile has the file too, and would keep it
                fcntl.flock(file, fcntl.LOCK_UN)

    def evict(self, most_bytes: int) -> int:
        """Delete what was not used for longest until all take so many bytes; return what is left.

        Partial files that dead processes left are swept.
        """
        found, now = [], time.time()
        for entry in self._entries():
            with suppress(FileNotFoundError):
                status = entry.stat()
                if not entry.name.endswith(PARTIAL):
                    found.append((status.st_mtime, status.st_size, entry.path))
                elif now - status.st_mtime > OLD_S:
                    os.unlink(entry.path)
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= most_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            used -= size
        return used

    def _refused(self, error: OSError) -> UsageError:
        return UsageError(
            f"{self.folder}: the disk cache cannot be used: {error.strerror}; free space, or name "
            f"another folder in {FOLDER}"
        )


class _Account:
    """The number of bytes that all entries take, in a file that is locked meanwhile."""

    def __init__(self, cache: DiskCache, file: int) -> None:
        self._cache, self._file = cache, file

    def reserve(self, size: int) -> None:
        """Make room for an entry, and count it."""
        limit = self._cache.limit_bytes
        text = os.pread(self._file, 32, 0)
        used = int(text) if text.isdigit() else limit
        if used + size > limit:
            used = self._cache.evict(min(int(limit * KEEP), limit - size))
        self._note(used + size)

    def halve(self, size: int) -> None:
        """Make room on a full disk for an entry that is counted."""
        used = self._cache.evict(self._cache.used_bytes // 2)
        self._note(used + size)

    def _note(self, used: int) -> None:
        os.ftruncate(self._file, 0)
        os.write(self._file, str(used).encode())


def _write(path: Path, data: bytes) -> None:
    whole = data + _digest(data)
    write_whole(path, partial(_fill, data=whole), sync_file=False, sync_folder=False)


def _file_name(piece: Piece) -> str:
    text = "\n".join(map(str, (piece.location, *piece[1:])))
    name = hashlib.sha256(text.encode()).hexdigest()
    return f"{name[:2]}/{name}"


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _digest(data: bytes | memoryview) -> bytes:
    return xxhash.xxh3_64_digest(data)


def disk_cache() -> DiskCache:
    """Return the disk cache that the environment names.

    KDCACHE_DISK_CACHE is its folder, by default kdcache in the user's cache folder;
    KDCACHE_DISK_LIMIT its size, such as 50GB, by default 20GB.

    Raises:
        UsageError: the limit is no size.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get(FOLDER) or Path(home) / "kdcache"
    text = os.environ.get(LIMIT) or DEFAULT_LIMIT
    if (found := _SIZE.fullmatch(text)) is None:
        raise UsageError(f"{LIMIT}: {text!r} is no size, expected one such as {DEFAULT_LIMIT}")
    power = " KMGT".index(found[2].upper() or " ")
    return DiskCache(Path(folder), limit_bytes=int(float(found[1]) * 1000**power))


def _anything(data: bytes) -> bool:
    del data
    return True


def read_piece(piece: Piece, *, is_right: Callable[[bytes], bool] = _anything) -> bytes:
    """Return a piece, from the disk cache or else from its store; then it is kept.

    A disk cache that is full or cannot be written keeps nothing, and stops nobody who can ask the
    store. is_right: whether bytes are the piece's. Where they are not, the store is asked once
    more, and what comes then is returned, but kept only if it is right: so what is kept, is.

    Raises:
        FileNotFoundError, UsageError: as Store.read_range.
        EvictedError: this process was forked from one that asks the stores, and it is not kept.
    """
    cache = disk_cache()
    data = cache.get(piece)
    if data is not None:
        return data
    try:
        data = Store(piece.location).read_range(piece.name, piece.offset, piece.size_bytes)
        right = is_right(data)
        if not right:
            data = Store(piece.location).read_range(piece.name, piece.offset, piece.size_bytes)
            right = is_right(data)
    except ForkedError as error:
        raise EvictedError(
            f"{piece.location / piece.name}: not on this disk any more; raise {LIMIT}, or name "
            f"a folder with room in {FOLDER}"
        ) from error
    if right:
        with suppress(UsageError):
            cache.put(piece, data)
    return data


class EvictedError(ForkedError):
    """A worker needs a piece that the disk cache has not, and that its parent may read."""
