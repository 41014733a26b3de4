"""What the stream hands over: uint8 pixels, labels and compact targets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.replay.formats import JoinedFormat, TargetFormat
from kdcache.targets.target import Fields, SparseTarget


@dataclass(frozen=True, eq=False)
class Batch:
    """N views of different samples.

    pixels: uint8 (N, 3, H, W), channels last in memory. labels, partner_labels: int64 (N,), -1 for
    none. weights: float32 (N,), share of a view's own label; its partner has the rest. tars, rows,
    views: int64 (N,), what each view is. fields: encoded targets (N, width), if any.
    """

    pixels: Tensor
    labels: Tensor
    partner_labels: Tensor
    weights: Tensor
    tars: Tensor
    rows: Tensor
    views: Tensor
    fields: Fields | None
    format: TargetFormat | JoinedFormat | None

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, temperature: float) -> SparseTarget:
        """Return the teacher's distribution for each view.

        Raises:
            UsageError: the stream has no targets, or they do not serve this temperature.
        """
        if self.fields is None or self.format is None:
            raise UsageError("this stream has no targets; open it with a cache")
        return self.format.decode(self.fields, temperature=temperature)

    def parts(self, count: int) -> list[Self]:
        """Return the batch in so many parts, as equal as can be, which share its memory."""
        ends = [len(self) * n // count for n in range(count + 1)]
        return [self._rows(slice(start, stop)) for start, stop in pairwise(ends)]

    def _rows(self, rows: slice) -> Self:
        return replace(
            self,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            partner_labels=self.partner_labels[rows],
            weights=self.weights[rows],
            tars=self.tars[rows],
            rows=self.rows[rows],
            views=self.views[rows],
            fields=None if self.fields is None else {k: v[rows] for k, v in self.fields.items()},
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with what training reads on a device, by way of pinned memory."""
        place = torch.device(device)

        def move(tensor: Tensor) -> Tensor:
            if place.type == "cuda":
                return tensor.pin_memory().to(place, non_blocking=True)
            return tensor.to(place)

        return self._with(move)

    def pin_memory(self) -> Self:
        """Return the batch with what training reads in pinned memory; DataLoader calls it."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            pixels=change(self.pixels),
            labels=change(self.labels),
            partner_labels=change(self.partner_labels),
            weights=change(self.weights),
            fields=None if self.fields is None else {k: change(v) for k, v in self.fields.items()},
        )
