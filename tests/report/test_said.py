from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.cache.layout import Span
from kdcache.report.said import (
    NONE,
    Said,
    class_rows,
    coverage,
    extremes,
    histogram,
    main_labels,
    what_was_said,
)
from kdcache.targets.encoding import parse_encoding

SEEDS = st.integers(0, 2**32 - 1)


def _said(encoding: str, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Said:
    classes, made = logits.shape[1], parse_encoding(encoding, logits.shape[1])
    target = made.decode(
        made.encode(torch.from_numpy(logits)), num_classes=classes, temperature=1.0
    )
    rows = np.arange(len(logits))
    return what_was_said(target, tar=3, view=7, rows=rows, labels=labels, num_classes=classes)


def _random(
    seed: int, *, rows: int = 40, classes: int = 9
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, classes)).astype(np.float32)
    return logits, rng.integers(-1, classes, rows)


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 12))
def test_a_dense_target_says_what_its_softmax_says(seed: int, classes: int) -> None:
    logits, labels = _random(seed, classes=classes)
    said = _said("dense:f2", logits, labels)
    stored = logits.astype(np.float16).astype(np.float64)
    probs = np.exp(stored) / np.exp(stored).sum(1, keepdims=True)
    order = np.argsort(-probs, axis=1, kind="stable")
    np.testing.assert_allclose(said.confidence, probs.max(1), rtol=5e-3)
    np.testing.assert_allclose(said.entropy, -(probs * np.log(probs)).sum(1), atol=2e-3)
    best = np.take_along_axis(probs, said.best[:, None], 1)[:, 0]
    second = np.take_along_axis(probs, said.second[:, None], 1)[:, 0]
    np.testing.assert_allclose(best, np.take_along_axis(probs, order[:, :1], 1)[:, 0], rtol=5e-3)
    np.testing.assert_allclose(second, np.take_along_axis(probs, order[:, 1:2], 1)[:, 0], rtol=5e-3)
    known = labels >= 0
    np.testing.assert_allclose(said.agreed[known], probs[known, labels[known]], rtol=5e-3)
    assert np.isnan(said.agreed[~known]).all()


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(["topk:1", "topk:3", "packed:3", "adaptive:0.05"]))
def test_a_sparse_target_says_what_it_says_when_spread_over_all_classes(
    seed: int, encoding: str
) -> None:
    logits, labels = _random(seed)
    said = _said(encoding, logits, labels)
    made = parse_encoding(encoding, 9)
    target = made.decode(made.encode(torch.from_numpy(logits)), num_classes=9, temperature=1.0)
    logs = target.dense(9).double().numpy()
    probs = np.exp(logs)
    np.testing.assert_allclose(said.entropy, -(probs * logs).sum(1), atol=2e-3)
    best = said.best
    np.testing.assert_allclose(said.confidence, probs[np.arange(40), best], rtol=1e-4)
    assert (best == logits.argmax(1)).mean() > 0.9
    known = labels >= 0
    np.testing.assert_allclose(said.agreed[known], probs[known, labels[known]], rtol=1e-4)
    if encoding == "topk:1":
        assert (said.second == NONE).all()


@given(st.lists(st.floats(-1, 3, width=32) | st.just(float("nan"))), st.integers(1, 30))
def test_a_histogram_counts_every_value_once(values: list[float], bins: int) -> None:
    array = np.array(values, np.float32)
    counts = histogram(array, top=1.5, bins=bins)
    assert len(counts) == bins
    assert counts.sum() == (~np.isnan(array)).sum()
    low, high = (
        histogram(array[array < 0.75], top=1.5, bins=2),
        histogram(array[array >= 0.75], top=1.5, bins=2),
    )
    assert low[1] == 0
    assert high[0] == 0


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5), st.integers(0, 5)), max_size=60))
def test_classes_count_every_view_that_has_one_once(views: list[tuple[int, int, int]]) -> None:
    groups, others, best = (
        np.array(c, np.int64) for c in (zip(*views, strict=True) if views else ([], [], []))
    )
    count = len(views)
    zero, whole = np.zeros(count, np.int64), np.linspace(0, 1, count, dtype=np.float32)
    said = Said(zero, zero, zero, whole, whole, best, zero, groups, whole)
    rows = class_rows(groups, others, said)
    assert [row.number for row in rows] == sorted({g for g, _, _ in views if g >= 0})
    for row in rows:
        mine = [n for n, (g, _, _) in enumerate(views) if g == row.number]
        against = Counter(others[mine][others[mine] >= 0].tolist())
        assert row.views == len(mine)
        assert row.confidence == pytest.approx(float(whole[mine].mean()))
        assert row.agreement == pytest.approx(sum(best[mine] == row.number) / len(mine))
        assert row.times == max(against.values(), default=0)
        assert row.other == NONE if not against else against[row.other] == row.times


@given(
    st.lists(st.tuples(st.floats(0, 9, width=32), st.integers(0, 5)), min_size=1), st.integers(1, 4)
)
def test_extremes_are_the_ends_and_hold_each_sample_once(
    views: list[tuple[float, int]], count: int
) -> None:
    entropy = np.array([e for e, _ in views], np.float32)
    samples = np.array([s for _, s in views], np.int64)
    for found, sign in zip(extremes(entropy, samples, count), (1, -1), strict=True):
        assert len(found) == min(count, len(set(samples.tolist())))
        assert len({int(samples[n]) for n in found}) == len(found)
        ends = sorted(min(sign * entropy[samples == s]) for s in set(samples.tolist()))
        assert [float(sign * entropy[n]) for n in found] == ends[: len(found)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), SEEDS)
def test_a_map_of_coverage_counts_every_span_once(
    tars: int, runs: int, rows: int, columns: int, seed: int
) -> None:
    there = np.random.default_rng(seed).random((tars, runs)) < 0.6
    done = {Span(tar, run) for tar, run in np.argwhere(there).tolist()}
    found = coverage(done, num_tars=tars, num_runs=runs, most=(rows, columns))
    assert found.shape == (min(tars, rows), min(runs, columns))
    heights = np.bincount(np.arange(tars) * len(found) // tars)
    widths = np.bincount(np.arange(runs) * found.shape[1] // runs)
    assert heights.max() - heights.min() <= 1
    assert (found * np.outer(heights, widths)).sum() == pytest.approx(len(done))
    assert ((found == 1).all()) == there.all()


def test_the_main_label_is_that_of_the_larger_share() -> None:
    labels, partners = np.array([4, 5, -1]), np.array([1, 2, 0])
    found = main_labels(labels, partners, np.array([0.5, 0.49, 0.2]))
    assert found.tolist() == [4, -1, 4]
