"""Claims about fidelity: sums add up, what is exact loses nothing, and losses are as measured."""

import math
from dataclasses import astuple
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.targets.encoding import TopK, parse_encoding
from kdcache.targets.fidelity import NO_ROWS, Fidelity, measure
from kdcache.targets.target import TAIL_TEMPERATURES
from tests.targets.logits import classifier_logits, logits_and_k


@lru_cache
def sample() -> Tensor:
    """Return 400 rows over 1,000 classes, mean largest probability 0.7."""
    return classifier_logits(400, seed=1)


def measured(logits_NC: Tensor, text: str) -> Fidelity:
    encoding = parse_encoding(text, logits_NC.shape[1])
    return measure(logits_NC, encoding.encode(logits_NC), encoding)


def test_the_sample_is_like_an_image_classifiers_logits() -> None:
    probs = sample().softmax(1)
    assert probs.amax(1).mean() == pytest.approx(0.7, abs=1e-3)
    outside = 1 - probs.topk(10).values.sum(1).mean()
    assert 0.01 < outside < 0.1


@settings(deadline=None, max_examples=60)
@given(drawn=logits_and_k(), cut=st.integers(0, 3))
def test_measurements_of_parts_add_up_to_that_of_the_whole(
    drawn: tuple[Tensor, int], cut: int
) -> None:
    logits, k = drawn
    parts = [part for part in (logits[:cut], logits[cut:]) if len(part)]
    total = sum((measured(part, f"topk:{k}") for part in parts), NO_ROWS)
    whole = measured(logits, f"topk:{k}")
    assert (total.rows, total.agree) == (whole.rows, whole.agree)
    assert total.kl == pytest.approx(whole.kl, abs=1e-6)
    assert total.error == pytest.approx(whole.error, abs=1e-9)
    assert total.gradient == pytest.approx(whole.gradient, abs=1e-9)


def test_no_rows_add_nothing_and_sum_up_to_nothing() -> None:
    whole = measured(sample(), "topk:10")
    assert astuple(NO_ROWS + whole) == astuple(whole + NO_ROWS) == astuple(whole)
    assert NO_ROWS.summary() == {}


@settings(deadline=None, max_examples=60)
@given(num_classes=st.integers(2, 300), num_rows=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_what_is_stored_exactly_loses_nothing(num_classes: int, num_rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randint(-60, 60, (num_rows, num_classes), generator=draw) / 4
    found = measured(logits, "dense:f2")
    assert found.rows == num_rows
    assert found.agree == num_rows
    assert all(abs(kl) < 1e-6 * num_rows for kl in found.kl)
    assert all(error < 1e-12 * num_rows for error in found.error)


def test_the_measures_are_those_of_their_definitions() -> None:
    logits = sample()[:50]
    fields = TopK(5).encode(logits)
    found = measure(logits, fields, TopK(5))
    for place, temperature in enumerate(TAIL_TEMPERATURES):
        target = TopK(5).decode(fields, num_classes=1000, temperature=temperature)
        decoded, teacher = target.dense(1000), (logits / temperature).log_softmax(1)
        error = (decoded.exp() - teacher.exp()).square().sum()
        gradient = (teacher.exp() - 1 / 1000).square().sum()
        assert found.error[place] == pytest.approx(float(error), rel=1e-4)
        assert found.gradient[place] == pytest.approx(float(gradient), rel=1e-4)
        kl = torch.nn.functional.kl_div(decoded, teacher, log_target=True, reduction="sum")
        assert found.kl[place] == pytest.approx(float(kl), rel=1e-4)
    summary = found.summary()
    assert summary["top1_agreement"] == 1
    for name in ("kl_nats", "gradient_error"):
        assert list(summary[name]) == ["1", "2", "4"]
    assert summary["kl_nats"]["4"] == found.kl[2] / 50
    assert summary["gradient_error"]["2"] == (found.error[1] / found.gradient[1]) ** 0.5


def test_a_disagreement_on_the_largest_class_is_counted() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    fields = TopK(2).encode(logits.flip(1)[:1].repeat(2, 1))
    assert measure(logits, fields, TopK(2)).agree == 1


@pytest.mark.parametrize(
    ("text", "kl_nats", "errors"),
    [
        # measured: .0308, .109 and .061 nats; 1.04, 4.3 and 21%
        ("topk:10", (0.035, 0.12, 0.07), (0.012, 0.050, 0.23)),
        # measured: .0075, .059 and .043 nats; 0.42, 2.4 and 16%
        ("topk:32", (0.009, 0.07, 0.05), (0.005, 0.028, 0.18)),
        # measured: .0058, .049 and .038 nats; 0.39, 2.1 and 15%
        ("topk:50", (0.007, 0.06, 0.05), (0.005, 0.025, 0.17)),
        # measured: .0308, .109 and .061 nats; 1.06, 4.4 and 21%
        ("packed:10", (0.035, 0.12, 0.07), (0.012, 0.052, 0.23)),
        # measured: .0076, .059 and .043 nats; 0.44, 2.6 and 17%
        ("packed:32", (0.009, 0.07, 0.05), (0.0055, 0.030, 0.18)),
        # measured: .0092, .076 and .053 nats; 0.45, 3.0 and 19%
        ("adaptive:0.0025", (0.011, 0.09, 0.06), (0.0055, 0.034, 0.21)),
        # measured: 7e-8, 3e-7 and 2e-7 nats; .009, .016 and .039%
        ("dense:f2", (1e-6, 1e-6, 1e-6), (2e-4, 3e-4, 6e-4)),
        # measured: 5e-5, 4e-5 and 1e-5 nats; .35, .48 and .53%
        ("dense:u1", (1e-4, 1e-4, 1e-4), (0.005, 0.006, 0.007)),
    ],
)
def test_the_loss_of_each_encoding_is_what_was_measured(
    text: str, kl_nats: tuple[float, ...], errors: tuple[float, ...]
) -> None:
    summary = measured(sample(), text).summary()
    assert summary["top1_agreement"] == 1
    for found, most in zip(summary["kl_nats"].values(), kl_nats, strict=True):
        assert 0 <= found < most
    for found, most in zip(summary["gradient_error"].values(), errors, strict=True):
        assert 0 < found < most


@pytest.mark.parametrize(
    "texts",
    [
        [f"topk:{k}" for k in (1, 3, 10, 32, 100, 1000)],
        [f"packed:{k}" for k in (1, 3, 10, 32, 100)],
        [f"adaptive:{least}" for least in (0.05, 0.02, 0.01, 0.005, 0.002)],
    ],
    ids=["topk", "packed", "adaptive"],
)
def test_more_entries_lose_less(texts: list[str]) -> None:
    found = [measured(sample(), text).summary() for text in texts]
    for fewer, more in pairwise(found):
        for name in ("kl_nats", "gradient_error"):
            assert all(more[name][t] < fewer[name][t] for t in ("1", "2", "4"))


def test_without_the_tail_the_gradient_would_be_several_times_worse() -> None:
    logits = sample()
    fields = TopK(10).encode(logits)
    teacher = logits.softmax(1)
    renormalised = torch.zeros_like(teacher).scatter(
        1, fields["indices"], logits.gather(1, fields["indices"]).softmax(1)
    )
    without = float((renormalised - teacher).square().sum()) ** 0.5
    found = measure(logits, fields, TopK(10))
    assert without > 3 * found.error[0] ** 0.5


@pytest.mark.parametrize(("temperature", "above"), [(1.25, 1), (1.5, 1), (1.75, 1), (3.0, 2)])
@pytest.mark.parametrize("k", [10, 32])
def test_between_stored_temperatures_no_more_is_lost_than_at_the_next(
    k: int, temperature: float, above: int
) -> None:
    logits = sample()
    fields = TopK(k).encode(logits)
    teacher = (logits.double() / temperature).softmax(1)
    target = TopK(k).decode(fields, num_classes=1000, temperature=temperature)
    error = (target.dense(1000).double().exp() - teacher).square().sum()
    relative = float((error / (teacher - 1 / 1000).square().sum()).sqrt())
    stored = list(measure(logits, fields, TopK(k)).summary()["gradient_error"].values())
    assert stored[above - 1] < relative < stored[above]


@pytest.mark.parametrize(
    "text",
    ["topk:1", "topk:3", "topk:4", "packed:1", "packed:4", "adaptive:0.1", "dense:f2", "dense:u1"],
)
@pytest.mark.parametrize(
    "logits",
    [
        torch.tensor([[0.0, -1e4, 1e4, 5.0], [1e4, 1e4, -1e4, -1e4]]),
        torch.tensor([[65504.0, -65504.0, 0.0, 1.0]]).half(),
        torch.zeros(3, 4),
    ],
    ids=["1e4 apart", "float16", "uniform"],
)
def test_extreme_logits_give_finite_measurements(logits: Tensor, text: str) -> None:
    found = measured(logits, text)
    assert all(math.isfinite(value) for value in (*found.kl, *found.error, *found.gradient))
    errors = found.summary()["gradient_error"].values()
    assert all(0 <= value < 1 for value in errors)


def test_a_uniform_teacher_has_no_relative_error() -> None:
    for text, nats in (("topk:2", 1e-5), ("packed:7", 1e-3), ("dense:u1", 1e-5)):
        summary = measured(torch.zeros(3, 7), text).summary()
        assert summary["gradient_error"] == {"1": 0.0, "2": 0.0, "4": 0.0}
        assert all(abs(kl) < nats for kl in summary["kl_nats"].values())
