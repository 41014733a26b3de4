"""Spans: samples to views to teacher to store; knows no engine.

Invariant: a span's objects are fixed by dataset, recipe, teacher, batch size and span alone,
whatever ran before or elsewhere. Rendering, the teacher and writing overlap.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential,
)

from kdcache import __version__
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.data.workers import naming_dead_workers
from kdcache.errors import DataError, KdcacheError
from kdcache.models.teacher import Teacher
from kdcache.pixels.witness import join_layers, pixel_versions
from kdcache.precompute.render import BlockRequest, BlockStream, SpanBlock
from kdcache.precompute.teach import Classroom, SpanTargets, empty_targets


@dataclass(frozen=True)
class Job:
    """What all spans share.

    batch_size: views in one call of the teacher. skip_bad: leave rows whose image cannot be used
    without targets, instead of failing their span. num_workers: processes that render.
    """

    source: BlockSource
    teacher: Teacher
    cache: Cache
    batch_size: int
    skip_bad: bool
    num_workers: int = 0


RETRY_S = 60.0
PASSING = {  # what network file systems say that do not answer just now
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENOLCK,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}

Report = Callable[[int], None]
Begun = Callable[[Span], None]
Failed = Callable[[Span, KdcacheError, bool], None]


def write_versions(teacher: Teacher, *, batch_size: int | None = None) -> dict[str, str]:
    """Return the versions and settings of what makes pixels and targets here."""
    place = teacher.device
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    batch = {} if batch_size is None else {"batch_size": str(batch_size)}
    return {
        **pixel_versions(),
        "kdcache": __version__,
        "device": name,
        **teacher.settings,
        **batch,
    }


def run_span(job: Job, span: Span, *, progress: Report = lambda _: None) -> Commit:
    """Compute, write and commit a span; progress is given the images of each finished block.

    Raises:
        DataError: an image cannot be used, unless the job skips such rows.
        UsageError: the teacher gives something else than finite logits of the cache's classes.
    """
    commits: list[Commit] = []

    def failed(_: Span, error: KdcacheError, __: bool) -> None:
        raise error

    run_spans(job, [span], progress=progress, committed=commits.append, failed=failed)
    return commits[0]


def run_spans(
    job: Job,
    spans: Iterable[Span],
    *,
    progress: Report = lambda _: None,
    begun: Begun = lambda _: None,
    committed: Callable[[Commit], None],
    failed: Failed,
) -> None:
    """Compute, write and commit spans, in order.

    spans: iterated ahead of what is computed. progress is given the images of each block that is
    done, begun each span before its first block is, committed each span's record, failed why a span
    could not be computed, and whether an image or what the teacher made of it is to blame; the
    others go on.

    Raises:
        UsageError: the disk is full or read-only, or a worker process died.
        MismatchError: another process committed a span with other targets.
    """
    with (
        naming_dead_workers(),
        _Run(job, begun=begun, committed=committed, failed=failed) as run,
    ):
        stream = BlockStream(job.source, job.cache.grid, num_workers=job.num_workers)
        for request, block in stream.blocks(spans):
            try:
                run.add(request, block)
            finally:
                stream.done(request)
            progress(request.stop - request.start)


class _Run:
    """The spans of one run, from blocks to commits.

    A span is written by a thread, while the teacher is at the next one.
    """

    def __init__(
        self, job: Job, *, begun: Begun, committed: Callable[[Commit], None], failed: Failed
    ) -> None:
        self._job, self._begun, self._committed, self._failed = job, begun, committed, failed
        self._classroom = Classroom(
            job.teacher,
            job.cache.info.encoding,
            job.cache.info.specs,
            num_classes=job.cache.info.num_classes,
            batch_size=job.batch_size,
            where=lambda span, row: job.source.where(span.tar, row),
        )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[Commit] | None = None
        self._targets: SpanTargets | None = None
        self._ending: SpanTargets | None = None
        self._lost: Span | None = None
        self._started: dict[Span, float] = {}
        self._stopped = threading.Event()

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._end()
                self._wait()
        finally:
            if kind is not None:
                self._stopped.set()
            self._writer.shutdown()

    def add(self, request: BlockRequest, block: SpanBlock | KdcacheError) -> None:
        """Take the next block of a span, the last of which ends it."""
        span = request.span
        if span == self._lost:
            return
        if self._targets is None:
            views, rows = self._job.cache.grid.views(span), self._job.source.num_rows(span.tar)
            specs = self._job.cache.info.specs
            self._targets = empty_targets(span, specs, num_views=len(views), num_rows=rows)
            self._started[span] = time.monotonic()
            self._begun(span)
        try:
            self._classroom.teach(self._usable(block), self._targets)
        except KdcacheError as error:
            self._targets, self._lost = None, span
            # A tar that cannot be read says nothing of its images.
            self._failed(span, error, isinstance(block, SpanBlock))
            return
        if self._ending is not None and self._classroom.is_done(self._ending):
            self._end()
        if request.last:
            self._end()
            self._targets, self._ending = None, self._targets

    def _usable(self, block: SpanBlock | KdcacheError) -> SpanBlock:
        if isinstance(block, KdcacheError):
            raise block
        if block.problems and not self._job.skip_bad:
            row, problem = min(block.problems.items())
            where = self._job.source.where(block.request.span.tar, block.request.start + row)
            raise DataError(
                f"{where}: {problem}; leave such images out with --skip-bad, or repair them, index "
                "again and make another cache"
            )
        return block

    def _end(self) -> None:
        """Write the span whose last block was taught, once its results are there."""
        targets, self._ending = self._ending, None
        if targets is None:
            return
        try:
            self._classroom.finish(targets)
        except KdcacheError as error:
            self._failed(targets.span, error, True)
            return
        self._wait()
        self._writing = self._writer.submit(self._write, targets)

    def _wait(self) -> None:
        """Wait for the span that is being written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._committed(writing.result())

    def _write(self, targets: SpanTargets) -> Commit:
        """Write a span; again, for a while, where the store does not answer."""
        stopped = stop_after_delay(RETRY_S) | stop_when_event_set(self._stopped)
        retrying = Retrying(
            retry=retry_if_exception(_is_passing),
            wait=wait_exponential(multiplier=0.2, max=10),
            stop=stopped,
            sleep=sleep_using_event(self._stopped),
            reraise=True,
        )
        return retrying(
            self._job.cache.write_span,
            targets.span,
            targets.arrays,
            witnesses=[np.stack(role, axis=1) for role in zip(*targets.witnesses, strict=True)],
            layers=join_layers(targets.layers),
            fidelity=targets.fidelity,
            versions=write_versions(self._job.teacher, batch_size=targets.batch_size),
            started=self._started.pop(targets.span),
        )


def _is_passing(error: BaseException) -> bool:
    """Return whether a store that refused may take the same a little later."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in PASSING
