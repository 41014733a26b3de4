"""How much of the study is done, told from the files that are there, and the time it took."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from math import inf
from pathlib import Path

from kdcache.files import write_whole
from pipelines.study.design import Design
from pipelines.study.kept import Task, is_whole, teacher_file, unit_file

_ENOUGH = 0.2  # of what was left at the start: before, the time that is left would be a guess


def costs(folder: Path, design: Design, task: Task) -> dict[Path, int]:
    """Return about what it costs to make each file of a task, in passes of a student.

    As measured: an epoch of the teacher 180, since it has ten times the images, of the small one
    18, and a view 10. Views are made for the first unit.
    """
    most = design.tuning_epochs if task.part == "validation" else design.budgets[-1]
    views = 2 * most + min(most, design.mild_views)
    found = {unit_file(folder, unit).path: unit.passes for unit in task.units}
    found[unit_file(folder, task.units[0]).path] += 10 * views
    epochs = (180 * design.teacher_epochs, 18 * design.small_teacher_epochs)
    for small, cost in zip(task.teachers, epochs, strict=False):
        file = teacher_file(folder, task.seed, part=task.part, small=small)
        found[file.path] = cost
    return found


class Progress:
    """Lines for who waits.

    seconds: that this run, up to its last line, and those before it took to make what is there.
    Only time in which something is made counts.
    """

    def __init__(self, folder: Path, design: Design, tasks: Sequence[Task]) -> None:
        self._folder = folder
        self._costs = dict(chain(*(costs(folder, design, task).items() for task in tasks)))
        self._started, self._before = time.monotonic(), self._done()
        self._total = sum(self._costs.values())
        self._clock = folder / "seconds.json"
        self.seconds = self._earlier_s = _seconds(self._clock)
        self._making = False

    @property
    def _this_run_s(self) -> float:
        return time.monotonic() - self._started

    def _done(self) -> int:
        return sum(cost for path, cost in self._costs.items() if is_whole(path))

    def start(self) -> None:
        """Say what is there already."""
        if self._before == self._total:
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
        self.seconds = self._earlier_s + self._this_run_s
        text = json.dumps(self.seconds)
        write_whole(self._clock, lambda file: file.write_text(text))
        done = self._done()
        fresh, left = done - self._before, self._total - done
        rest = ""
        if left and fresh >= _ENOUGH * (self._total - self._before):
            rest = f", about {max(self._this_run_s * left / fresh / 60, 1):.0f} min left"
        print(f"{self._minutes()}  {done / self._total:4.0%} of the work{rest}", flush=True)

    def _minutes(self) -> str:
        return f"{self._this_run_s / 60:6.1f} min"


def _seconds(clock: Path) -> float:
    """Return what a clock's file says; 0 where it says nothing that can be: no result needs it."""
    with suppress(OSError, ValueError, RecursionError):
        seconds = json.loads(clock.read_text(encoding="utf-8"))
        if type(seconds) in (int, float) and 0 <= seconds < inf:
            return float(seconds)
    return 0.0
