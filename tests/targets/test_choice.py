"""Claims about the choice of an encoding: what meets the limits, the smallest or most faithful."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.targets.choice import (
    Budget,
    Measured,
    Temperature,
    candidates,
    choose,
    describe,
    pareto,
)
from kdcache.targets.encoding import Dense, TopK, parse_encoding
from kdcache.targets.fidelity import Fidelity, measure
from tests.targets.logits import classifier_logits


def made(k: int, bytes_per_view: float, errors: tuple[float, ...], *, kl: float = 0.1) -> Measured:
    """Return what topk:k is said to cost and lose: errors at T = 1, 2 and 4; KL kl, 2 kl, 4 kl."""
    found = Fidelity(10, (10 * kl, 20 * kl, 40 * kl), 10, tuple(e**2 for e in errors), (1.0,) * 3)
    return Measured(TopK(k), bytes_per_view, found)


LADDER = (
    made(1, 5, (0.10, 0.20, 0.40), kl=1.0),
    made(2, 10, (0.05, 0.21, 0.30), kl=0.5),
    made(3, 20, (0.02, 0.10, 0.25), kl=0.3),
    made(4, 30, (0.03, 0.04, 0.20), kl=0.1),  # worse than 3 at T = 1
    made(5, 80, (0.001, 0.002, 0.003), kl=0.001),
)


def name(measured: Measured) -> str:
    return str(measured.encoding)


# --- candidates ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 3, 10, 64, 100, 101, 1000, 21_841, 70_000])
def test_candidates_fit_and_are_those_of_their_names(num_classes: int) -> None:
    found = candidates(num_classes)
    assert len(set(map(str, found))) == len(found)
    for encoding in found:
        assert parse_encoding(str(encoding), num_classes) == encoding
    logits = torch.randn(2, num_classes, generator=torch.Generator().manual_seed(0))
    for encoding in found:
        assert measure(logits, encoding.encode(logits), encoding).rows == 2
    assert {Dense("f2"), Dense("u1"), TopK(1)} <= set(found)


def test_the_ladder_of_a_thousand_classes_reaches_from_one_class_to_all() -> None:
    found = list(map(str, candidates(1000)))
    assert {"topk:1", "packed:1", "packed:32", "packed:100", "adaptive:0.01"} < set(found)
    assert found[-2:] == ["dense:u1", "dense:f2"]


# --- the front -----------------------------------------------------------------------------


def test_the_front_leaves_out_what_another_betters_in_all() -> None:
    worse = (made(6, 21, (0.02, 0.10, 0.0)), made(7, 20, (0.02, 0.11, 0.0)))
    assert pareto([*reversed(LADDER), *worse]) == LADDER


def test_a_front_counts_both_temperatures() -> None:
    sure, soft = made(1, 10, (0.01, 0.3, 1.0)), made(2, 10, (0.02, 0.2, 1.0))
    assert set(pareto([sure, soft])) == {sure, soft}


def test_equals_are_all_on_the_front() -> None:
    twins = made(1, 10, (0.1, 0.1, 0.1)), made(2, 10, (0.1, 0.1, 0.1))
    assert set(pareto(twins)) == set(twins)


points = st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(0, 4))


@settings(deadline=None)
@given(drawn=st.lists(points, min_size=1, max_size=12))
def test_whatever_is_off_the_front_is_bettered_by_one_on_it(
    drawn: list[tuple[int, int, int]],
) -> None:
    measured = [made(k + 1, size, (a, b, 9)) for k, (size, a, b) in enumerate(drawn)]
    front = pareto(measured)
    costs = dict(zip(measured, drawn, strict=True))
    for one in measured:
        betters = [
            other
            for other in front
            if costs[other] != costs[one]
            and all(x <= y for x, y in zip(costs[other], costs[one], strict=True))
        ]
        assert bool(betters) == (one not in front)
    sizes = [one.bytes_per_view for one in front]
    assert sizes == sorted(sizes)
    assert set(pareto(front)) == set(front)


# --- choosing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(max_gradient_error=0.1), "topk:1"),
        (Budget(max_gradient_error=0.0999), "topk:2"),
        (Budget(max_gradient_error=0.03), "topk:3"),
        (Budget(max_gradient_error=0.05, temperature=2), "topk:4"),
        (Budget(max_gradient_error=0.2, temperature=4), "topk:4"),
        (Budget(max_kl=0.3), "topk:3"),
        (Budget(max_kl=0.3, temperature=2), "topk:4"),
        (Budget(max_kl=0.3, max_gradient_error=0.01), "topk:5"),
        (Budget(max_bytes=30), "topk:3"),  # less error at T = 1 than the larger topk:4
        (Budget(max_bytes=30, temperature=2), "topk:4"),
        (Budget(max_bytes=1e9), "topk:5"),
        (Budget(max_bytes=30, max_gradient_error=0.05), "topk:2"),
        (Budget(max_bytes=20, max_kl=0.3), "topk:3"),
    ],
)
def test_limits_on_losses_choose_the_smallest_and_on_bytes_the_most_faithful(
    budget: Budget, expected: str
) -> None:
    assert name(choose(LADDER, budget)) == expected
    assert name(choose(LADDER[::-1], budget)) == expected


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (
            Budget(max_gradient_error=0.0005),
            "a gradient error of at most 0.05% at T = 1; the closest is topk:5: 80.0 bytes a view, "
            "gradient error 0.10%, KL 0.001 nats at T = 1",
        ),
        (Budget(max_bytes=4), "at most 4 bytes a view; the closest is topk:1: 5.0 bytes"),
        (Budget(max_kl=1e-4, temperature=4), "of at most 0.0001 nats at T = 4; the closest is"),
        (
            Budget(max_gradient_error=0.025, max_bytes=15),
            "2.5% at T = 1 and at most 15 bytes a view; the closest is topk:3: 20.0 bytes",
        ),
    ],
)
def test_limits_that_none_meets_name_the_closest(budget: Budget, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(LADDER, budget)
    assert str(caught.value).startswith("no encoding has ")
    assert words in str(caught.value)


@settings(deadline=None)
@given(
    error=st.none() | st.floats(1e-4, 1),
    kl=st.none() | st.floats(1e-4, 10),
    size=st.none() | st.floats(1, 100),
    temperature=st.sampled_from((1, 2, 4)),
)
def test_what_is_chosen_meets_every_limit_and_nothing_does_if_none_is(
    error: float | None, kl: float | None, size: float | None, temperature: Temperature
) -> None:
    if error is None and kl is None and size is None:
        with pytest.raises(UsageError, match="nothing to choose by"):
            Budget()
        return
    budget = Budget(error, kl, size, temperature)

    def meets(one: Measured) -> bool:
        return (
            (error is None or one.gradient_error(temperature) <= error)
            and (kl is None or one.kl_nats(temperature) <= kl)
            and (size is None or one.bytes_per_view <= size)
        )

    meeting = [one for one in LADDER if meets(one)]
    if not meeting:
        with pytest.raises(UsageError, match="no encoding has"):
            choose(LADDER, budget)
        return
    chosen = choose(LADDER, budget)
    assert chosen in meeting
    if error is None and kl is None:
        assert budget.aim == "the most faithful"
        assert all(
            chosen.gradient_error(temperature) <= one.gradient_error(temperature) for one in meeting
        )
    else:
        assert budget.aim == "the smallest"
        assert all(chosen.bytes_per_view <= one.bytes_per_view for one in meeting)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_gradient_error": 0.0},
        {"max_gradient_error": -0.1},
        {"max_gradient_error": math.nan},
        {"max_kl": math.inf},
        {"max_bytes": 0.0},
    ],
)
def test_limits_are_numbers_above_zero(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be a number above 0"):
        Budget(**limits)


def test_what_is_measured_is_what_its_fidelity_says() -> None:
    logits = classifier_logits(50)
    found = measure(logits, TopK(10).encode(logits), TopK(10))
    one = Measured(TopK(10), 26.2, found)
    for t in (1, 2, 4):
        assert one.gradient_error(t) == found.summary()["gradient_error"][str(t)]
        assert one.kl_nats(t) == found.summary()["kl_nats"][str(t)]
    text = describe(one, Budget(max_bytes=1, temperature=2))
    assert text.startswith("topk:10: 26.2 bytes a view, gradient error ")
    assert text.endswith(" nats at T = 2")
