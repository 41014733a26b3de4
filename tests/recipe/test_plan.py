"""Claims about the parameters of views: fixed by names, mixed within the block, fairly drawn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from kdcache.recipe.draws import raw_words
from kdcache.recipe.plan import FULL_WEIGHT, block_slices, mixing_partners, plan_block
from kdcache.recipe.schema import Recipe, parse_recipe

MAX = 2**64 - 1
LEAST_P = 0.001
names = st.integers(0, MAX) | st.sampled_from((0, 2**63, MAX))
seeds = st.integers(0, 2**63 - 1)
blocks = st.lists(names, min_size=1, max_size=70, unique=True)


def u64(values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "seed": 5,
        "size": 16,
        "crop": {"law": "inception"},
        "flip": {"horizontal": 0.5},
        "mix": {"law": "mixup"},
        **changes,
    }
    return parse_recipe({k: v for k, v in fields.items() if v is not None}, source="test")


def partners_of(seed: int, uids_N: NDArray[np.uint64], *, view: int) -> NDArray[np.intp]:
    """Return the partners in one block of all rows."""
    return mixing_partners(seed, uids_N, view=view, block=len(uids_N))


def sizes_of(uids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return an image size for each uid, fixed by it."""
    return (uids[:, None] % u64([97, 89])).astype(np.int64) + 1


@settings(deadline=None, max_examples=200)
@given(seed=seeds, uids=blocks, view=names)
@example(seed=0, uids=[MAX, 0], view=MAX)
def test_partners_are_one_cycle_through_the_block(seed: int, uids: list[int], view: int) -> None:
    partners = partners_of(seed, u64(uids), view=view).tolist()
    walk = [0]
    while (following := partners[walk[-1]]) != 0:
        assert following not in walk
        walk.append(following)
    assert sorted(walk) == list(range(len(uids)))
    if len(uids) > 1:
        assert all(partner != row for row, partner in enumerate(partners))


@settings(deadline=None)
@given(uids=blocks.filter(lambda uids: len(uids) > 1), view=names, other_view=names, seed=seeds)
def test_partners_depend_on_seed_uids_and_view_only(
    uids: list[int], view: int, other_view: int, seed: int
) -> None:
    rows = u64(uids)
    plain = plan_block(
        recipe(seed=seed, flip=None), rows, view=view, sizes_N2=np.ones((len(uids), 2), np.int64)
    )
    other = plan_block(
        recipe(seed=seed, size=3, crop={"law": "mild", "resize": 4}, block=512, resize="pillow"),
        rows,
        view=view,
        sizes_N2=sizes_of(rows),
    )
    assert plain.partners_N.tolist() == other.partners_N.tolist()
    assert plain.weights_N.tolist() == other.weights_N.tolist()
    assert plain.partners_N.tolist() == partners_of(seed, rows, view=view).tolist()


def test_seed_view_and_first_uid_each_change_the_partners() -> None:
    base = partners_of(1, u64(list(range(64))), view=2).tolist()
    assert partners_of(2, u64(list(range(64))), view=2).tolist() != base
    assert partners_of(1, u64(list(range(64))), view=3).tolist() != base
    assert partners_of(1, u64([64, *range(1, 64)]), view=2).tolist() != base


def test_every_partner_is_equally_likely() -> None:
    rows, num_views = u64([9, 4, 7, 1, 8, 3]), 3_000
    counts = np.zeros((6, 6), np.int64)
    for view in range(num_views):
        counts[np.arange(6), partners_of(0, rows, view=view)] += 1
    assert (np.diag(counts) == 0).all()
    others = counts[~np.eye(6, dtype=bool)].reshape(6, 5)
    for row in others:
        assert stats.chisquare(row).pvalue > LEAST_P


@settings(deadline=None, max_examples=60)
@given(uids=blocks, view=names, data=st.data())
def test_a_rows_box_flip_and_weight_do_not_depend_on_its_block(
    uids: list[int], view: int, data: st.DataObject
) -> None:
    company = st.lists(st.sampled_from(uids) | names, min_size=2, max_size=9, unique=True)
    chosen = data.draw(company)
    everyone = u64(sorted({*uids, *chosen}))
    whole = plan_block(recipe(), everyone, view=view, sizes_N2=sizes_of(everyone))
    part = plan_block(recipe(), u64(chosen), view=view, sizes_N2=sizes_of(u64(chosen)))
    rows = np.searchsorted(everyone, u64(chosen))
    assert part.boxes_N4.tolist() == whole.boxes_N4[rows].tolist()
    assert part.flips_N2.tolist() == whole.flips_N2[rows].tolist()
    assert part.weights_N.tolist() == whole.weights_N[rows].tolist()


def test_each_step_takes_its_own_words() -> None:
    """Switching a step on or off leaves the draws of all others as they were."""
    rows = u64(list(range(50)))
    full = plan_block(recipe(), rows, view=3, sizes_N2=sizes_of(rows))
    for off in ({"flip": None}, {"mix": None}, {"crop": {"law": "full"}}):
        less = plan_block(recipe(**off), rows, view=3, sizes_N2=sizes_of(rows))
        if "crop" not in off:
            assert less.boxes_N4.tolist() == full.boxes_N4.tolist()
        if "flip" not in off:
            assert less.flips_N2.tolist() == full.flips_N2.tolist()
        if "mix" not in off:
            assert less.weights_N.tolist() == full.weights_N.tolist()
            assert less.partners_N.tolist() == full.partners_N.tolist()


def test_flip_and_weight_come_from_words_four_and_five() -> None:
    rows = u64([3, MAX])
    words = raw_words(5, rows, view=7, count=6).tolist()
    plan = plan_block(recipe(), rows, view=7, sizes_N2=sizes_of(rows))
    for row, drawn in enumerate(words):
        assert plan.flips_N2[row, 0] == (drawn[4] < 2**63)
        assert plan.weights_N[row] == (drawn[5] >> 11) * 257 >> 53


def test_weights_are_uniform_over_0_to_256() -> None:
    rows = u64(list(range(257 * 200)))
    plan = plan_block(recipe(crop={"law": "full"}), rows, view=0, sizes_N2=sizes_of(rows))
    counts = np.bincount(plan.weights_N)
    assert plan.weights_N.dtype == np.uint16
    assert len(counts) == FULL_WEIGHT + 1
    assert counts.min() > 0
    assert stats.chisquare(counts).pvalue > LEAST_P


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9, 1.0])
def test_flips_happen_at_the_stated_rate(rate: float, axis: str) -> None:
    rows = u64(list(range(20_000)))
    steps = recipe(flip={axis: rate}, crop={"law": "full"})
    both = plan_block(steps, rows, view=1, sizes_N2=sizes_of(rows)).flips_N2
    flips, others = both[:, :: 1 if axis == "horizontal" else -1].T
    assert stats.binomtest(int(flips.sum()), len(rows), rate).pvalue > LEAST_P
    if rate == 1.0:
        assert flips.all()
    assert not others.any()


def test_the_two_flips_are_independent() -> None:
    rows = u64(list(range(20_000)))
    steps = recipe(flip={"horizontal": 0.5, "vertical": 0.5}, crop={"law": "full"})
    flips = plan_block(steps, rows, view=1, sizes_N2=sizes_of(rows)).flips_N2
    counts = np.bincount(flips @ np.array([1, 2]), minlength=4)
    assert stats.chisquare(counts).pvalue > LEAST_P


@settings(deadline=None, max_examples=30)
@given(uid=names, view=names, law=st.sampled_from(("mixup", "cutmix", "switch")))
def test_a_block_of_one_mixes_with_nobody(uid: int, view: int, law: str) -> None:
    chosen = recipe(mix={"law": law})
    plan = plan_block(chosen, u64([uid]), view=view, sizes_N2=np.array([[30, 20]]))
    assert plan.partners_N.tolist() == [0]
    assert plan.weights_N.tolist() == [FULL_WEIGHT]
    assert not plan.cuts_N4.any()


def test_without_mix_and_flip_nothing_is_mixed_or_flipped() -> None:
    rows = u64(list(range(100)))
    plan = plan_block(recipe(mix=None, flip=None), rows, view=0, sizes_N2=sizes_of(rows))
    assert plan.partners_N.tolist() == list(range(100))
    assert (plan.weights_N == FULL_WEIGHT).all()
    assert not plan.cuts_N4.any()
    assert not plan.flips_N2.any()


@settings(deadline=None)
@given(num_rows=st.integers(0, 500), block=st.integers(1, 130))
def test_blocks_cut_a_tar_without_gap_and_only_the_last_is_short(num_rows: int, block: int) -> None:
    parts = block_slices(num_rows, block)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(num_rows))
    assert all(part.stop - part.start == block for part in parts[:-1])
    assert all(0 < part.stop - part.start <= block for part in parts)


def test_the_parameters_of_a_view_never_change() -> None:
    """The golden words of one block: a change here is a change of every cache."""
    rows = u64([0, 1, 2**63, MAX, 12_345_678_901_234_567_890])
    sizes = np.array([[500, 375], [375, 500], [1, 1], [33, 1000], [64, 64]])
    plan = plan_block(recipe(seed=2**63 - 1), rows, view=2**40, sizes_N2=sizes)
    assert plan.boxes_N4.tolist() == [
        [108, 31, 384, 311],
        [78, 341, 130, 145],
        [0, 0, 1, 1],
        [0, 478, 33, 44],
        [8, 8, 44, 41],
    ]
    assert plan.flips_N2[:, 0].tolist() == [False, True, False, True, False]
    assert not plan.flips_N2[:, 1].any()
    assert plan.partners_N.tolist() == [2, 0, 3, 4, 1]
    assert plan.weights_N.tolist() == [230, 239, 217, 172, 158]
