import numpy as np
import pytest
from scipy import stats

from pipelines.study.statistics import equivalence_test, holm, paired_test

LOW = [0.10, 0.12, 0.11, 0.15, 0.09]
HIGH = [0.20, 0.21, 0.25, 0.24, 0.18]


def test_a_paired_test_gives_the_mean_difference_and_students_p() -> None:
    found = paired_test(LOW, HIGH, one_sided=True)
    difference = np.subtract(LOW, HIGH)
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(5))
    assert found.difference == pytest.approx(-0.102)
    assert found.p == pytest.approx(stats.t.cdf(t, 4))
    assert found.p < 0.01


def test_a_one_sided_test_speaks_for_one_side_alone() -> None:
    assert paired_test(HIGH, LOW, one_sided=True).p == pytest.approx(
        1 - paired_test(LOW, HIGH, one_sided=True).p
    )
    two = paired_test(HIGH, LOW, one_sided=False)
    assert two.p == pytest.approx(2 * paired_test(LOW, HIGH, one_sided=True).p)


def test_the_interval_holds_the_mean_in_nineteen_of_twenty_samples() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        difference = random.normal(-0.1, 0.05, 30)
        found = paired_test(difference.tolist(), [0.0] * 30, one_sided=True)
        assert found.low < found.difference < found.high
        held += found.low <= -0.1 <= found.high
    assert 0.90 <= held / 200 <= 0.98


def test_equal_data_have_equal_intervals() -> None:
    assert paired_test(LOW, HIGH, one_sided=True) == paired_test(LOW, HIGH, one_sided=True)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Wikipedia's example
        ([0.5], [0.5]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm_corrects_by_what_is_left(given: list[float], corrected: list[float]) -> None:
    assert holm(given) == pytest.approx(corrected)


def test_small_differences_of_little_spread_are_equivalent_and_others_are_not() -> None:
    theirs = [0.10, 0.20, 0.15, 0.12, 0.18]
    near = [
        value + bit for value, bit in zip(theirs, [0.001, -0.002, 0.0, 0.002, 0.001], strict=True)
    ]
    found = equivalence_test(near, theirs, margin=0.03)
    assert found.p < 0.001
    assert -0.03 < found.low < found.difference < found.high < 0.03
    far = [value + 0.05 for value in near]
    assert equivalence_test(far, theirs, margin=0.03).p > 0.95
    spread = [value + bit for value, bit in zip(theirs, [0.1, -0.1, 0.09, -0.09, 0.0], strict=True)]
    assert equivalence_test(spread, theirs, margin=0.03).p > 0.05


@pytest.mark.parametrize("seed", range(20))
def test_equivalence_is_an_interval_within_the_margin(seed: int) -> None:
    random = np.random.default_rng(seed)
    ours, theirs = random.normal(0.01, 0.02, 5), random.normal(0, 0.01, 5)
    found = equivalence_test(ours.tolist(), theirs.tolist(), margin=0.03)
    assert (found.p < 0.05) == (found.low > -0.03 and found.high < 0.03)
