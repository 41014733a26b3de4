"""Worker processes that load by request, in order, into memory that they share with this one."""

import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from kdcache.errors import KdcacheError, UsageError
from kdcache.processes import end_with
from kdcache.stores.disk import EvictedError
from kdcache.stores.store import abandon

PREFETCH = 4
GRACE_S = 10.0
START_S = 30.0
STARTS = 3

T = TypeVar("T")


class WorkerDiedError(UsageError):
    """A process that renders died; says nothing of what it rendered."""


def load(
    dataset: Dataset[T], requests: Iterable[Any], *, num_workers: int, forked: bool
) -> Iterator[T]:
    """Return dataset[request] for each request, in order.

    requests: iterated in this process, PREFETCH x num_workers ahead at most; without workers, each
    is loaded here when it is due. forked: workers inherit this process' memory.

    Raises:
        UsageError: a worker died.
    """
    context = "fork" if num_workers and forked else None
    for _ in range(STARTS):
        begun = mmap.mmap(-1, num_workers) if context else None
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=requests if begun is None else _when_begun(requests, begun),
            num_workers=num_workers,
            collate_fn=_keep,
            generator=torch.Generator(),  # else it draws from the trainer's random numbers
            prefetch_factor=PREFETCH if num_workers else None,
            multiprocessing_context=context,
            worker_init_fn=partial(_begin, os.getpid(), begun) if num_workers else None,
        )
        others = set(multiprocessing.active_children())
        try:
            with naming_dead_workers():
                return _Loading(iter(loader))
        except _NotBegunError:
            _kill(set(multiprocessing.active_children()) - others)
    raise WorkerDiedError(
        f"{STARTS} times, processes that render views did not start within {START_S:.0f} s each; "
        "use fewer workers, or newer Python than 3.11"
    )


class _NotBegunError(Exception):
    """A worker has not begun in time."""


def _when_begun(requests: Iterable[Any], begun: mmap.mmap) -> Iterator[Any]:
    """Yield requests, the first when all workers have begun: each sets a byte.

    A fork while another thread, of torch's, makes itself known to Python 3.11 holds a lock that
    nobody frees in the child, which waits for it before it runs anything.
    """
    until = time.monotonic() + START_S
    while begun.find(b"\0") >= 0:
        if time.monotonic() > until:
            raise _NotBegunError
        time.sleep(0.001)
    yield from requests


def _kill(children: set[multiprocessing.process.BaseProcess]) -> None:
    for child in (*children, *children):
        with suppress(RuntimeError):  # torch tells of their death, once
            child.kill()
            child.join()


def load_brought(
    dataset: Dataset[T],
    requests: Iterable[tuple[Any, KdcacheError | None]],
    *,
    num_workers: int,
    forked: bool,
) -> Iterator[T | KdcacheError]:
    """Return dataset[request] for each request, in order, where workers may read this disk alone.

    requests: each with why what it needs was not brought here, if so, as ahead() yields them. What
    is not here any more when a worker needs it, EvictedError, this process loads by itself.

    Raises:
        UsageError: a worker died.
    """
    asked: deque[tuple[Any, KdcacheError | None]] = deque()

    def noted() -> Iterator[Any]:
        for pair in requests:
            asked.append(pair)
            yield pair[0]

    loaded = load(dataset, noted(), num_workers=num_workers, forked=forked)
    return _Brought(dataset, loaded, asked)


class _Brought(Iterator[T | KdcacheError]):
    """What workers loaded, or else this process. Keeps nothing, as _Loading."""

    def __init__(
        self,
        dataset: Dataset[T],
        loaded: Iterator[T],
        asked: deque[tuple[Any, KdcacheError | None]],
    ) -> None:
        self._dataset, self._loaded, self._asked = dataset, loaded, asked

    def __next__(self) -> T | KdcacheError:
        item: T | KdcacheError = next(self._loaded)
        request, error = self._asked.popleft()
        if not isinstance(item, EvictedError):
            return item
        return self._dataset[request] if error is None else copy(error)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, each made while the one before it is used; none is None.

    The first is made here, so that workers are forked here, and a thread makes the others.

    Raises:
        UsageError: a worker died.
    """
    item = next(items, None)
    with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
        while item is not None:
            coming = thread.submit(next, items, None)
            yield item
            try:
                with naming_dead_workers():
                    item = coming.result()
            except KeyboardInterrupt:
                abandon()  # the thread may wait for a store
                raise
            finally:
                del coming  # which holds an error, whose frames hold this


class _Loading(Iterator[T]):
    """What a loader yields. Keeps no item: an error whose frames hold this would never be freed."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items

    def __next__(self) -> T:
        with naming_dead_workers():
            return next(self._items)


def worker_died(error: BaseException) -> bool:
    """Return whether torch raised this, wherever this process was, because a worker had died."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Raise what a reader can act on when a worker dies.

    Raises:
        WorkerDiedError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if not worker_died(error):
            raise
        raise WorkerDiedError(
            "a process that renders views died, perhaps for lack of memory; use fewer workers "
            "or a smaller window, then run the same command again: it goes on from what is kept"
        ) from error


def _keep(item: Any) -> Any:
    return item


def _begin(parent: int, begun: mmap.mmap | None, worker: int) -> None:
    """Tell that this worker process has begun, and end it soon after its parent.

    torch's own watch does not see to it where the pipe to the parent is full: a forked worker holds
    its other end too, and waits for ever.
    """
    if begun is not None:
        begun[worker] = 1
    # The parent's own ways are not this process'; an end in good order raises nothing there. It
    # comes late: a signal to the whole group lets the parent finish what it is at.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_in(GRACE_S))
    end_with(parent)


def _end_in(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()
