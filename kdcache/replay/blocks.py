"""One block of the stream, rendered in a worker: pixels, labels and targets, proven by witness."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kdcache.cache.store import Cache, Tile
from kdcache.data.blocks import BlockSource
from kdcache.errors import DataError, KdcacheError, MismatchError
from kdcache.pixels.render import RenderedBlock
from kdcache.pixels.witness import pixel_versions
from kdcache.recipe.plan import FULL_WEIGHT
from kdcache.replay.order import Block

TILES_KEPT = 4
SHARE_BYTES = 1 << 20  # handing over a shared tensor costs about as much as copying this much


class Request(NamedTuple):
    """A block to render in a view; prove: compare its witness."""

    block: Block
    view: int
    prove: bool


@dataclass(frozen=True, eq=False)
class StreamedBlock:
    """A block of N rows, ready to be cut into batches.

    pixels: uint8 (N, H, W, 3), a tensor in shared memory where it is large. Arrays: labels and
    partner_labels int64, weights float32; fields: encoded targets (N, width).
    """

    pixels: Tensor | NDArray[np.uint8]
    labels: NDArray[np.int64]
    partner_labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    fields: dict[str, NDArray[Any]] | None


@dataclass(frozen=True, eq=False)
class BlockRenderer(Dataset[StreamedBlock | KdcacheError]):
    """Blocks by request. targets: where targets are read from; fixed: all views take view 0's.

    known_bad: rows without targets in some view, by tar; they are not handed over.
    """

    source: BlockSource
    targets: Cache | None
    fixed: bool
    known_bad: dict[int, frozenset[int]] = field(default_factory=dict)

    def __getitem__(self, request: Request) -> StreamedBlock | KdcacheError:
        try:
            return self._render(request)
        except KdcacheError as error:  # raised by the stream: a worker would bury it in a trace
            return error

    def _render(self, request: Request) -> StreamedBlock:
        block, view, _ = request
        rows = slice(block.start, block.stop)
        tile = (
            None
            if self.targets is None
            else _read_tile(self.targets, block.tar, 0 if self.fixed else view)
        )
        skip = self._skip(block.tar, tile)
        rendered = self.source.render(block.tar, rows, views=[view], skip=skip)
        if rendered.problems:
            row, problem = next(iter(rendered.problems.items()))
            raise DataError(f"{self.source.where(block.tar, rows.start + row)}: {problem}")
        if request.prove and self.targets is not None and not self.fixed:
            self._prove(self.targets, request, rendered)
        labels = self.source.labels(block.tar, rows)
        params = rendered.params[0]
        fields = None if tile is None else {k: v[rows].numpy() for k, v in tile.fields.items()}
        pixels = rendered.pixels_GNHW3[0]
        return StreamedBlock(
            pixels=torch.from_numpy(pixels) if pixels.nbytes >= SHARE_BYTES else pixels,
            labels=labels,
            partner_labels=labels[params.partners_N],
            weights=(params.weights_N / FULL_WEIGHT).astype(np.float32),
            fields=fields,
        )

    def _skip(self, tar: int, tile: Tile | None) -> frozenset[int]:
        """Return the rows not to be rendered: those the teacher did not see in this view."""
        if tile is None or self.fixed:
            return self.known_bad.get(tar, frozenset())
        return frozenset(np.flatnonzero(~tile.usable).tolist())

    def _prove(self, cache: Cache, request: Request, rendered: RenderedBlock) -> None:
        block, view, _ = request
        stored = cache.read_witness(block.tar, view)[block.start // self.source.recipe.block]
        if rendered.witnesses()[0] == stored:
            return
        theirs = cache.commit(cache.grid.span_of(block.tar, view)).versions
        ours = pixel_versions()
        differing = [
            f"{name} {theirs.get(name, 'unknown')} there, {found} here"
            for name, found in ours.items()
            if theirs.get(name) != found
        ]
        raise MismatchError(
            f"{cache.path}: tar {block.tar}, view {view}, rows {block.start} to {block.stop - 1}: "
            "the pixels made here differ from those that the teacher saw; libraries: "
            f"{'; '.join(differing) or 'the same versions'}; install those versions, or precompute "
            "a new cache"
        )


@lru_cache(maxsize=TILES_KEPT)
def _read_tile(cache: Cache, tar: int, view: int) -> Tile:
    return cache.read_tile(tar, view)


def gather(
    parts: Sequence[tuple[StreamedBlock, NDArray[np.intp], NDArray[np.intp]]], count: int
) -> dict[str, Any]:
    """Return arrays of `count` views; each part is a block, rows in it, and places in the batch."""
    first = parts[0][0]
    pixels = np.empty((count, *first.pixels.shape[1:]), np.uint8)
    arrays = {
        name: np.empty(count, getattr(first, name).dtype)
        for name in ("labels", "partner_labels", "weights")
    }
    fields = {
        name: np.empty((count, array.shape[1]), array.dtype)
        for name, array in (first.fields or {}).items()
    }
    for block, rows, places in parts:
        pixels[places] = np.asarray(block.pixels)[rows]
        for name, array in arrays.items():
            array[places] = getattr(block, name)[rows]
        for name, array in fields.items():
            assert block.fields is not None
            array[places] = block.fields[name][rows]
    return {
        "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "fields": {k: torch.from_numpy(v) for k, v in fields.items()} if fields else None,
    }
