"""Chunks read straight from their objects, as a span's commit record describes them.

Invariant: what is returned is what the span's writer committed. An object's size, and the index of
a shard, are compared once in each process; a chunk's checksum each time.
"""

import os

from kdcache.cache.layout import WITNESSES
from kdcache.cache.manifest import Commit
from kdcache.cache.objects import unreadable
from kdcache.cache.shard import Place, shard_index, stated_checksum
from kdcache.errors import CorruptError

_REPAIR = "run kdcache repair"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in an object's place is not waited for


class ChunkReader:
    """Reads chunks below a folder. Holds no file open."""

    def __init__(self, root: str) -> None:
        self._root = root  # joining paths takes longer than reading a chunk
        self._sound: set[str] = set()  # objects whose size and index were compared

    def read(self, commit: Commit, array: str, name: str, *, position: int) -> bytes:
        """Return the bytes of one chunk of an object, checksum included.

        Raises:
            CorruptError: they are missing, or not those that were committed.
        """
        places, path = commit.tiles.get(array, ()), f"{self._root}/{name}"
        if position >= len(places) or name not in commit.objects:
            raise CorruptError(f"{path}: its commit record does not tell of it; {_REPAIR}")
        place = places[position]
        try:
            file = os.open(path, _FLAGS)
        except OSError as error:
            raise unreadable(path, error) from None
        try:
            if name not in self._sound:
                is_shard = array not in WITNESSES.values()
                _compare(file, path, places, commit=commit, name=name, is_shard=is_shard)
                self._sound.add(name)
            chunk = os.pread(file, place.size_bytes, place.offset)
        except OSError as error:
            raise unreadable(path, error) from error
        finally:
            os.close(file)
        if stated_checksum(chunk) != place.crc32c:
            raise CorruptError(
                f"{path}: damaged, or of another run: a checksum differs from the commit record's; "
                f"{_REPAIR}"
            )
        return chunk


def _compare(
    file: int, path: str, places: tuple[Place, ...], *, commit: Commit, name: str, is_shard: bool
) -> None:
    """Compare an object's size, and the index of a shard, with the commit record."""
    size, expected = os.fstat(file).st_size, commit.objects[name]["size_bytes"]
    if size != expected:
        raise CorruptError(f"{path}: damaged: {size} bytes, {expected} committed; {_REPAIR}")
    end = places[-1].offset + places[-1].size_bytes
    if is_shard:
        index = shard_index(places)
        if os.pread(file, len(index) + 1, end) != index:
            raise CorruptError(f"{path}: damaged: its index differs; {_REPAIR}")
