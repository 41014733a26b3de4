"""Parts of remote objects that are brought to this disk before anybody needs them.

Invariant: requests keep their order. What is brought is only ever a help: a process that does not
find a piece on the disk asks for it, or says so (EvictedError).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from kdcache.errors import KdcacheError
from kdcache.stores.disk import Piece, disk_cache, read_piece

THREADS = 32
DEPTH = 64  # requests on the way, of each stage
SEEN_S = 2.0  # for which a piece that was seen on the disk is not looked for again
SHARE = 4  # part of the disk cache that pieces on the way may fill

R = TypeVar("R")


class Wanted(NamedTuple):
    """A piece, and how to tell that bytes are the right ones."""

    piece: Piece
    is_right: Callable[[bytes], bool]

    def read(self) -> bytes:
        """Return the piece, as read_piece."""
        return read_piece(self.piece, is_right=self.is_right)


Stage = Callable[[R], Iterable[Wanted]]


class _Bringer:
    """Threads that bring pieces, each once however many ask for it."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._coming: dict[Piece, Future[None]] = {}
        self._here: dict[Piece, float] = {}  # when they were seen on the disk
        self._cache = disk_cache()

    def bring(self, wanted: Wanted) -> Future[None] | None:
        """Return the future of a piece; None if it is on the disk, or too large for it."""
        piece, now = wanted.piece, time.monotonic()
        if now - self._here.get(piece, -SEEN_S) < SEEN_S:
            return None
        future = self._coming.get(piece)
        if future is not None and not future.done():
            return future
        if self._cache.holds(piece) or piece.size_bytes >= self._cache.limit_bytes:
            self._coming.pop(piece, None)
            self._here[piece] = now
            if len(self._here) > THREADS * DEPTH:
                self._here = {p: at for p, at in self._here.items() if now - at < SEEN_S}
            return None
        if len(self._coming) > THREADS * DEPTH:
            self._coming = {p: f for p, f in self._coming.items() if not f.done()}
        future = self._coming[piece] = self._pool.submit(_bring, wanted)
        return future

    def close(self) -> None:
        """End the threads, once they have finished what they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _bring(wanted: Wanted) -> None:
    wanted.read()  # and keep it on the disk, not here


def ahead(
    requests: Iterable[R],
    stages: Sequence[Stage[R]],
    *,
    depth: int = DEPTH,
    threads: int = THREADS,
) -> Iterator[tuple[R, KdcacheError | None]]:
    """Yield requests in order, each when what it needs is on this disk, or why that is not.

    stages: each says what a request needs, once what the stages before it said is there. They are
    called in this process' one thread that iterates. depth: requests of a stage on the way.
    """
    bringer = _Bringer(threads)
    try:
        items: Iterator[tuple[R, KdcacheError | None]] = ((request, None) for request in requests)
        for stage in stages:
            items = _brought(items, stage, bringer=bringer, depth=depth)
        yield from items
    finally:
        bringer.close()


def bring_all(wanted: Iterable[Wanted]) -> None:
    """Bring pieces to this disk, many at once, as far as they can be had."""
    for _ in ahead(wanted, [lambda piece: [piece]]):
        pass


class _Waiting(NamedTuple):
    futures: list[Future[None]]
    size_bytes: int
    error: KdcacheError | None

    def result(self) -> KdcacheError | None:
        """Return why a piece did not come; an object that is missing is for its reader to tell."""
        errors = (future.exception() for future in self.futures)
        found = next((error for error in errors if isinstance(error, KdcacheError)), None)
        return self.error or found


def _brought(
    items: Iterator[tuple[R, KdcacheError | None]],
    stage: Stage[R],
    *,
    bringer: _Bringer,
    depth: int,
) -> Iterator[tuple[R, KdcacheError | None]]:
    queue: deque[tuple[R, _Waiting]] = deque()
    most, size = disk_cache().limit_bytes // SHARE, 0
    for request, error in items:
        waiting = _Waiting([], 0, error) if error else _start(request, stage, bringer)
        queue.append((request, waiting))
        size += waiting.size_bytes
        while len(queue) > depth or (size > most and queue):
            first, done = queue.popleft()
            size -= done.size_bytes
            yield first, done.result()
    for request, waiting in queue:
        yield request, waiting.result()


def _start(request: R, stage: Stage[R], bringer: _Bringer) -> _Waiting:
    futures, size = [], 0
    try:
        for wanted in stage(request):
            future = bringer.bring(wanted)
            if future is not None:
                futures.append(future)
                size += wanted.piece.size_bytes
    except KdcacheError as error:
        return _Waiting(futures, size, error)
    return _Waiting(futures, size, None)
