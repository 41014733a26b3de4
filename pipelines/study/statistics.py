"""Paired tests over seeds. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipelines.study.summary import FEWEST, estimate

LEVEL = 0.05


class Paired(NamedTuple):
    """A mean difference, its interval, and the p value of what is claimed of it."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(better: Sequence[float], worse: Sequence[float], *, one_sided: bool) -> Paired:
    """Return how much lower `better` is, with its 95% interval.

    p: of Student's paired t test, that the mean is not lower; two-sided: that it is the same.
    """
    found = estimate(tuple(np.subtract(better, worse, dtype=np.float64).tolist()))
    alternative = "less" if one_sided else "two-sided"
    p = stats.ttest_rel(better, worse, alternative=alternative).pvalue
    return Paired(*found, float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number, in their order.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    rising = np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * factors)
    corrected = np.empty(len(p_values))
    corrected[order] = rising.clip(max=1.0)
    return [float(p) for p in corrected]


def equivalence_test(ours: Sequence[float], theirs: Sequence[float], *, margin: float) -> Paired:
    """Return the mean difference, its 90% interval, and p that it is not within the margin.

    Two one-sided paired t tests: p is below 0.05 where the interval is within the margin.

    Source: Schuirmann 1987, doi:10.1007/BF01068419.
    """
    difference_N = np.subtract(ours, theirs, dtype=np.float64)
    low = high = np.nan
    if len(difference_N) >= FEWEST:
        found = stats.ttest_1samp(difference_N, 0.0)
        low, high = map(float, found.confidence_interval(1 - 2 * LEVEL))
    p = _p_of_both(difference_N + margin, difference_N - margin)
    return Paired(float(difference_N.mean()), low, high, p)


def p_of_ratio(ours: Sequence[float], theirs: Sequence[float], *, margin: float) -> float:
    """Return the equivalence test's p that the ratio of the means is not within 1 +- margin."""
    ours_N, theirs_N = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return _p_of_both(ours_N - (1 - margin) * theirs_N, ours_N - (1 + margin) * theirs_N)


def _p_of_both(above_N: NDArray[np.float64], below_N: NDArray[np.float64]) -> float:
    """Return p that not both one mean is above zero and the other below."""
    above = stats.ttest_1samp(above_N, 0.0, alternative="greater")
    below = stats.ttest_1samp(below_N, 0.0, alternative="less")
    return max(float(above.pvalue), float(below.pvalue))
