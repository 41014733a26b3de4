"""How much of the study is done, told from the files that are there, and the time it took."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path

from kdcache.files import write_whole
from pipelines.study.kept import Task, files, is_whole, unit_file

_ENOUGH = 0.1  # of what was left at the start: the first teachers say nothing of the speed


class Progress:
    """Lines for who waits. Only time in which something is made counts as the study's."""

    def __init__(self, folder: Path, tasks: Sequence[Task]) -> None:
        self._folder, self._tasks = folder, tasks
        self._units = [unit for task in tasks for unit in task.units]
        self._started, self._before = time.monotonic(), self._done()
        self._total = sum(unit.passes for unit in self._units)
        self._clock = folder / "seconds.json"
        self._earlier_s = _seconds(self._clock)
        self._making = False

    @property
    def _this_run_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Return the seconds that this run and those before it took to make what is there."""
        return self._earlier_s + self._making * self._this_run_s

    def _done(self) -> int:
        return sum(u.passes for u in self._units if is_whole(unit_file(self._folder, u).path))

    def start(self) -> None:
        """Say what is there already."""
        if all(is_whole(file.path) for task in self._tasks for file in files(self._folder, task)):
            said = "all is done, and only the report is made"
        elif self._before:
            said = f"goes on: {self._before / self._total:.0%} was done before"
        else:
            said = "starts"
        print(f"{said} ({self._folder})", flush=True)

    def work(self) -> None:
        """Say that something is to be made."""
        if not self._making:
            print(f"{self._minutes()}  starting workers", flush=True)
        self._making = True

    def tell(self) -> None:
        """Say how much is done, and how long the rest takes if that can be known."""
        text = json.dumps(self.seconds)
        write_whole(self._clock, lambda file: file.write_text(text))
        done = self._done()
        fresh, left = done - self._before, self._total - done
        rest = ""
        if left and fresh >= _ENOUGH * (self._total - self._before):
            rest = f", about {max(self._this_run_s * left / fresh / 60, 1):.0f} min left"
        print(f"{self._minutes()}  {done / self._total:4.0%} of the training{rest}", flush=True)

    def _minutes(self) -> str:
        return f"{self._this_run_s / 60:6.1f} min"


def _seconds(clock: Path) -> float:
    """Return what a clock's file says; 0 where it says nothing that can be: no result needs it."""
    with suppress(OSError, ValueError, RecursionError):
        seconds = json.loads(clock.read_text(encoding="utf-8"))
        if type(seconds) in (int, float) and 0 <= seconds < inf:
            return float(seconds)
    return 0.0
