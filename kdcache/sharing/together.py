"""Requests that wait for a store, many at once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


def together(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what a function gives of each item, in order; some are asked for at the same time.

    The first error is raised when its turn comes, and what was not begun by then never is.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
