"""Claims about the order of an epoch: a function of its arguments, the same for all worlds."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdcache.identity import sample_uid
from kdcache.replay.order import Block, EpochOrder, Extent, sequential_order, shuffled_order


def make_extent(rows: list[int], block: int, *, bad: frozenset[int] = frozenset()) -> Extent:
    total = sum(rows)
    usable = np.array([row not in bad for row in range(total)])
    uids = np.array([sample_uid(f"sample {row}") for row in range(total)], np.uint64)
    return Extent(np.cumsum([0, *rows]), uids, usable, block)


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    rows = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    bad = draw(st.frozensets(st.integers(0, sum(rows) - 1), max_size=sum(rows)))
    return make_extent(rows, draw(st.integers(1, 12)), bad=bad)


def shuffled(extent: Extent, **changes: Any) -> EpochOrder:
    options = {"seed": 1, "epoch": 0, "batch_size": 4, "window": 3}
    return shuffled_order(extent, **(options | changes))


def samples(extent: Extent, order: EpochOrder) -> list[int]:
    """Return the row in the dataset of each view, in the order handed over."""
    blocks = [order.blocks[position] for position in order.block_M]
    starts = [int(extent.starts[b.tar]) + b.start for b in blocks]
    return [start + int(row) for start, row in zip(starts, order.row_M, strict=True)]


options = {
    "seed": st.integers(0, 2**64 - 1),
    "epoch": st.integers(0, 10_000),
    "batch_size": st.integers(1, 20),
    "window": st.integers(0, 20),
}


def steps(extent: Extent, *, world: int, lanes: int, **chosen: int) -> list[list[int]]:
    """Return the samples of each step, those of all ranks after one another."""
    orders = [
        shuffled(extent, rank=rank, world=world, lanes=lanes, **chosen) for rank in range(world)
    ]
    assert len({order.num_batches for order in orders}) == 1, "ranks wait for each other"
    handed = [samples(extent, order) for order in orders]
    size = chosen["batch_size"] // world
    assert {len(mine) for mine in handed} == {orders[0].num_batches * size}
    return [
        [sample for mine in handed for sample in mine[number * size : (number + 1) * size]]
        for number in range(orders[0].num_batches)
    ]


@settings(max_examples=150, deadline=None)
@given(
    extent=extents(),
    lanes=st.integers(1, 12),
    views=st.integers(1, 3),
    chosen=st.fixed_dictionaries(options),
)
def test_a_step_has_the_same_samples_however_many_ranks_share_it(
    extent: Extent, lanes: int, views: int, chosen: dict[str, int]
) -> None:
    chosen = {**chosen, "batch_size": chosen["batch_size"] * lanes, "views": views}
    worlds = [n for n in range(1, lanes + 1) if lanes % n == 0]
    found = [steps(extent, world=world, lanes=lanes, **chosen) for world in worlds]
    assert all(other == found[0] for other in found[1:])
    together = [sample for step in found[0] for sample in step]
    assert max(Counter(together).values(), default=1) <= views, "a sample came too often"
    assert extent.usable[together].all()
    usable = int(extent.usable.sum())
    assert len(found[0]) == usable // chosen["batch_size"] * views, "as many in every epoch"


@settings(max_examples=100, deadline=None)
@given(extent=extents(), lanes=st.integers(1, 6), chosen=st.fixed_dictionaries(options))
def test_ranks_render_one_block_both_at_most(
    extent: Extent, lanes: int, chosen: dict[str, int]
) -> None:
    chosen = {**chosen, "batch_size": chosen["batch_size"] * lanes}
    orders = [
        shuffled(extent, rank=rank, world=lanes, lanes=lanes, **chosen) for rank in range(lanes)
    ]
    for one, next_one in itertools.pairwise(set(order.blocks) for order in orders):
        assert len(one & next_one) <= 1


@settings(max_examples=100, deadline=None)
@given(extent=extents(), lanes=st.integers(1, 6), chosen=st.fixed_dictionaries(options))
def test_blocks_come_in_the_order_of_their_first_use(
    extent: Extent, lanes: int, chosen: dict[str, int]
) -> None:
    order = shuffled(extent, lanes=lanes, **{**chosen, "batch_size": 2 * lanes})
    _, first = np.unique(order.block_M, return_index=True)
    assert len(first) == len(order.blocks), "each is used"
    assert (np.diff(first) > 0).all()


@settings(max_examples=100, deadline=None)
@given(extent=extents(), chosen=st.fixed_dictionaries(options))
def test_an_epoch_leaves_out_less_than_a_batch(extent: Extent, chosen: dict[str, int]) -> None:
    order = shuffled(extent, **chosen)
    usable = int(extent.usable.sum())
    assert order.num_batches == usable // chosen["batch_size"]
    assert usable - len(samples(extent, order)) < chosen["batch_size"]


@settings(max_examples=50, deadline=None)
@given(extent=extents(), chosen=st.fixed_dictionaries(options))
def test_an_order_is_fixed_by_its_arguments(extent: Extent, chosen: dict[str, int]) -> None:
    first = shuffled(extent, **chosen)
    np.random.default_rng().random()
    again = shuffled(extent, **chosen)
    assert samples(extent, first) == samples(extent, again)
    assert first.blocks == again.blocks


@settings(max_examples=100, deadline=None)
@given(extent=extents(), window=st.integers(1, 20), world=st.integers(1, 3))
def test_no_more_blocks_than_the_window_are_open(extent: Extent, window: int, world: int) -> None:
    """A block is open from the first view of it, or of one after it, to its own last view."""
    order = shuffled(extent, window=window * world, world=world, lanes=world, batch_size=world)
    opened = np.maximum.accumulate(order.block_M) if len(order.block_M) else order.block_M
    last = {int(block): at for at, block in enumerate(order.block_M)}
    for at, newest in enumerate(opened):
        held = [b for b in range(int(newest) + 1) if last.get(b, -1) >= at]
        assert len(held) <= window


def test_a_window_of_one_shuffles_within_blocks_alone() -> None:
    extent = make_extent([64, 64], 16)
    order = shuffled(extent, window=1)
    assert (np.diff(order.block_M) >= 0).all()
    rows = order.row_M.reshape(8, 16)
    assert all(sorted(block) == list(range(16)) for block in rows.tolist())
    assert all(sorted(block) != block for block in rows.tolist())


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    extent = make_extent([50, 50, 50], 8)
    seen = {
        tuple(samples(extent, shuffled(extent, seed=seed, epoch=epoch)))
        for seed in range(5)
        for epoch in range(20)
    }
    assert len(seen) == 100


def test_what_one_epoch_leaves_out_another_hands_over() -> None:
    extent = make_extent([7, 7], 3)
    left_out = [
        set(range(14)) - set(samples(extent, shuffled(extent, epoch=epoch, batch_size=10)))
        for epoch in range(30)
    ]
    assert all(len(rows) == 4 for rows in left_out)
    assert set.intersection(*left_out) == set()
    assert len({frozenset(rows) for rows in left_out}) > 10


@pytest.mark.parametrize("sample", [0, 33, 118])
def test_a_sample_may_come_anywhere_in_an_epoch(sample: int) -> None:
    """Its place over 300 epochs is uniform, by the Kolmogorov-Smirnov test."""
    extent = make_extent([40, 40, 39], 5)
    places = [
        samples(extent, shuffled(extent, epoch=epoch, batch_size=1)).index(sample)
        for epoch in range(300)
    ]
    assert stats.kstest(np.array(places) / 119, "uniform").pvalue > 1e-3


def test_ranks_share_a_sample_over_the_epochs() -> None:
    extent = make_extent([40, 40, 40], 5)
    ranks = {
        rank
        for epoch in range(40)
        for rank in range(4)
        if 17 in samples(extent, shuffled(extent, epoch=epoch, rank=rank, world=4, lanes=4))
    }
    assert ranks == {0, 1, 2, 3}


@settings(max_examples=100, deadline=None)
@given(extent=extents(), batch_size=st.integers(1, 20))
def test_without_shuffling_all_usable_samples_come_in_order(
    extent: Extent, batch_size: int
) -> None:
    order = sequential_order(extent, batch_size=batch_size)
    assert samples(extent, order) == np.flatnonzero(extent.usable).tolist()
    assert order.num_batches == math.ceil(int(extent.usable.sum()) / batch_size)


@settings(max_examples=100, deadline=None)
@given(extent=extents(), world=st.integers(1, 5), batch_size=st.integers(1, 20))
def test_without_shuffling_ranks_share_all_samples_in_order(
    extent: Extent, world: int, batch_size: int
) -> None:
    orders = [
        sequential_order(extent, batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    handed = [samples(extent, order) for order in orders]
    assert [sample for mine in handed for sample in mine] == np.flatnonzero(extent.usable).tolist()
    assert max(map(len, handed)) - min(map(len, handed)) <= 1
    assert [o.num_batches for o in orders] == [math.ceil(len(h) / batch_size) for h in handed]


def test_blocks_lie_within_tars_and_skip_those_without_usable_rows() -> None:
    extent = make_extent([5, 3], 2, bad=frozenset({0, 1, 4, 6}))
    assert extent.blocks(0) == [Block(0, 2, 4)]
    assert extent.blocks(1) == [Block(1, 0, 2), Block(1, 2, 3)]
    assert extent.rows(Block(1, 0, 2)).tolist() == [0]


@pytest.mark.parametrize("order", [sequential_order, shuffled])
def test_an_extent_without_usable_rows_has_no_batches(order: Any) -> None:
    found = order(make_extent([3], 2, bad=frozenset({0, 1, 2})), batch_size=1)
    assert (found.num_batches, len(found.block_M)) == (0, 0)
