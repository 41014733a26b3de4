"""Paired tests over seeds. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from pipelines.study.summary import bootstrap

LEVEL = 0.05


class Paired(NamedTuple):
    """A mean difference, its interval, and the p value of what is claimed of it."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(better: Sequence[float], worse: Sequence[float], *, one_sided: bool) -> Paired:
    """Return how much lower `better` is, with its 95% bootstrap interval (percentiles).

    p: of Student's paired t test, that the mean is not lower; two-sided: that it is the same.
    """
    found = bootstrap(tuple(np.subtract(better, worse, dtype=np.float64).tolist()))
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
    above = stats.ttest_1samp(difference_N, -margin, alternative="greater")
    below = stats.ttest_1samp(difference_N, margin, alternative="less")
    interval = stats.ttest_1samp(difference_N, 0.0).confidence_interval(1 - 2 * LEVEL)
    p = max(float(above.pvalue), float(below.pvalue))
    return Paired(float(difference_N.mean()), float(interval.low), float(interval.high), p)
