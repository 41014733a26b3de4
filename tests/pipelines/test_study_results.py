import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from pipelines.study.cases import grid
from pipelines.study.design import ARMS, FULL
from pipelines.study.results import choose, equivalence, intervals, make_tests

LIVE = [0.10, 0.11, 0.09, 0.10, 0.12]


def _tuning_rows(kl: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Return rows of two seeds: 1.0 but for the settings, counted along each grid, in kl."""
    return [
        {"arm": arm, "setting": asdict(setting), "kl": kl.get(number, [1.0, 1.0])[seed]}
        for arm in ARMS
        for number, setting in enumerate(grid(FULL, arm))
        for seed in range(2)
    ]


def test_the_setting_of_the_lowest_mean_over_the_tuning_seeds_is_chosen() -> None:
    chosen = choose(FULL, _tuning_rows({2: [0.1, 0.9], 5: [0.4, 0.4]}))
    assert list(chosen) == list(ARMS)
    for arm, (setting, kl) in chosen.items():
        assert setting == grid(FULL, arm)[5]
        assert kl == pytest.approx(0.4)


def test_a_setting_whose_training_diverged_is_not_chosen() -> None:
    chosen = choose(FULL, _tuning_rows({0: [math.nan, 0.1], 3: [0.9, 0.9]}))
    assert {kl for _, kl in chosen.values()} == {0.9}


def _views(above: dict[int, float]) -> list[dict[str, Any]]:
    """Return a V-curve that lies so far above the live runs."""
    gaps: dict[int | None, float] = {None: 0.0, **above}
    return [
        {"views": v, "mixed": True, "epochs": 600, "seed": s, "kl": kl + gap + spread[s]}
        for v, gap in gaps.items()
        for spread in [np.random.default_rng(v or 0).normal(0, 0.002, len(LIVE)).tolist()]
        for s, kl in enumerate(LIVE)
    ]


@pytest.mark.parametrize(
    ("above", "smallest"),
    [
        ({4: 0.2, 8: 0.01, 16: 0.0}, 8),
        ({4: 0.01, 8: 0.2, 16: 0.0}, 16),  # 4 is within the margin, but 8 is not
        ({4: 0.2, 8: 0.2, 16: 0.2}, None),
        ({4: 0.0, 8: 0.0, 16: 0.0}, 4),
        ({16: -0.2}, None),  # better by more than the margin is not the same, either
    ],
)
def test_the_smallest_number_of_views_is_equivalent_with_all_larger_ones(
    above: dict[int, float], smallest: int | None
) -> None:
    found = equivalence(FULL, _views(above), mixed=True, epochs=600)
    assert found["smallest_views"] == smallest
    assert found["reuse"] == (None if smallest is None else 600 / smallest)
    assert [row["views"] for row in found["rows"]] == list(above)


def test_views_are_paired_by_seed_in_whatever_order_they_come() -> None:
    rows = _views({8: 0.02, 16: 0.0})
    found = equivalence(FULL, rows, mixed=True, epochs=600)
    stored, live = ([row for row in rows if (row["views"] is None) == own] for own in (0, 1))
    assert equivalence(FULL, [*live[::-1], *stored], mixed=True, epochs=600) == found


@pytest.mark.parametrize("seeds", [{0}, {0, 1, 2}, set(range(1, 5))])
def test_views_of_other_seeds_than_the_live_ones_are_refused(seeds: set[int]) -> None:
    rows = [row for row in _views({8: 0.0}) if row["views"] or row["seed"] in seeds]
    with pytest.raises(ValueError, match="8 views: seeds"):
        equivalence(FULL, rows, mixed=True, epochs=600)


def test_a_ratio_is_held_to_a_margin_of_its_own() -> None:
    found = equivalence(FULL, _views({8: 0.02, 16: 0.0}), mixed=True, epochs=600)
    assert (found["smallest_views"], found["smallest_views_ratio"]) == (8, 16)
    assert found["live_kl"] == pytest.approx(0.104, abs=0.002)
    assert [row["ratio"] for row in found["rows"]] == pytest.approx([1.19, 1.0], abs=0.03)


def _runs(gap: float, *, spread: float) -> list[dict[str, Any]]:
    """Return runs of which function matching has the lower KL, early by a gap."""
    random = np.random.default_rng(1)
    return [
        {"arm": arm, "epochs": e, "seed": s, "kl": kl, "agreement": 0.9, "accuracy": 0.9}
        for arm in ARMS
        for e in FULL.budgets
        for s in FULL.seeds
        for kl in [0.5 - gap * (arm == "function matching") + random.normal(0, spread)]
    ]


@pytest.mark.parametrize(
    ("gap", "contradicted"), [(0.1, True), (0.0, False), (-0.1, False)], ids=["yes", "no", "held"]
)
def test_a_claim_is_contradicted_where_the_opposite_separates_after_correction(
    gap: float, contradicted: bool
) -> None:
    early = make_tests(FULL, _runs(gap, spread=0.01))[4:12]
    assert [row["contradicted"] for row in early] == [contradicted] * 8
    assert all(row["p_two_sided_holm"] >= 2 * min(row["p"], 1 - row["p"]) for row in early)


def test_the_opposite_of_a_claim_is_corrected_for_all_registered_tests() -> None:
    early = make_tests(FULL, _runs(0.003, spread=0.01))[4:12]
    alone = [row for row in early if 1 - row["p"] < 0.025]
    assert alone
    assert not any(row["contradicted"] for row in alone)


def test_both_intervals_of_a_mean_are_kept_and_none_of_three_seeds() -> None:
    runs = _runs(0.1, spread=0.05)
    rows = intervals(runs)
    assert len(rows) == len(ARMS) * len(FULL.budgets) * 3
    for row in rows:
        if row["measure"] == "kl":
            assert row["low"] < row["bootstrap_low"] < row["mean"]
            assert row["mean"] < row["bootstrap_high"] < row["high"]
    few = intervals([row for row in runs if row["seed"] < 3])
    ends = ("low", "high", "bootstrap_low", "bootstrap_high")
    assert {row[end] for row in few for end in ends} == {None}


def test_only_registered_tests_are_corrected() -> None:
    level = {arm: 1 - 0.1 * n for n, arm in enumerate(ARMS)}
    random = np.random.default_rng(0)
    runs = [
        {"arm": arm, "epochs": e, "seed": s, "kl": level[arm] + random.normal(0, 0.01)}
        for arm in ARMS
        for e in FULL.budgets
        for s in FULL.seeds
    ]
    rows = make_tests(FULL, runs)
    registered = [row for row in rows if row["registered"]]
    assert len(registered) == 12
    assert all(row["separates"] and row["p"] < row["p_holm"] < 0.05 for row in registered[:4])
    assert not any(row["separates"] for row in registered[4:])  # here it is best early, too
    assert {row["p_holm"] for row in rows if not row["registered"]} == {None}
