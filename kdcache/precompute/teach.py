"""The teacher over rendered blocks, a batch ahead of its results.

A batch's pixels go to the device from pinned memory, its targets come back likewise; only when the
next batches run is it waited for. Batches never span blocks, so that what a batch holds, and with
it the last bits of some teachers, is fixed by recipe, span and batch size alone.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.cache.layout import Span
from kdcache.errors import UsageError
from kdcache.models.running import NoMemoryError
from kdcache.models.teacher import Teacher
from kdcache.precompute.render import SpanBlock
from kdcache.targets.encoding import Encoding, to_arrays
from kdcache.targets.fidelity import NO_ROWS, Fidelity, from_sums, measure_sums
from kdcache.targets.target import FieldSpec

AHEAD = 2


@dataclass(eq=False)
class SpanTargets:
    """What is known of a span so far.

    arrays: (G, rows, width), fill values at first. witnesses: of each block, as SpanBlock's.
    batch_size: most views in one call of the
    teacher, 0 before the first.
    """

    span: Span
    arrays: dict[str, NDArray[Any]]
    fidelity: Fidelity = NO_ROWS
    witnesses: list[tuple[NDArray[np.uint64], ...]] = field(default_factory=list)
    layers: list[dict[str, int]] = field(default_factory=list)
    batch_size: int = 0


def empty_targets(
    span: Span, specs: tuple[FieldSpec, ...], *, num_views: int, num_rows: int
) -> SpanTargets:
    """Return a span's targets, none known yet."""
    shapes = {s: (num_views, num_rows, s.width) for s in specs if s.layout != "counts"}
    return SpanTargets(span, {s.name: np.full(shapes[s], s.fill, s.dtype) for s in shapes})


@dataclass(frozen=True, eq=False)
class _Batch:
    """Results on their way. sums: of num_measured rows. ready: what to wait for, on a GPU."""

    targets: SpanTargets
    view_N: NDArray[np.intp]
    row_N: NDArray[np.intp]
    fields: dict[str, Tensor]
    sums: Tensor
    num_measured: int
    finite_N: Tensor
    ready: torch.cuda.Event | None


class Classroom:
    """Runs a teacher over blocks and gathers its targets."""

    def __init__(
        self,
        teacher: Teacher,
        encoding: Encoding,
        specs: tuple[FieldSpec, ...],
        *,
        num_classes: int,
        batch_size: int,
        where: Callable[[Span, int], str],
    ) -> None:
        """where: says which image a row of a span is, for messages."""
        self._where, self._failures = where, dict[Span, UsageError]()
        self._teacher, self._encoding, self._specs = teacher, encoding, specs
        self._num_classes, self._batch_size, self._fitting = num_classes, batch_size, batch_size
        self._pins = teacher.device.type == "cuda"
        self._staged: deque[Tensor] = deque()
        self._waiting: deque[_Batch] = deque()

    def teach(self, block: SpanBlock, targets: SpanTargets) -> None:
        """Run the teacher over a block's usable rows, view after view; its pixels are read at once.

        Raises:
            UsageError: the teacher fails, or has other classes than the cache.
        """
        assert block.pixels_GNHW3 is not None
        usable, first = np.flatnonzero(block.usable_N), block.request.start
        view_M = np.repeat(np.arange(len(block.pixels_GNHW3)), len(usable))
        row_M = np.tile(usable, len(block.pixels_GNHW3))
        for start in range(0, len(row_M), self._batch_size):
            view_N, row_N = (i[start : start + self._batch_size] for i in (view_M, row_M))
            pixels = self._stage(block.pixels_GNHW3, view_N, row_N)
            self._waiting.append(self._run(pixels, targets, view_N=view_N, row_N=row_N + first))
            while len(self._waiting) > (AHEAD if self._pins else 0):
                self._collect(self._waiting.popleft())
        targets.witnesses.append(block.witnesses)
        targets.layers.append(block.layers)

    def is_done(self, targets: SpanTargets) -> bool:
        """Return whether no result of a span is on its way any more."""
        return not any(batch.targets is targets for batch in self._waiting)

    def finish(self, targets: SpanTargets) -> None:
        """Wait for all results of a span.

        Raises:
            UsageError: the teacher gave logits that are not finite.
        """
        while not self.is_done(targets):
            self._collect(self._waiting.popleft())
        if (failure := self._failures.pop(targets.span, None)) is not None:
            raise failure

    def _stage(
        self, pixels_GNHW3: NDArray[np.uint8], view_N: NDArray[np.intp], row_N: NDArray[np.intp]
    ) -> Tensor:
        """Return pixels (N, 3, H, W), in memory that a GPU reads by itself."""
        if not self._pins:
            return torch.from_numpy(pixels_GNHW3[view_N, row_N]).permute(0, 3, 1, 2)
        shape = (self._batch_size, *pixels_GNHW3.shape[2:])
        if len(self._staged) <= AHEAD:
            self._staged.append(torch.empty(shape, dtype=torch.uint8, pin_memory=True))
        memory = self._staged[0]
        self._staged.rotate(-1)  # used again when the batches in between have been collected
        staged = memory[: len(row_N)]
        for place, (view, row) in enumerate(zip(view_N.tolist(), row_N.tolist(), strict=True)):
            staged.numpy()[place] = pixels_GNHW3[view, row]
        return staged.permute(0, 3, 1, 2)

    def _run(
        self,
        pixels: Tensor,
        targets: SpanTargets,
        *,
        view_N: NDArray[np.intp],
        row_N: NDArray[np.intp],
    ) -> _Batch:
        logits_NC = self._logits(pixels)
        targets.batch_size = min(targets.batch_size or self._fitting, self._fitting)
        if logits_NC.shape[1] != self._num_classes:
            raise UsageError(
                f"teacher {self._teacher.spec}: gave {logits_NC.shape[1]} classes, the cache has "
                f"{self._num_classes}"
            )
        finite_N = torch.isfinite(logits_NC).all(1)
        fields = self._encoding.encode(logits_NC.nan_to_num())
        # Measured in the first view: in all, it would cost more than encoding.
        measured = int((view_N == 0).sum())
        kept = {name: tensor[:measured] for name, tensor in fields.items()}
        sums = measure_sums(logits_NC[:measured], kept, self._encoding)
        ready = None
        if self._pins:
            fields = {name: _to_host(tensor) for name, tensor in fields.items()}
            sums, finite_N = _to_host(sums), _to_host(finite_N)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            ready.record(torch.cuda.current_stream(logits_NC.device))
        return _Batch(targets, view_N, row_N, fields, sums, measured, finite_N, ready)

    def _logits(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits (N, C), in smaller batches from where memory runs out on.

        Raises:
            UsageError: the teacher fails.
        """
        while True:
            try:
                parts = [self._teacher(part) for part in torch.split(pixels, self._fitting)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except NoMemoryError:
                if self._fitting == 1:
                    raise
            self._fitting = min(self._fitting, len(pixels)) // 2 or 1
            if self._pins:
                torch.cuda.empty_cache()

    def _collect(self, batch: _Batch) -> None:
        if batch.ready is not None:
            batch.ready.synchronize()
        targets = batch.targets
        if not bool(batch.finite_N.all()):
            row = int(batch.row_N[int((~batch.finite_N).nonzero()[0])])
            error = UsageError(
                f"teacher {self._teacher.spec}: gave logits that are not finite for "
                f"{self._where(targets.span, row)}; check its weights, or use --precision float32"
            )
            self._failures.setdefault(targets.span, error)
            return
        targets.fidelity += from_sums(batch.num_measured, batch.sums)
        for name, array in to_arrays(batch.fields, self._specs).items():
            targets.arrays[name][batch.view_N, batch.row_N] = array


def _to_host(tensor: Tensor) -> Tensor:
    """Return a copy in pinned memory, which is under way."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
