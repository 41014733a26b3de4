"""How times are taken: rounds, costs of an image, ratios.

Each round runs everything that is compared once, in turns forwards and backwards, so that what else
the machine does falls on all of it alike; a ratio is taken within a round. Needs Python alone: the
loaders of others run it in an environment of their own.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

Batches = Generator[int, None, None]  # images of each batch; closing it ends its workers

_PROC = Path("/proc")
_DIGITS = 4  # significant ones of what is written


@dataclass(frozen=True)
class Cost:
    """Seconds per image. cpu_s: of this process and its children together."""

    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Return images per second by the clock on the wall."""
        return 1 / self.wall_s


Work = Callable[[int], Cost]  # of a round; measures itself


class Meter:
    """Takes the time from its making to each reading."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = tree_cpu_s(), time.perf_counter()

    def read(self, num_images: int) -> Cost:
        """Return the cost of each of num_images since the meter was made."""
        wall_s = time.perf_counter() - self._wall_s
        return Cost(wall_s / num_images, (tree_cpu_s() - self._cpu_s) / num_images)


def timed(work: Callable[[int], int]) -> Work:
    """Return work that measures itself; what it does gets the round and returns its images."""

    def measured(number: int) -> Cost:
        meter = Meter()
        return meter.read(work(number))

    return measured


def alternate(works: dict[str, Work], *, rounds: int) -> dict[str, list[Cost]]:
    """Return each work's costs, round by round, after a round to warm up."""
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for number in range(-1, rounds):
        names = list(works) if number % 2 == 0 else list(reversed(works))
        for name in names:
            cost = works[name](number + 1)
            if number >= 0:
                costs[name].append(cost)
    return costs


def speedups(
    ours: Sequence[Cost], theirs: Sequence[Cost], *, clock: Literal["wall", "cpu"]
) -> list[float]:
    """Return how many times ours is faster, round by round."""
    pairs = zip(ours, theirs, strict=True)
    if clock == "wall":
        return [base.wall_s / own.wall_s for own, base in pairs]
    return [base.cpu_s / own.cpu_s for own, base in pairs]


def summary(costs: Sequence[Cost]) -> dict[str, float]:
    """Return the medians of costs as figures."""
    return {
        "images_per_s": rounded(median(cost.rate for cost in costs)),
        "cpu_us_per_image": rounded(1e6 * median(cost.cpu_s for cost in costs)),
    }


def tree_cpu_s() -> float:
    """Return the CPU-seconds of this process and its child processes, dead ones too."""
    living = sum(_process_cpu_s(child.pid) for child in multiprocessing.active_children())
    dead = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + dead.ru_utime + dead.ru_stime + living


def _process_cpu_s(pid: int | None) -> float:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def between(batches: Batches, *, start: int, stop: int) -> Cost:
    """Return the cost of an image from the batch that reaches start to that which reaches stop."""
    done = 0
    while done < start:
        done += next(batches)
    meter, before = Meter(), done
    while done < stop:
        done += next(batches)
    return meter.read(done - before)


def rounded(value: float) -> float:
    """Return a number in four significant digits."""
    return float(f"{value:.{_DIGITS}g}")
