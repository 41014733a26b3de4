"""Claims about mixing: cutmix's rectangles are torchvision's, rows switch at the stated rates."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms.v2 import CutMix

from kdcache.recipe.plan import FULL_WEIGHT, ViewParams, mixing_partners, plan_block
from tests.recipe.tables import mixes, recipe_of

LEAST_P = 0.001
NUM_ROWS = 20_000
MAX = 2**64 - 1


def plan_of(size: int, mix: dict[str, Any], *, num_rows: int = NUM_ROWS) -> ViewParams:
    chosen = recipe_of({"seed": 3, "size": size, "crop": {"law": "full"}, "mix": mix})
    rows, sizes = np.arange(num_rows, dtype=np.uint64), np.full((num_rows, 2), 9)
    return plan_block(chosen, rows, view=2, sizes_N2=sizes)


# --- cutmix ------------------------------------------------------------------------------------


def torchvision_cuts(size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return left, top, width and height of what torchvision pastes, and the share it states."""
    law, image = CutMix(num_classes=2), torch.empty(1).expand(1, 3, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [law.make_params([image]) for _ in range(NUM_ROWS)]
    left, top, right, bottom = np.array([params["box"] for params in drawn]).T
    boxes = np.stack((left, top, right - left, bottom - top), axis=1)
    return boxes, np.array([params["lam_adjusted"] for params in drawn])


@pytest.mark.parametrize("size", [224, 32, 7])
def test_cutmix_rectangles_are_distributed_as_torchvisions(size: int) -> None:
    ours = plan_of(size, {"law": "cutmix"})
    cuts, shares = torchvision_cuts(size)
    sides, theirs = ours.cuts_N4[:, 2:].T, cuts[:, 2:].T
    measures = {
        "share": (ours.shares(size), shares),
        **{name: (ours.cuts_N4[:, i], cuts[:, i]) for i, name in enumerate(("x", "y", "w", "h"))},
        "difference": (sides[0] - sides[1], theirs[0] - theirs[1]),
    }
    p = {name: float(stats.ks_2samp(*pair).pvalue) for name, pair in measures.items()}
    assert min(p.values()) > LEAST_P, p
    other = plan_of(size, {"law": "cutmix"}).cuts_N4[:, 2] + size // 7
    assert stats.ks_2samp(other, cuts[:, 2]).pvalue < LEAST_P  # the test sees another law


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 4096), mix=mixes, view=st.integers(0, MAX))
def test_a_row_is_blended_or_cut_never_both_and_its_share_is_exact(
    size: int, mix: dict[str, Any], view: int
) -> None:
    chosen = recipe_of({"seed": 3, "size": size, "crop": {"law": "full"}, "mix": mix})
    rows = np.arange(50, dtype=np.uint64)
    params = plan_block(chosen, rows, view=view, sizes_N2=np.full((50, 2), 9))
    left, top, wide, tall = params.cuts_N4.T
    assert (params.cuts_N4 >= 0).all()
    assert (left + wide <= size).all()
    assert (top + tall <= size).all()
    area = wide * tall
    assert not (area.astype(bool) & (params.weights_N < FULL_WEIGHT)).any()
    expected = [
        1 - cut / size**2 if cut else weight / 256
        for cut, weight in zip(area.tolist(), params.weights_N.tolist(), strict=True)
    ]
    assert params.shares(size).tolist() == expected
    if mix["law"] == "mixup":
        assert not params.cuts_N4.any()
    if mix["law"] == "cutmix":
        assert (params.weights_N == FULL_WEIGHT).all()
    mixed = mixing_partners(3, rows, view=view, block=50)
    assert params.partners_N.tolist() == mixed.tolist()


def test_a_view_of_one_pixel_keeps_it_under_cutmix() -> None:
    params = plan_of(1, {"law": "cutmix"}, num_rows=500)
    assert not params.cuts_N4[:, 2:].any()
    assert (params.shares(1) == 1.0).all()


# --- mixup or cutmix ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mixup", "cutmix"), [(0.5, 0.5), (0.2, 0.5), (1.0, 0.0), (0.0, 1.0), (0.0, 0.3), (0.7, 0.3)]
)
def test_each_law_is_taken_at_its_stated_rate(mixup: float, cutmix: float) -> None:
    """A row drawn to be mixed with nothing, by its weight or an empty rectangle, is told apart."""
    switch = plan_of(224, {"law": "switch", "mixup": mixup, "cutmix": cutmix})
    blends, cuts = (plan_of(224, {"law": law}) for law in ("mixup", "cutmix"))
    blended, cut = blends.weights_N < FULL_WEIGHT, cuts.cuts_N4[:, 2:].all(axis=1)
    told = blended & cut
    assert told.mean() > 0.98
    by_mixup, by_cutmix = switch.weights_N < FULL_WEIGHT, switch.cuts_N4[:, 2:].all(axis=1)
    for taken, rate in ((by_mixup, mixup), (by_cutmix, cutmix)):
        assert stats.binomtest(int(taken[told].sum()), int(told.sum()), rate).pvalue > LEAST_P
    # Where a law is taken, what it does is what it does alone.
    assert np.array_equal(switch.weights_N, np.where(by_mixup, blends.weights_N, FULL_WEIGHT))
    assert np.array_equal(switch.cuts_N4[by_cutmix], cuts.cuts_N4[by_cutmix])
    if mixup + cutmix == 1.0:
        assert (by_mixup | by_cutmix)[told].all()
    assert np.array_equal(switch.partners_N, blends.partners_N)


def test_the_law_is_drawn_for_each_row_and_view_by_itself() -> None:
    table = {"seed": 3, "size": 8, "crop": {"law": "full"}, "mix": {"law": "switch"}}
    rows, sizes = np.arange(64, dtype=np.uint64), np.full((64, 2), 9)
    plans = [plan_block(recipe_of(table), rows, view=v, sizes_N2=sizes) for v in range(200)]
    blended = np.array([params.weights_N < FULL_WEIGHT for params in plans])
    assert stats.binomtest(int(blended.sum()), blended.size, 0.5 * 256 / 257).pvalue > LEAST_P
    for axis in (0, 1):
        spread = blended.mean(axis=axis).var() / (0.25 / blended.shape[axis])
        assert 0.5 < spread < 2


# --- what a row or a partner without pixels changes ----------------------------------------------


@settings(deadline=None)
@given(mix=mixes, bad=st.lists(st.booleans(), min_size=30, max_size=30))
def test_unmixed_rows_keep_all_of_themselves_and_the_others_what_they_had(
    mix: dict[str, Any], bad: list[bool]
) -> None:
    before, rows = plan_of(8, mix, num_rows=30), np.array(bad)
    after = before.unmixed(rows)
    assert (after.shares(8)[rows] == 1.0).all()
    assert not after.cuts_N4[rows].any()
    assert (after.weights_N[rows] == FULL_WEIGHT).all()
    assert np.array_equal(after.shares(8)[~rows], before.shares(8)[~rows])
    assert np.array_equal(after.cuts_N4[~rows], before.cuts_N4[~rows])
    assert after.weights_N.dtype == np.uint16
    for name in ("boxes_N4", "flips_N2", "steps_NK6", "partners_N"):
        assert getattr(after, name) is getattr(before, name)
