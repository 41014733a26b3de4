"""Whether a store answers, lists and serves ranges, and how long each takes."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from kdcache.doctor.section import Section, judged
from kdcache.errors import UsageError
from kdcache.stores.clients import PATIENCE, patience_s
from kdcache.stores.location import parse_place
from kdcache.stores.store import Store

PATIENCE_S = 6.0
KNOWN = ("catalog.json", "manifest.json", "zarr.json", "dataset.json")
PART_BYTES = 1 << 16
ASKED = 3
SLOW_S = 0.2

T = TypeVar("T")


def access(text: str) -> Section:
    """Return what the store at a place does, and its latency; credentials are never shown.

    Raises:
        UsageError: it is no place, refuses, or does not answer within seconds.
    """
    store = Store(parse_place(text))
    with impatient():
        looks = [_timed(partial(_is_there, store, name)) for name in KNOWN]
        latency_s = statistics.median(seconds for _, seconds in looks)
        listed, list_s = _timed(lambda: _listing(store))
        there = next((n for n, look in zip(KNOWN, looks, strict=True) if look[0]), None)
        value: dict[str, Any] = {"place": str(store.place), "latency_s": latency_s}
        value |= {"lists": listed is None, "list_s": list_s, "read": None, "read_s": None}
        if there is None:
            read = "nothing of kdcache lies at its top to be read"
        else:
            size = min(store.size(there) or 0, PART_BYTES)
            times = [_timed(lambda: store.read_range(there, 0, size))[1] for _ in range(ASKED)]
            value |= {"read": there, "read_s": statistics.median(times)}
            read = f"reads {size} bytes of {there} in {1000 * value['read_s']:.0f} ms"
    lists = f"lists in {1000 * list_s:.0f} ms" if listed is None else "does not list"
    warning = "far away; fetch a cache before many epochs" if latency_s > SLOW_S else None
    text = f"{store.place}: answers in {1000 * latency_s:.0f} ms, {lists}, {read}"
    return judged(text, warning, **value)


@contextmanager
def impatient() -> Iterator[None]:
    """Give stores up sooner: within seconds."""
    before, seconds = os.environ.get(PATIENCE), min(patience_s(), PATIENCE_S)
    os.environ[PATIENCE] = f"{seconds:g}"
    try:
        yield
    finally:
        del os.environ[PATIENCE]
        if before is not None:
            os.environ[PATIENCE] = before


def _timed(ask: Callable[[], T]) -> tuple[T, float]:
    started = time.monotonic()
    return ask(), time.monotonic() - started


def _is_there(store: Store, name: str) -> bool:
    """Return whether an object is there: by reading it, which tells a missing bucket apart."""
    try:
        store.read_range(name, 0, 1)
    except FileNotFoundError:
        return False
    return True


def _listing(store: Store) -> UsageError | None:
    """Return why the store lists nothing; None if it lists, as plain HTTP does not."""
    try:
        store.folders("")
    except UsageError as error:
        return error
    return None
