"""Claims about worker processes: one that stands still as it is forked is replaced."""

import mmap
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from kdcache.data import workers
from kdcache.data.workers import WorkerDiedError, load
from tests import tiny


class _Squares(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        return number * number


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
