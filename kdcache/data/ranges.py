"""Tars in a store: read by ranges at random, or streamed once to be indexed.

Invariant: images that are read at random have the content digests of the index, or are refused.
"""

import io
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import DataError, UsageError
from kdcache.identity import content_digest
from kdcache.stores.ahead import Wanted
from kdcache.stores.disk import Piece, read_piece
from kdcache.stores.location import Location
from kdcache.stores.store import Store

GAP_BYTES = 1 << 16  # read along with the images around it, rather than asked around
MAX_RANGE_BYTES = 1 << 28
WINDOW_BYTES = 4 << 20
WINDOWS_AHEAD = 2


class StoredTar(NamedTuple):
    """A tar below a location, by its name there."""

    root: Location
    name: str

    def __str__(self) -> str:
        return str(self.root / self.name)


class _Range(NamedTuple):
    """Images that are read together: their numbers, and where each stands in the range."""

    wanted: Wanted
    numbers: tuple[int, ...]
    places: tuple[slice, ...]


def wanted_images(
    tar: StoredTar,
    offsets: NDArray[np.uint64],
    *,
    sizes: NDArray[np.uint32],
    contents: NDArray[np.uint64],
) -> list[Wanted]:
    """Return the ranges that reading images asks for; as read_stored_images."""
    return [r.wanted for r in _ranges(tar, offsets, sizes=sizes, contents=contents)]


def read_stored_images(
    tar: StoredTar,
    offsets: NDArray[np.uint64],
    *,
    sizes: NDArray[np.uint32],
    contents: NDArray[np.uint64],
) -> list[bytes]:
    """Return the bytes of images, from this disk or by one request where they lie close together.

    offsets, sizes, contents: (N,), as scanned.

    Raises:
        DataError: the tar is missing, or holds other bytes there.
        UsageError: the store refuses or does not answer, or the tar is shorter.
        EvictedError: as read_piece.
    """
    images = [b""] * len(offsets)
    for wanted, numbers, places in _ranges(tar, offsets, sizes=sizes, contents=contents):
        try:
            data = wanted.read()
        except FileNotFoundError:
            raise DataError(f"{tar}: missing; restore the tar, or check its path") from None
        for number, place in zip(numbers, places, strict=True):
            images[number] = data[place]
            if content_digest(images[number]) != contents[number]:
                raise DataError(
                    f"{tar}: {stored_key_at(tar, int(offsets[number]))}: other bytes than indexed, "
                    "twice; the tar changed since it was indexed: run kdcache index again"
                )
    return images


def _ranges(
    tar: StoredTar,
    offsets: NDArray[np.uint64],
    *,
    sizes: NDArray[np.uint32],
    contents: NDArray[np.uint64],
) -> list[_Range]:
    """Return the ranges that hold images, in the order of the tar."""
    order = np.argsort(offsets, kind="stable")
    begins = offsets[order].astype(np.int64)
    starts, ends = begins.tolist(), (begins + sizes[order]).tolist()
    ranges, first = [], 0
    for last in range(len(order)):
        if last + 1 < len(order):
            near = starts[last + 1] - ends[last] <= GAP_BYTES
            if near and ends[last + 1] - starts[first] <= MAX_RANGE_BYTES:
                continue
        numbers = order[first : last + 1]
        start, stop = starts[first], max(ends[first : last + 1])
        places = tuple(
            slice(s - start, e - start)
            for s, e in zip(starts[first : last + 1], ends[first : last + 1], strict=True)
        )
        # A re-written tar has other contents, or has them elsewhere.
        known = np.stack((offsets[numbers], sizes[numbers], contents[numbers])).astype("<u8")
        version = f"{content_digest(known.tobytes()):016x}"
        piece = Piece(tar.root, tar.name, start, stop - start, version)
        expected = tuple(contents[numbers].tolist())
        wanted = Wanted(piece, lambda data, p=places, e=expected: _holds(data, p, e))  # type: ignore[misc]
        ranges.append(_Range(wanted, tuple(numbers.tolist()), places))
        first = last + 1
    return ranges


def _holds(data: bytes, places: tuple[slice, ...], contents: tuple[int, ...]) -> bool:
    return all(
        content_digest(data[place]) == content
        for place, content in zip(places, contents, strict=True)
    )


def stored_key_at(tar: StoredTar, offset: int) -> str:
    """Return the key of the image whose bytes begin at offset, or "offset N" if none is found.

    Only the header before it is read, which holds the first 100 bytes of a name.

    Raises:
        UsageError: the store refuses, or does not answer.
        EvictedError: as read_piece.
    """
    from kdcache.data.tars import split_member

    piece = Piece(tar.root, tar.name, offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE, f"{offset}")
    try:
        header = tarfile.TarInfo.frombuf(read_piece(piece), "utf-8", "replace")
    except (FileNotFoundError, tarfile.HeaderError):
        return f"offset {offset}"
    found = split_member(header.name)
    return f"offset {offset}" if found is None else found[0]


class StoredFile(io.RawIOBase):
    """An object read from its start to its end, a few windows ahead; skipping is cheap.

    Past this disk, since whoever reads all of an object reads it once.

    Raises:
        DataError: it is missing.
        UsageError: the store refuses, or does not answer.
    """

    def __init__(self, tar: StoredTar, *, window_bytes: int = WINDOW_BYTES) -> None:
        super().__init__()
        self._tar, self._store = tar, Store(tar.root)
        size = self._store.size(tar.name)
        if size is None:
            raise DataError(f"{tar}: missing; check the path of the tar")
        self.size_bytes, self._at, self._window_bytes = size, 0, window_bytes
        self._windows: dict[int, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(1 + WINDOWS_AHEAD, thread_name_prefix="window")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position, from the start or, by whence, from here or from the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, or what is left, whatever size a header claims."""
        rest = max(0, self.size_bytes - self._at)
        stop = self._at + (rest if size is None or size < 0 else min(rest, size))
        parts = []
        while self._at < stop:
            number, within = divmod(self._at, self._window_bytes)
            part = self._window(number)[within : within + stop - self._at]
            parts.append(part)
            self._at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """End reading ahead."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _window(self, number: int) -> bytes:
        """Return a window, and let those that follow come."""
        last = (self.size_bytes - 1) // self._window_bytes
        near = range(number, min(number + WINDOWS_AHEAD, last) + 1)
        windows = {n: f for n, f in self._windows.items() if n in near}
        for n in near:
            if n not in windows:
                start = n * self._window_bytes
                size = min(self._window_bytes, self.size_bytes - start)
                windows[n] = self._pool.submit(self._store.read_range, self._tar.name, start, size)
        self._windows = windows
        return windows[number].result()


def find_stored_tars(root: Location) -> list[StoredTar]:
    """Return the tars below a location, sorted by name.

    Raises:
        UsageError: the store refuses, does not answer, or lists nothing, as plain HTTP.
    """
    if root.scheme in ("http", "https"):
        raise UsageError(
            f"{root}: HTTP is read without listing; index a copy of the tars, and put its "
            "dataset.json and dataset.npz beside them"
        )
    return [StoredTar(root, e.name) for e in Store(root).names() if e.name.endswith(".tar")]
