"""Claims about the order of an epoch: a function of its arguments, fair to all ranks."""

import itertools
import math
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
    options = {"seed": 1, "epoch": 0, "rank": 0, "world": 1, "batch_size": 4, "window": 3}
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


@settings(max_examples=150, deadline=None)
@given(extent=extents(), world=st.integers(1, 5), chosen=st.fixed_dictionaries(options))
def test_ranks_get_equal_numbers_of_different_usable_samples(
    extent: Extent, world: int, chosen: dict[str, int]
) -> None:
    orders = [shuffled(extent, rank=rank, world=world, **chosen) for rank in range(world)]
    size = chosen["batch_size"]
    handed = [samples(extent, order) for order in orders]
    assert len({order.num_batches for order in orders}) == 1
    for order, mine in zip(orders, handed, strict=True):
        assert len(mine) == order.num_batches * size
    together = [sample for mine in handed for sample in mine]
    assert len(set(together)) == len(together), "a sample came twice"
    assert extent.usable[together].all()
    usable = int(extent.usable.sum())
    assert orders[0].num_batches == usable // world // size, "as many in every epoch"
    rendered = [set(order.block_M.tolist()) for order in orders]
    for one, next_one in itertools.pairwise(rendered):
        assert len(one & next_one) <= 1, "ranks render one block both at most"


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
    order = shuffled(extent, window=window, world=world, batch_size=1)
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
        if 17 in samples(extent, shuffled(extent, epoch=epoch, rank=rank, world=4, batch_size=1))
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


def test_blocks_lie_within_tars_and_skip_those_without_usable_rows() -> None:
    extent = make_extent([5, 3], 2, bad=frozenset({0, 1, 4, 6}))
    assert extent.blocks(0) == [Block(0, 2, 4)]
    assert extent.blocks(1) == [Block(1, 0, 2), Block(1, 2, 3)]
    assert extent.rows(Block(1, 0, 2)).tolist() == [0]


@pytest.mark.parametrize("order", [sequential_order, shuffled])
def test_an_extent_without_usable_rows_has_no_batches(order: Any) -> None:
    found = order(make_extent([3], 2, bad=frozenset({0, 1, 2})), batch_size=1)
    assert (found.num_batches, len(found.block_M)) == (0, 0)
