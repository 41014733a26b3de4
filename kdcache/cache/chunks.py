"""Chunks read straight from their objects, as a span's commit record describes them.

Invariant: what is returned is what the span's writer committed. Of local files, an object's size,
and the index of a shard, are compared once in each process; of published ones, which are read in
part and by one request, the size and sha256 that manifest and record state. A chunk's checksum is
compared each time.
"""

import os

from kdcache.cache.in_place import PublishedFolder
from kdcache.cache.layout import WITNESSES
from kdcache.cache.manifest import Commit
from kdcache.cache.objects import unreadable
from kdcache.cache.shard import Place, shard_index, stated_checksum
from kdcache.errors import CorruptError
from kdcache.stores.ahead import Wanted
from kdcache.stores.disk import Piece

_REPAIR = "run kdcache repair"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in an object's place is not waited for
_AGAIN = "ask who published it to publish it again, or use another copy"


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
            # A pipe in an object's place is not waited for.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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


class PublishedChunks:
    """Reads chunks of a published cache, each by one range of its object.

    Of a cache that is pinned, each object is read whole and compared by its sha256: a crc32c tells
    accidents, and no malice.
    """

    def __init__(self, folder: PublishedFolder) -> None:
        self._folder = folder

    def wanted(self, commit: Commit, array: str, name: str, *, position: int) -> Wanted:
        """Return one chunk of an object as a piece, or the whole of it.

        Raises:
            CorruptError: manifest and commit record do not tell of it, or differ.
        """
        places, entry = commit.tiles.get(array, ()), self._folder.manifest.objects.get(name)
        where = self._folder.place / name
        if position >= len(places) or name not in commit.objects or entry is None:
            raise CorruptError(f"{where}: manifest or commit record does not tell of it; {_AGAIN}")
        place = places[position]
        if commit.objects[name] != entry.model_dump():
            raise CorruptError(f"{where}: the manifest differs from its commit record; {_AGAIN}")
        if place.offset + place.size_bytes > entry.size_bytes:
            raise CorruptError(f"{where}: its commit record has it end later; {_AGAIN}")
        if self._folder.place.pin is not None:
            return self._folder.wanted(name)
        piece = Piece(self._folder.place, name, place.offset, place.size_bytes, entry.sha256)
        return Wanted(piece, lambda chunk: stated_checksum(chunk) == place.crc32c)

    def read(self, commit: Commit, array: str, name: str, *, position: int) -> bytes:
        """Return the bytes of one chunk of an object, checksum included.

        Raises:
            CorruptError: they are missing, or not those that were committed.
            UsageError: the store refuses, or does not answer.
            EvictedError: as read_piece.
        """
        wanted = self.wanted(commit, array, name, position=position)
        place = commit.tiles[array][position]
        try:
            chunk = wanted.read()
        except FileNotFoundError:
            raise self._folder.lost(name) from None
        is_right = wanted.is_right(chunk)
        if self._folder.place.pin is not None:
            chunk = chunk[place.offset : place.offset + place.size_bytes]
        if not is_right or stated_checksum(chunk) != place.crc32c:
            raise CorruptError(
                f"{self._folder.place / name}: damaged: a checksum differs from the commit "
                f"record's, and did when it was read once more; {_AGAIN}"
            )
        return chunk
