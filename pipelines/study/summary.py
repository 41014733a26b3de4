"""Rows of the study's result, chosen and summed up over the seeds; pure."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

Row = dict[str, Any]
Measure = Literal["kl", "agreement", "accuracy"]
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean over seeds, and the ends of its bootstrap interval; NaN where there is one seed."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """Return 0 where the interval holds zero, else on which side of it it lies."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


@cache
def _estimate(values: tuple[float, ...]) -> Estimate:
    sample = np.asarray(values, np.float64)
    if len(sample) < 2:
        return Estimate(float(sample.mean()), np.nan, np.nan)
    rng = np.random.Generator(np.random.PCG64(0))
    means = sample[rng.integers(len(sample), size=(RESAMPLES, len(sample)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(sample.mean()), float(low), float(high))


def mean_over_seeds(rows: Sequence[Row], measure: Measure = "kl") -> Estimate:
    """Return a measure's mean over rows, with its 95% interval (percentile bootstrap)."""
    return _estimate(tuple(row[measure] for row in rows))


def difference(
    rows: Sequence[Row], others: Sequence[Row], *, measure: Measure = "kl"
) -> Estimate | None:
    """Return by how much a measure of rows is above that of others, seed by seed.

    None: no seed is in both.
    """
    of_others = {row["seed"]: row[measure] for row in others}
    pairs = [row[measure] - of_others[row["seed"]] for row in rows if row["seed"] in of_others]
    return _estimate(tuple(pairs)) if pairs else None


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have all the values wanted."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def distinct(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """Return the combinations of values that occur, in the order of their first rows."""
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))
