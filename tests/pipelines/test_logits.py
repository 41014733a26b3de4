"""Claims about the reference distribution: what it was made to be like, and fixed by its seed."""

import numpy as np
import pytest

from pipelines.bench.logits import KINDS, log_softmax, outside, simulate_logits


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_classifier_is_as_sure_as_it_should_be(seed: int) -> None:
    logits = simulate_logits("ce", num_rows=4096, seed=seed)
    assert logits.shape == (4096, 1000)
    assert logits.dtype == np.float32
    assert 1 - outside(logits, 1) == pytest.approx(0.69, abs=0.01)
    assert 0.065 <= outside(logits, 10) <= 0.075


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_classes_and_its_confidence(kind: str) -> None:
    """Smoothing takes a tenth from the largest and gives it to all."""
    logits = simulate_logits(kind, num_rows=300)
    expected = KINDS[kind]
    assert logits.shape == (300, expected.num_classes)
    assert np.isfinite(logits).all()
    confidence = expected.confidence * (1 - expected.smoothing)
    assert 1 - outside(logits, 1) == pytest.approx(confidence, abs=0.01)


def test_more_classes_and_less_confidence_leave_more_outside() -> None:
    masses = {kind: outside(simulate_logits(kind, num_rows=300), 32) for kind in KINDS}
    assert masses["ce"] < masses["smoothed"] < masses["flat"] < masses["ce21k"]


def test_a_smoothed_teacher_gives_no_class_less_than_its_floor() -> None:
    def least(kind: str) -> float:
        return float(log_softmax(simulate_logits(kind, num_rows=300)).min())

    assert least("ce") < -25
    assert least("smoothed") > np.log(0.1 / 1000) - 4


def test_logits_are_fixed_by_their_seed() -> None:
    first = simulate_logits("ce", num_rows=300, seed=7)
    np.testing.assert_array_equal(first, simulate_logits("ce", num_rows=300, seed=7))
    assert (first != simulate_logits("ce", num_rows=300, seed=8)).any()


def test_log_probabilities_add_up_to_one() -> None:
    probs = np.exp(log_softmax(simulate_logits("ce", num_rows=50).astype(np.float32)))
    assert probs.sum(1) == pytest.approx(1, abs=1e-5)
