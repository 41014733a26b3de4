"""One span: samples to views to teacher to store; knows no engine.

Invariant: a span's objects are fixed by dataset, recipe, teacher, batch size and span alone,
whatever ran before or elsewhere.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache import __version__
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.errors import DataError, UsageError
from kdcache.models.teacher import Teacher
from kdcache.pixels.render import RenderedBlock
from kdcache.pixels.witness import LayerDigests, pixel_versions
from kdcache.targets.encoding import Encoding, Fields, FieldSpec, to_arrays
from kdcache.targets.fidelity import NO_ROWS, Fidelity, measure


@dataclass(frozen=True)
class Job:
    """What all spans share.

    batch_size: views in one call of the teacher. skip_bad: leave rows whose image cannot be used
    without targets, instead of stopping.
    """

    source: BlockSource
    teacher: Teacher
    cache: Cache
    batch_size: int
    skip_bad: bool


Report = Callable[[int], None]


def write_versions(teacher: Teacher) -> dict[str, str]:
    """Return the versions of what makes pixels and targets here."""
    place = teacher.device
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    return {**pixel_versions(), "kdcache": __version__, "device": name}


def run_span(job: Job, span: Span, *, progress: Report = lambda _: None) -> Commit:
    """Compute, write and commit a span; progress is given the images of each finished block.

    Raises:
        DataError: an image cannot be used, unless the job skips such rows.
        UsageError: the teacher gives something else than finite logits of the cache's classes.
    """
    started = time.monotonic()
    views = job.cache.grid.views(span)
    collected = _Collector(job, len(views), job.source.num_rows(span.tar))
    witnesses, layers = [], LayerDigests()
    for rows in job.source.blocks(span.tar):
        block = job.source.render(span.tar, rows, views=views, layers=layers)
        if block.problems and not job.skip_bad:
            row, problem = next(iter(sorted(block.problems.items())))
            raise DataError(
                f"{job.source.where(span.tar, rows.start + row)}: {problem}; repair the image, or "
                "leave such rows out with --skip-bad"
            )
        witnesses.append(block.witnesses())
        _teach(job, span, rows=rows, block=block, collected=collected)
        progress(rows.stop - rows.start)
    return job.cache.write_span(
        span,
        collected.arrays,
        witness=np.stack(witnesses, axis=1),
        layers=layers.values(),
        fidelity=collected.fidelity,
        versions=write_versions(job.teacher),
        started=started,
    )


class _Collector:
    """The arrays of a span, filled with fill values first."""

    def __init__(self, job: Job, num_views: int, num_rows: int) -> None:
        self.specs: tuple[FieldSpec, ...] = job.cache.info.specs
        self.encoding: Encoding = job.cache.info.encoding
        self.fidelity: Fidelity = NO_ROWS
        self.arrays: dict[str, NDArray[np.generic]] = {
            spec.name: np.full((num_views, num_rows, spec.width), spec.fill, spec.dtype)
            for spec in self.specs
        }

    def add(self, logits_NC: Tensor, view_N: NDArray[np.intp], row_N: NDArray[np.intp]) -> None:
        fields: Fields = self.encoding.encode(logits_NC)
        self.fidelity += measure(logits_NC, fields, self.encoding)
        for name, array in to_arrays(fields, self.specs).items():
            self.arrays[name][view_N, row_N] = array


def _teach(
    job: Job, span: Span, *, rows: slice, block: RenderedBlock, collected: _Collector
) -> None:
    """Run the teacher over a block's usable rows, view after view, in batches."""
    usable = np.flatnonzero(block.usable_N)
    view_M = np.repeat(np.arange(len(block.pixels_GNHW3)), len(usable))
    row_M = np.tile(usable, len(block.pixels_GNHW3))
    for start in range(0, len(row_M), job.batch_size):
        view_N, row_N = (index[start : start + job.batch_size] for index in (view_M, row_M))
        pixels = torch.from_numpy(block.pixels_GNHW3[view_N, row_N]).permute(0, 3, 1, 2)
        logits = job.teacher(pixels)
        _check(job, span, logits=logits, rows_N=row_N + rows.start)
        collected.add(logits, view_N, row_N + rows.start)


def _check(job: Job, span: Span, *, logits: Tensor, rows_N: NDArray[np.intp]) -> None:
    if logits.shape[1] != job.cache.info.num_classes:
        raise UsageError(
            f"teacher {job.teacher.spec}: gave {logits.shape[1]} classes, the cache has "
            f"{job.cache.info.num_classes}"
        )
    bad = (~torch.isfinite(logits).all(1)).nonzero()
    if len(bad):
        row = int(rows_N[int(bad[0])])
        raise UsageError(
            f"teacher {job.teacher.spec}: gave logits that are not finite for "
            f"{job.source.where(span.tar, row)}; check its weights, or use --precision float32"
        )
