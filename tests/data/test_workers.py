"""Claims about worker processes: one that stands still as it is forked is replaced."""

import gc
import mmap
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from kdcache.data import workers
from kdcache.data.workers import WorkerDiedError, load, one_ahead
from tests import tiny


class _Squares(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        return number * number


def test_an_item_is_made_while_the_one_before_it_is_used() -> None:
    made, threads = threading.Semaphore(0), set[int]()

    def items() -> Iterator[int]:
        for number in range(3):
            threads.add(threading.get_ident())
            made.release()
            yield number

    for number in one_ahead(items()):
        for _ in range(2 if number == 0 else 1 if number == 1 else 0):
            assert made.acquire(timeout=30)
    assert len(threads) == 2
    assert threading.get_ident() in threads


def test_what_goes_wrong_ahead_is_told_where_it_is_due_and_no_thread_is_left() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ZeroDivisionError

    before, found, source = threading.active_count(), [], items()
    gone = weakref.ref(source)
    gc.disable()
    try:
        try:
            found.extend(one_ahead(source))
        except ZeroDivisionError:
            del source
        assert (found, threading.active_count()) == ([0, 1], before)
        assert gone() is None  # without the garbage collector: workers end at once
    finally:
        gc.enable()
    left = one_ahead(iter(range(5)))
    assert next(left) == 0
    left.close()
    assert threading.active_count() == before


def _load_after(still: int, told: Path) -> None:
    """Load with two workers, the first forked of which stand still before they run anything."""
    forked, parent = mmap.mmap(-1, 1), os.getpid()

    def stand_still() -> None:
        if os.getppid() == parent:
            forked[0] += 1
            if forked[0] <= still:
                time.sleep(1000)

    os.register_at_fork(after_in_child=stand_still)
    workers.START_S = 0.5
    try:
        found = list(load(_Squares(), range(20), num_workers=2, forked=True))
        said = f"{found == [n * n for n in range(20)]}"
    except WorkerDiedError as error:
        said = str(error)
    left = [child for child in multiprocessing.active_children() if child.is_alive()]
    told.write_text(f"{said} {len(left)}")


@pytest.mark.parametrize(
    ("still", "says"), [(0, "True"), (1, "True"), (2, "True"), (100, "3 times, processes that")]
)
def test_workers_that_stand_still_as_they_are_forked_are_replaced(
    tmp_path: Path, still: int, says: str
) -> None:
    child = tiny.start_clean(_load_after, still, tmp_path / "told")
    child.join(60)
    assert child.exitcode == 0
    told = (tmp_path / "told").read_text()
    assert told.startswith(says)
    assert told.endswith(" 0")
