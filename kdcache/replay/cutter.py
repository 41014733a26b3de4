"""Batches cut out of loaded blocks, in the order of a load."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from kdcache.data.ring import Pool, Ring
from kdcache.errors import KdcacheError
from kdcache.replay.blocks import Part, StreamedBlock, gather
from kdcache.replay.order import EpochOrder


class Cutter:
    """Cuts the batches of a load out of loaded blocks, which it drops once they are used up."""

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        *,
        start: int,
        loaded: Iterator[StreamedBlock | KdcacheError],
        ring: Ring | None,
        pool: Pool,
    ) -> None:
        self._order, self._size, self._loaded = order, batch_size, loaded
        self._ring, self._pool = ring, pool
        self._coming = iter(order.positions(start * batch_size).tolist())
        self._left = np.bincount(order.block_M[start * batch_size :], minlength=len(order.blocks))
        self._blocks: dict[int, StreamedBlock] = {}

    def cut(self, number: int) -> dict[str, Any]:
        """Return the arrays of a batch, loading blocks as they are needed."""
        slots = slice(number * self._size, (number + 1) * self._size)
        block_N, row_N = self._order.block_M[slots], self._order.row_M[slots]
        view_N = self._order.view_M[slots]
        parts, positions = [], np.unique(block_N)
        for position in positions.tolist():
            while position not in self._blocks:
                self._load()
            places = np.flatnonzero(block_N == position)
            parts.append(Part(self._blocks[position], view_N[places], row_N[places], places))
            self._left[position] -= len(places)
        arrays = gather(parts, len(block_N), self._pool)
        for position in positions[self._left[positions] == 0].tolist():
            slot = self._blocks.pop(position).slot
            if self._ring is not None and slot is not None:
                self._ring.free(slot)
        return arrays

    def _load(self) -> None:
        """Take the next block, and find its pixels in the ring."""
        block = next(self._loaded)
        if isinstance(block, KdcacheError):
            try:
                raise block
            finally:
                # An error that this frame holds holds this frame: only the garbage
                # collector would end the workers then, in 5 seconds each.
                del block
        position = next(self._coming)
        if self._ring is not None and block.slot is not None:
            num_rows = self._order.blocks[position].num_rows
            block = replace(block, pixels=self._ring[block.slot][:, :num_rows])
        self._blocks[position] = block
