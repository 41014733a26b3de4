"""Requests that wait for a store, many at once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kdcache.stores.store import abandon

THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


def together(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what a function gives of each item, in order; some are asked for at the same time.

    The first error is raised when its turn comes, and what was not begun by then never is. Ctrl-C
    waits for nothing.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            yield from pool.map(function, items)
        except KeyboardInterrupt:
            abandon()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
