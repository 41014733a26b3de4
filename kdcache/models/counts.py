"""Programs that take only some numbers of images, run on any number.

Invariant: each image's logits are those of a batch that the program allows; what fills a batch up
are copies of its first image, whose logits are dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.errors import UsageError

MOST = 2**31


@dataclass(frozen=True)
class Counts:
    """The numbers of images that a program takes at once, both ends included."""

    least: int = 1
    most: int = MOST

    def __post_init__(self) -> None:
        if self.most < 1 or self.least > self.most:
            raise UsageError(f"takes {self.least} to {self.most} images at once, expected some")


def run_in_counts(
    program: Callable[[Tensor], Tensor], images_N3HW: Tensor, counts: Counts
) -> Tensor:
    """Return the logits (N, C) of any number of images, above none."""
    if counts.least <= len(images_N3HW) <= counts.most:
        return program(images_N3HW)
    parts = []
    for images_n3HW in torch.split(images_N3HW, counts.most):
        count = len(images_n3HW)
        if count < counts.least:
            copies = images_n3HW[:1].expand(counts.least - count, -1, -1, -1)
            images_n3HW = torch.cat([images_n3HW, copies])
        parts.append(program(images_n3HW)[:count])
    return torch.cat(parts)
