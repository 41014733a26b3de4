"""Paired tests over seeds. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipelines.study.summary import FEWEST, estimate, interval

LEVEL = 0.05
Alternative = Literal["greater", "less", "two-sided"]
_ROUNDING = 1e-12  # nats; no spread of seeds is as small


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
    difference_N = _differences(better, worse)
    p = _p(difference_N, "less" if one_sided else "two-sided")
    return Paired(*estimate(tuple(difference_N.tolist())), p)


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
    difference_N = _differences(ours, theirs)
    low = high = np.nan
    if len(difference_N) >= FEWEST:
        low, high = interval(difference_N, share=1 - 2 * LEVEL)
    p = _p_of_both(difference_N + margin, difference_N - margin)
    return Paired(float(difference_N.mean()), low, high, p)


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> NDArray[np.float64]:
    """Return the differences of pairs; unlike NumPy's, none where one is paired with several."""
    return np.asarray([a - b for a, b in zip(ours, theirs, strict=True)], np.float64)


def p_of_ratio(ours: Sequence[float], theirs: Sequence[float], *, margin: float) -> float:
    """Return the equivalence test's p that the ratio of the means is not within 1 +- margin."""
    low, high = (
        _differences(ours, [bound * value for value in theirs])
        for bound in (1 - margin, 1 + margin)
    )
    return _p_of_both(low, high)


def _p_of_both(above_N: NDArray[np.float64], below_N: NDArray[np.float64]) -> float:
    """Return p that not both one mean is above zero and the other below; NaN where one is."""
    return float(np.maximum(_p(above_N, "greater"), _p(below_N, "less")))


def _p(values_N: NDArray[np.float64], alternative: Alternative) -> float:
    """Return Student's p of a mean against zero; of values that are equal, 0 or 1."""
    if len(values_N) < 2:
        return np.nan
    if np.ptp(values_N) <= _ROUNDING:
        mean = float(values_N.mean())
        side = {"greater": mean, "less": -mean, "two-sided": abs(mean)}[alternative]
        return float(side <= _ROUNDING)
    return float(stats.ttest_1samp(values_N, 0.0, alternative=alternative).pvalue)
