"""What a view costs on this machine: the batch job's own parts, timed on some of its blocks.

Rendering is timed in CPU seconds of one thread, as a worker process spends them; the teacher in
seconds of its device, from pixels in memory to encoded targets. The first block and the first calls
warm up and are not counted; figures are medians over blocks.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np
import torch

from kdcache.cache.layout import Span
from kdcache.cache.shard import encode_tile
from kdcache.data.blocks import BlockSource
from kdcache.errors import DataError
from kdcache.models.teacher import Teacher
from kdcache.precompute.render import BlockRequest, SpanBlock, render_block
from kdcache.precompute.sample import SEED, TILE_ROWS
from kdcache.precompute.teach import Classroom, empty_targets
from kdcache.processes import num_cores
from kdcache.targets.encoding import Encoding
from kdcache.targets.packed import Arrays

WARM_UP_VIEWS = 4
NEIGHBOURS = 4  # blocks in a row: what is drawn for a thousand rows at once is paid by the first
ROUNDS = 8  # that fit into the time, if the teacher is slow
MOST_PASSES = 4  # of the teacher over a block, so that its batches overlap as in a job
WITNESS_BYTES = 8


@dataclass(frozen=True)
class ViewCosts:
    """What a view costs.

    teacher_s: seconds of the device. render_s: CPU seconds, where span_views views are made of one
    decoding. target_bytes: stored, its share of witnesses included. teacher_cores: CPU cores that
    the teacher keeps busy meanwhile. cores: CPU cores of this machine, for each of its devices.
    """

    teacher_s: float
    render_s: float
    target_bytes: float
    span_views: int
    teacher_cores: float
    cores: float


@dataclass(frozen=True)
class ProbeOptions:
    """What is tried. batch_size: views in one call of the teacher. seconds: how long."""

    encoding: Encoding
    num_classes: int
    span_views: int
    batch_size: int
    seconds: float


@dataclass(frozen=True)
class Probe:
    """What was found. rendered, taught: views that were timed. seconds: that the probe took."""

    costs: ViewCosts
    rendered: int
    taught: int
    seconds: float


def probe_costs(source: BlockSource, teacher: Teacher, options: ProbeOptions) -> Probe:
    """Return what a view costs here, tried for about options.seconds, and on a block at least.

    Raises:
        DataError: no image can be used, or a tar cannot be read.
        UsageError: the teacher fails, or gives logits that are not finite.
    """
    started = time.monotonic()
    probing = _Probing(source, teacher, options)
    blocks = probing.blocks()
    first, _ = next(blocks)
    pace = min(probing.teach(first, num_views=WARM_UP_VIEWS).view_s for _ in range(2))
    lesson = max(round(options.seconds / ROUNDS / pace), WARM_UP_VIEWS)
    probing.teach(first, num_views=lesson)  # kernels and memory of this size
    renders: list[float] = []
    lessons: list[_Lesson] = []
    rendered, round_s = 0, 0.0
    while not lessons or time.monotonic() - started + round_s < options.seconds:
        began = time.monotonic()
        block, view_s = next(blocks)
        renders.append(view_s)
        rendered += _views(block)
        lessons.append(probing.teach(block, num_views=lesson, keep=True))
        round_s = time.monotonic() - began
    costs = ViewCosts(
        teacher_s=statistics.median(lesson.view_s for lesson in lessons),
        render_s=statistics.median(renders),
        target_bytes=probing.target_bytes(),
        span_views=options.span_views,
        teacher_cores=statistics.median(lesson.cores for lesson in lessons),
        cores=_cores(teacher),
    )
    taught = sum(lesson.num_views for lesson in lessons)
    return Probe(costs, rendered, taught, time.monotonic() - started)


def _cores(teacher: Teacher) -> float:
    """Return the CPU cores that this process may use, divided by the machine's GPUs, if any."""
    return num_cores() / (torch.cuda.device_count() if teacher.device.type == "cuda" else 1)


def _views(block: SpanBlock) -> int:
    assert block.pixels_GNHW3 is not None
    return len(block.pixels_GNHW3) * int(block.usable_N.sum())


def _part(block: SpanBlock, num_views: int) -> SpanBlock:
    """Return a block's first views; or, of the first view alone, some rows."""
    assert block.pixels_GNHW3 is not None
    usable = np.flatnonzero(block.usable_N)
    whole = num_views // len(usable)
    if whole:
        return replace(block, pixels_GNHW3=block.pixels_GNHW3[:whole])
    kept = np.zeros_like(block.usable_N)
    kept[usable[:num_views]] = True
    return replace(block, pixels_GNHW3=block.pixels_GNHW3[:1], usable_N=kept)


class _Lesson(NamedTuple):
    """What a part of a block cost the teacher. view_s: seconds a view. cores: kept busy."""

    num_views: int
    view_s: float
    cores: float


class _Probing:
    """Renders, teaches, and keeps the targets of one tile."""

    def __init__(self, source: BlockSource, teacher: Teacher, options: ProbeOptions) -> None:
        self._source, self._options = source, options
        self._specs = options.encoding.specs(options.num_classes)
        self._first_row = 0
        self._classroom = Classroom(
            teacher,
            options.encoding,
            self._specs,
            num_classes=options.num_classes,
            batch_size=options.batch_size,
            where=lambda span, row: source.where(span.tar, self._first_row + row),
        )
        largest = max(source.num_rows(tar) for tar in range(source.num_tars))
        self._tile_rows = min(largest, TILE_ROWS)
        # A tile holds many images in one view: other views of the same only fill it up.
        self._kept: tuple[list[Arrays], list[Arrays]] = ([], [])

    def blocks(self) -> Iterator[tuple[SpanBlock, float]]:
        """Yield blocks with usable rows, and CPU seconds a view; other views each time round.

        A block's pixels are overwritten by the next.

        Raises:
            DataError: no image can be used.
        """
        recipe, num_views = self._source.recipe, self._options.span_views
        size = recipe.size_for("teacher")
        memory = np.empty((num_views, recipe.block, size, size, 3), np.uint8)
        for turn in count():
            found = False
            for request in self._requests(turn):
                views = range(turn * num_views, (turn + 1) * num_views)
                out = memory[:, : request.stop - request.start]
                began = time.thread_time()
                block = render_block(self._source, request, views=views, out_GNHW3=out)
                seconds = time.thread_time() - began
                if block.usable_N.any():
                    found = True
                    yield block, seconds / _views(block)
            if not found:
                raise DataError(
                    f"{self._source.dataset.root}: no image of the probe can be used; look at them"
                )

    def _requests(self, turn: int) -> Iterator[BlockRequest]:
        """Yield all blocks once, a few neighbours at a time, in random order."""
        runs = []
        for tar in range(self._source.num_tars):
            rows = self._source.blocks(tar)
            runs += [(tar, rows[i : i + NEIGHBOURS]) for i in range(0, len(rows), NEIGHBOURS)]
        for number in np.random.default_rng((SEED, turn)).permutation(len(runs)).tolist():
            tar, parts = runs[number]
            last = self._source.num_rows(tar)
            for part in parts:
                yield BlockRequest(Span(tar, turn), part.start, part.stop, part.stop == last)

    def teach(self, block: SpanBlock, *, num_views: int, keep: bool = False) -> _Lesson:
        """Run the teacher over about so many views: a part of the block, or all of it repeatedly.

        keep: the targets, for a tile.

        Raises:
            UsageError: the teacher fails, or gives logits that are not finite.
        """
        part = _part(block, num_views)
        passes = max(min(num_views // _views(part), MOST_PASSES), 1)
        request = block.request
        self._first_row, num_rows = request.start, request.stop - request.start
        part = replace(part, request=request._replace(start=0, stop=num_rows))
        assert part.pixels_GNHW3 is not None
        targets = empty_targets(
            request.span, self._specs, num_views=len(part.pixels_GNHW3), num_rows=num_rows
        )
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(passes):
            self._classroom.teach(part, targets)
        self._classroom.finish(targets)
        wall, busy = time.perf_counter() - began, time.process_time() - busy
        if keep:
            self._keep({name: rows[:, part.usable_N] for name, rows in targets.arrays.items()})
        return _Lesson(passes * _views(part), wall / (passes * _views(part)), busy / wall)

    def _keep(self, arrays: Arrays) -> None:
        """Keep targets (G, rows, width) for a tile: of first views, and of others."""
        name = next(iter(arrays))
        for view in range(len(arrays[name])):
            kept = self._kept[min(view, 1)]
            if sum(len(rows[name]) for rows in kept) < self._tile_rows:
                kept.append({field: rows[view] for field, rows in arrays.items()})

    def target_bytes(self) -> float:
        """Return the stored bytes a view, in a tile of the targets that were kept."""
        parts = [rows for kept in self._kept for rows in kept]
        tile = {n: np.concatenate([p[n] for p in parts])[: self._tile_rows] for n in parts[0]}
        num_rows = len(next(iter(tile.values())))
        chunks = encode_tile(tile, self._specs, num_rows=num_rows)
        recipe = self._source.recipe
        witnesses = len(recipe.roles) * WITNESS_BYTES / min(recipe.block, self._tile_rows)
        return sum(map(len, chunks.values())) / num_rows + witnesses
