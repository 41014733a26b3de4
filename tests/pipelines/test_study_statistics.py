import numpy as np
import pytest
from scipy import stats

from pipelines.study.statistics import equivalence_test, holm, p_of_ratio, paired_test
from pipelines.study.summary import bootstrap, estimate

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


@pytest.mark.parametrize(
    ("count", "skewed", "student", "percentiles"),
    [
        (5, False, 0.95, 0.83),
        (10, False, 0.95, 0.90),
        (5, True, 0.88, 0.79),
        (10, True, 0.90, 0.86),
    ],
)
def test_intervals_hold_the_mean_as_often_as_the_limits_say(
    count: int, skewed: bool, student: float, percentiles: float
) -> None:
    random = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(400):
        values = random.exponential(size=count) if skewed else random.normal(1, 1, count)
        for place, interval in enumerate((estimate, bootstrap)):
            found = interval.__wrapped__(tuple(values))
            held[place] += found.low <= 1 <= found.high
    assert held / 400 == pytest.approx([student, percentiles], abs=0.04)


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_leaves_zero_out_where_the_two_sided_test_separates(seed: int) -> None:
    random = np.random.default_rng(seed)
    found = paired_test(random.normal(0.1, 0.1, 5).tolist(), [0.0] * 5, one_sided=False)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_fewer_than_four_seeds_have_no_interval() -> None:
    found = paired_test(LOW[:3], HIGH[:3], one_sided=True)
    assert np.isnan([found.low, found.high]).all()
    assert 0 < found.p < 1
    found = equivalence_test(LOW[:3], HIGH[:3], margin=0.03)
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_is_within_its_margin_where_both_of_its_bounds_separate(seed: int) -> None:
    random = np.random.default_rng(seed)
    theirs = random.normal(1, 0.1, 5)
    ours = theirs * 1.05 + random.normal(0, 0.05, 5)
    p = p_of_ratio(ours.tolist(), theirs.tolist(), margin=0.1)
    above = stats.ttest_rel(ours, 0.9 * theirs, alternative="greater").pvalue
    below = stats.ttest_rel(ours, 1.1 * theirs, alternative="less").pvalue
    assert p == pytest.approx(max(above, below))


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


@pytest.mark.parametrize("margin", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("theirs", [0.0, 0.09, 0.1, 1.7])
@pytest.mark.parametrize("sign", [-1, 1])
def test_equal_differences_are_equivalent_within_the_margin_alone(
    margin: float, theirs: float, sign: int
) -> None:
    for share, p in ((0.99, 0.0), (1.0, 1.0), (1.01, 1.0)):
        ours = [theirs + sign * share * margin] * 5
        assert equivalence_test(ours, [theirs] * 5, margin=margin).p == p


def test_a_ratio_on_its_margin_is_not_within_it() -> None:
    assert p_of_ratio([1.1] * 5, [1.0] * 5, margin=0.1) == 1
    assert p_of_ratio([1.09] * 5, [1.0] * 5, margin=0.1) == 0


@pytest.mark.parametrize("others", [1, 2, 6])
def test_a_value_without_a_partner_is_refused(others: int) -> None:
    theirs = [0.1] * others
    for test in (
        lambda: paired_test(LOW, theirs, one_sided=True),
        lambda: equivalence_test(LOW, theirs, margin=0.03),
        lambda: p_of_ratio(LOW, theirs, margin=0.1),
    ):
        with pytest.raises(ValueError, match="argument 2"):
            test()
