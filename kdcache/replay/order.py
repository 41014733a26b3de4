"""(seed, epoch, lanes) to the order of views, of which each rank hands over its lanes; pure.

Tars are shuffled, then the blocks of each tar; lanes are equal shares of the rows in that order, so
that two lanes have at most one block in common. Within a lane each view is delayed by a random
share of a window of blocks. A step takes equally many views of each lane, and each rank has equally
many lanes: so a step's views do not depend on the number of ranks, nor on worker processes. All
epochs have the same number of batches; the views left over differ from epoch to epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.draws import Stream, permutation, uniforms
from kdcache.recipe.plan import block_slices


class Block(NamedTuple):
    """Consecutive rows of a tar: number of the tar, first row, and the row after the last."""

    tar: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Extent:
    """The samples to order.

    starts: first row of each tar and the total. uids: uint64 of all rows. usable: bool of all rows.
    block: rows of a block.
    """

    starts: NDArray[np.int64]
    uids: NDArray[np.uint64]
    usable: NDArray[np.bool_]
    block: int

    def blocks(self, tar: int) -> list[Block]:
        """Return the blocks of a tar that hold usable rows."""
        base = int(self.starts[tar])
        rows = block_slices(int(self.starts[tar + 1]) - base, self.block)
        return [
            Block(tar, r.start, r.stop)
            for r in rows
            if self.usable[base + r.start : base + r.stop].any()
        ]

    def rows(self, block: Block) -> NDArray[np.intp]:
        """Return the usable rows of a block, counted within the block."""
        base = int(self.starts[block.tar])
        return np.flatnonzero(self.usable[base + block.start : base + block.stop])


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One rank's share of an epoch.

    blocks: in the order of their first use. block_M, row_M, view_M: for each view in the order
    handed over, its position in blocks, its row within the block, and which of the views of a load
    it is, from 0. num_batches: the same on all ranks, where the order is shuffled.
    """

    blocks: Sequence[Block]
    block_M: NDArray[np.intp]
    row_M: NDArray[np.intp]
    view_M: NDArray[np.intp]
    num_batches: int

    def positions(self, start: int) -> NDArray[np.intp]:
        """Return the positions of the blocks that the views from `start` on need, ascending."""
        return np.unique(self.block_M[start:])


def sequential_order(
    extent: Extent, *, batch_size: int, rank: int = 0, world: int = 1
) -> EpochOrder:
    """Return a rank's share of the usable rows in the order of the tars.

    batch_size: of this rank. The last batch may be shorter; a share may be empty.
    """
    blocks = [block for tar in range(len(extent.starts) - 1) for block in extent.blocks(tar)]
    block_M, row_M = _rows(extent, blocks)
    mine = slice(rank * len(row_M) // world, (rank + 1) * len(row_M) // world)
    block_M, row_M = block_M[mine], row_M[mine]
    return EpochOrder(blocks, block_M, row_M, np.zeros_like(row_M), -(-len(row_M) // batch_size))


def shuffled_order(
    extent: Extent,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    window: int,
    views: int = 1,
    lanes: int = 1,
    rank: int = 0,
    world: int = 1,
) -> EpochOrder:
    """Return a rank's share of a shuffled epoch; views of the last, partial batch are left out.

    batch_size: of a step, over all ranks; a multiple of lanes, as lanes is of world. window: blocks
    over which views are spread, of all lanes together; memory of all ranks holds about that many.
    views: of each sample, all in this epoch, which has as many times the batches.
    """
    blocks = _shuffled_blocks(extent, seed, epoch)
    block_M, row_M = _rows(extent, blocks)
    share, size, own = len(row_M) // lanes, batch_size // lanes, lanes // world
    num_batches = share // size * views
    mine = slice(rank * own * share, (rank + 1) * own * share)
    block_M, row_M = block_M[mine], row_M[mine]
    base_M = np.array([extent.starts[b.tar] + b.start for b in blocks], np.int64)[block_M]
    uids_M = extent.uids[base_M + row_M]
    delay_MG = uniforms(seed, uids_M, view=epoch, count=views, stream=Stream.SHUFFLE)
    place_MG = block_M[:, None] + window / lanes * delay_MG
    order_LM = np.argsort(place_MG.reshape(own, share * views), axis=1, kind="stable")
    order_LM += np.arange(own)[:, None] * share * views
    order_LBN = order_LM[:, : num_batches * size].reshape(own, num_batches, size)
    row, view = np.divmod(order_LBN.swapaxes(0, 1).ravel(), views)
    used, first, position = np.unique(block_M[row], return_index=True, return_inverse=True)
    by_use = np.argsort(first)
    return EpochOrder(
        [blocks[used[i]] for i in by_use],
        np.argsort(by_use)[position],
        row_M[row],
        view,
        num_batches,
    )


def _shuffled_blocks(extent: Extent, seed: int, epoch: int) -> list[Block]:
    num_tars = len(extent.starts) - 1
    ordered = []
    for tar in permutation(seed, 0, view=epoch, count=num_tars, stream=Stream.ORDER):
        blocks = extent.blocks(int(tar))
        order = permutation(seed, int(tar) + 1, view=epoch, count=len(blocks), stream=Stream.ORDER)
        ordered += [blocks[i] for i in order]
    return ordered


def _rows(extent: Extent, blocks: Sequence[Block]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows = [extent.rows(block) for block in blocks]
    position = np.repeat(np.arange(len(blocks)), [len(found) for found in rows])
    return position, np.concatenate(rows) if rows else np.empty(0, np.intp)
