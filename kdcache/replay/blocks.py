"""One block of the stream, rendered in a worker: pixels, labels and targets, proven by witness."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kdcache.cache.layers import explain_difference
from kdcache.cache.store import Cache, Tile
from kdcache.cache.wanted import wanted_record, wanted_tile
from kdcache.data.blocks import BlockSource
from kdcache.data.ring import Pool, Ring
from kdcache.errors import CorruptError, DataError, KdcacheError, MismatchError
from kdcache.recipe.plan import ViewParams
from kdcache.replay.order import Block
from kdcache.replay.targets import Targets
from kdcache.stores.ahead import Stage, Wanted

# What a view's target is: what the teacher saw there; the first view's; another view's.
Pairing = Literal["replayed", "fixed", "independent"]
SMALL_BYTES = 1 << 14  # pixels of a view that are copied twice in less time than one by one


class Request(NamedTuple):
    """A block to render in some views; prove: compare its witnesses; slot: of the ring, if any."""

    block: Block
    views: tuple[int, ...]
    prove: bool
    slot: int | None = None


@dataclass(frozen=True, eq=False)
class StreamedBlock:
    """A block of N rows in G views, ready to be cut into batches; views one after the other.

    pixels: uint8 (G, N, H, W, 3); where slot is set, None while the ring holds them. Arrays of
    G x N: labels and partner_labels int64, weights float32; fields: encoded targets (G x N, width).
    """

    pixels: NDArray[np.uint8] | None
    slot: int | None
    labels: NDArray[np.int64]
    partner_labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    fields: dict[str, NDArray[Any]] | None


@dataclass(frozen=True, eq=False)
class BlockRenderer(Dataset[StreamedBlock | KdcacheError]):
    """Blocks by request. targets: where targets are read from, if any; pairing: which.

    known_bad: rows without targets in some view, by tar; they are not handed over.
    ring: where pixels are written.
    """

    source: BlockSource
    targets: Targets | None
    pairing: Pairing = "replayed"
    known_bad: dict[int, frozenset[int]] = field(default_factory=dict)
    ring: Ring | None = None

    def __getitem__(self, request: Request) -> StreamedBlock | KdcacheError:
        try:
            return self._render(request)
        except KdcacheError as error:  # raised by the stream: a worker would bury it in a trace
            return error

    @property
    def stages(self) -> list[Stage[Request]]:
        """Return what requests need of stores, one after the other; nothing where all is local."""
        caches = () if self.targets is None else self.targets.caches
        if not all(cache.is_local for cache in caches):
            return [self._wanted_records, self._wanted]
        return [] if self.source.dataset.is_local else [self._wanted]

    def _wanted_records(self, request: Request) -> Iterator[Wanted]:
        """Yield the commit records of a block's tiles."""
        for cache, view in self._tiles(request):
            yield from wanted_record(cache, request.block.tar, view)

    def _wanted(self, request: Request) -> Iterator[Wanted]:
        """Yield a block's images, tiles and witnesses, whose commit records are here."""
        block, witness = request.block, request.prove and self.pairing == "replayed"
        yield from self.source.wanted(block.tar, slice(block.start, block.stop))
        for cache, view in self._tiles(request):
            yield from wanted_tile(cache, block.tar, view, witness=witness)

    def _tiles(self, request: Request) -> Iterator[tuple[Cache, int]]:
        if self.targets is not None:
            for view in request.views:
                stored = self._stored(self.targets, view)
                yield from ((cache, stored) for cache in self.targets.caches)

    def _render(self, request: Request) -> StreamedBlock:
        block, views, _, slot = request
        rows, size = slice(block.start, block.stop), self.source.recipe.size
        if self.ring is None or slot is None:
            slot, out = None, np.empty((len(views), block.num_rows, size, size, 3), np.uint8)
        else:
            out = self.ring[slot][: len(views), : block.num_rows]
        tiles = [self._tile(block.tar, view) for view in views]
        skips = [self._skip(block.tar, tile) for tile in tiles]
        params: list[ViewParams] = []
        while len(params) < len(views):  # views without targets for other rows are another call
            skip, first = skips[len(params)], len(params)
            same = sum(1 for _ in takewhile(skip.__eq__, skips[first:]))
            params += self._render_views(request, first, first + same, skip=skip, out=out)
        labels = self.source.labels(block.tar, rows)
        return StreamedBlock(
            pixels=out if slot is None else None,
            slot=slot,
            labels=np.tile(labels, len(views)),
            partner_labels=np.concatenate([labels[p.partners_N] for p in params]),
            weights=np.concatenate([p.shares(size) for p in params]).astype(np.float32),
            fields=None if self.targets is None else self._fields(self.targets, request, tiles),
        )

    def _render_views(
        self,
        request: Request,
        first: int,
        stop: int,
        *,
        skip: frozenset[int],
        out: NDArray[np.uint8],
    ) -> tuple[ViewParams, ...]:
        block, views = request.block, request.views[first:stop]
        rendered = self.source.render(
            block.tar,
            slice(block.start, block.stop),
            views=views,
            skip=skip,
            whole=self.targets is None,  # else the teacher saw these very images, whole
            out_GNHW3=out[first:stop],
        )
        if rendered.problems:
            row, problem = min(rendered.problems.items())
            raise DataError(f"{self.source.where(block.tar, block.start + row)}: {problem}")
        if request.prove and self.targets is not None and self.pairing == "replayed":
            for view, witness in zip(views, rendered.witnesses().tolist(), strict=True):
                for cache in self.targets.caches:
                    self._prove(cache, block, view, witness)
        return rendered.params

    def _tile(self, tar: int, view: int) -> Tile | None:
        if self.targets is None:
            return None
        return self.targets.read(tar, self._stored(self.targets, view))

    def _stored(self, targets: Targets, view: int) -> int:
        return 0 if self.pairing == "fixed" else view % targets.num_views

    def _fields(
        self, targets: Targets, request: Request, tiles: Sequence[Tile | None]
    ) -> dict[str, NDArray[Any]]:
        """Return a block's targets, view after view, made sure to be of the teacher's classes."""
        block, parts = request.block, []
        for view, tile in zip(request.views, tiles, strict=True):
            assert tile is not None
            arrays = {n: f[block.start : block.stop].numpy() for n, f in tile.fields.items()}
            if not targets.format.in_range(arrays):
                paths = ", ".join(str(cache.place) for cache in targets.caches)
                raise CorruptError(
                    f"{paths}: tar {block.tar}, view {view} names classes that the teacher has "
                    "not; run kdcache repair"
                )
            parts.append(arrays)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _skip(self, tar: int, tile: Tile | None) -> frozenset[int]:
        """Return the rows not to be rendered: those the teacher did not see in this view."""
        if tile is None or self.pairing != "replayed":
            return self.known_bad.get(tar, frozenset())
        return frozenset(np.flatnonzero(~tile.usable).tolist())

    def _prove(self, cache: Cache, block: Block, view: int, witness: int) -> None:
        stored = cache.read_witness(block.tar, view)[block.start // self.source.recipe.block]
        if witness == stored:
            return
        reason = explain_difference(cache, self.source, cache.grid.span_of(block.tar, view))
        raise MismatchError(
            f"{cache.place}: tar {block.tar}, view {view}, rows {block.start} to {block.stop - 1}: "
            f"the pixels made here differ from those that the teacher saw; {reason}"
        )


class Part(NamedTuple):
    """What a batch takes from a block: views and rows of the block, and their places in the batch.

    Views count from the load's first.
    """

    block: StreamedBlock
    views: NDArray[np.intp]
    rows: NDArray[np.intp]
    places: NDArray[np.intp]


def gather(parts: Sequence[Part], count: int, pool: Pool) -> dict[str, Any]:
    """Return the arrays of a batch of `count` views; the pool's are its pixels."""
    first = parts[0].block
    assert first.pixels is not None
    pixels = pool.take((count, *first.pixels.shape[2:]))
    arrays = {
        name: np.empty(count, getattr(first, name).dtype)
        for name in ("labels", "partner_labels", "weights")
    }
    fields = {
        name: np.empty((count, array.shape[1]), array.dtype)
        for name, array in (first.fields or {}).items()
    }
    for block, views, rows, places in parts:
        assert block.pixels is not None
        if pixels[0].nbytes <= SMALL_BYTES:
            pixels[places] = block.pixels[views, rows]
        else:  # which takes no copy between
            for place, view, row in zip(
                places.tolist(), views.tolist(), rows.tolist(), strict=True
            ):
                pixels[place] = block.pixels[view, row]
        flat = views * block.pixels.shape[1] + rows
        for name, array in arrays.items():
            array[places] = getattr(block, name)[flat]
        for name, array in fields.items():
            assert block.fields is not None
            array[places] = block.fields[name][flat]
    return {
        "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "fields": {k: torch.from_numpy(v) for k, v in fields.items()} if fields else None,
    }
