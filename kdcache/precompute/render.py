"""Blocks of spans, rendered here or by worker processes, in order.

Workers write pixels into shared memory; what else is known of a block, its witnesses and digests
included, travels with it, so that this process only runs the teacher.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kdcache.cache.layout import Grid, Span
from kdcache.data.blocks import BlockSource
from kdcache.data.ring import Ring, can_share
from kdcache.data.workers import PREFETCH, load, load_brought
from kdcache.errors import KdcacheError
from kdcache.pixels.witness import LayerDigests
from kdcache.stores.ahead import Wanted, ahead

AHEAD = 16  # blocks whose images are brought ahead; their spans are held meanwhile


class BlockRequest(NamedTuple):
    """A block of a span. last: of its tar. slot: of the ring, if any."""

    span: Span
    start: int
    stop: int
    last: bool
    slot: int | None = None


@dataclass(frozen=True, eq=False)
class SpanBlock:
    """A block of N rows in the G views of a span, as the teacher sees it.

    pixels_GNHW3: uint8; None while the ring holds them. problems: why a row cannot be used, by row
    of the block. usable_N: rows that have pixels. witnesses: of each view (G,), of each role's
    rendering. layers: digests of the block in the first view, as the student sees it.
    """

    request: BlockRequest
    pixels_GNHW3: NDArray[np.uint8] | None
    problems: dict[int, str]
    usable_N: NDArray[np.bool_]
    witnesses: tuple[NDArray[np.uint64], ...]
    layers: dict[str, int]


def render_block(
    source: BlockSource,
    request: BlockRequest,
    *,
    views: range,
    out_GNHW3: NDArray[np.uint8] | None = None,
) -> SpanBlock:
    """Return a block of a span in the span's views. out_GNHW3: where pixels are written.

    Where the teacher has a rendering of its own, the student's is made too, for its witness.

    Raises:
        DataError: the tar is missing or changed since it was indexed.
    """
    layers, rows, tar = LayerDigests(), slice(request.start, request.stop), request.span.tar
    alike = source.recipe.teacher is None
    block = source.render(
        tar,
        rows,
        views=views,
        role="teacher",
        layers=layers if alike else None,
        out_GNHW3=out_GNHW3,
    )
    witnesses: tuple[NDArray[np.uint64], ...] = (block.witnesses(),)
    if not alike:
        unusable = (np.flatnonzero(~block.usable_N) + rows.start).tolist()
        student = source.render(tar, rows, views=views, skip=unusable, whole=False, layers=layers)
        assert not student.problems, "what was decoded in whole is decoded in part"
        witnesses = (student.witnesses(), *witnesses)
    return SpanBlock(
        request, block.pixels_GNHW3, block.problems, block.usable_N, witnesses, layers.values()
    )


@dataclass(frozen=True, eq=False)
class _Renderer(Dataset[SpanBlock | KdcacheError]):
    source: BlockSource
    grid: Grid
    ring: Ring | None

    def __getitem__(self, request: BlockRequest) -> SpanBlock | KdcacheError:
        out = None
        if self.ring is not None and request.slot is not None:
            out = self.ring[request.slot][:, : request.stop - request.start]
        try:
            block = render_block(
                self.source, request, views=self.grid.views(request.span), out_GNHW3=out
            )
        except KdcacheError as error:  # of the whole tar; a worker would bury it in a trace
            return error
        return block if out is None else replace(block, pixels_GNHW3=None)


class BlockStream:
    """The blocks of spans, in order. Pixels stay until their block is given back by `done`."""

    def __init__(self, source: BlockSource, grid: Grid, *, num_workers: int) -> None:
        self._source, self._grid, self._num_workers = source, grid, num_workers
        self._ring: Ring | None = None
        if num_workers and can_share():
            size, slots = source.recipe.size_for("teacher"), PREFETCH * num_workers + 2
            shape = (slots, grid.span_views, source.recipe.block, size, size, 3)
            self._ring = Ring(shape)

    def blocks(
        self, spans: Iterable[Span]
    ) -> Iterator[tuple[BlockRequest, SpanBlock | KdcacheError]]:
        """Yield each block of each span, or why its tar cannot be read.

        spans: iterated ahead of what is yielded.

        Raises:
            UsageError: a worker died.
        """
        asked: deque[BlockRequest] = deque()
        for block in self._load(self._requests(spans), asked):
            request = asked.popleft()
            if isinstance(block, SpanBlock) and block.pixels_GNHW3 is None:
                assert self._ring is not None
                assert request.slot is not None
                pixels = self._ring[request.slot][:, : request.stop - request.start]
                block = replace(block, pixels_GNHW3=pixels)
            yield request, block

    def done(self, request: BlockRequest) -> None:
        """Give a block's memory back."""
        if self._ring is not None and request.slot is not None:
            self._ring.free(request.slot)

    def _load(
        self, requests: Iterator[BlockRequest], asked: deque[BlockRequest]
    ) -> Iterator[SpanBlock | KdcacheError]:
        """Return the blocks of requests, each noted as asked, with a slot of the ring if free."""
        renderer, forked = _Renderer(self._source, self._grid, self._ring), self._ring is not None

        def slotted(request: BlockRequest) -> BlockRequest:
            slot = None if self._ring is None else self._ring.take()
            asked.append(request._replace(slot=slot))
            return asked[-1]

        if self._source.dataset.is_local:
            ours = map(slotted, requests)
            return load(renderer, ours, num_workers=self._num_workers, forked=forked)
        brought = ((slotted(r), error) for r, error in ahead(requests, [self._wanted], depth=AHEAD))
        return load_brought(renderer, brought, num_workers=self._num_workers, forked=forked)

    def _wanted(self, request: BlockRequest) -> list[Wanted]:
        return self._source.wanted(request.span.tar, slice(request.start, request.stop))

    def _requests(self, spans: Iterable[Span]) -> Iterator[BlockRequest]:
        for span in spans:
            rows = self._source.blocks(span.tar)
            for part in rows:
                yield BlockRequest(span, part.start, part.stop, part == rows[-1])
