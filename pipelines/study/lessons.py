"""The arms: what each student sees and learns, from the views of a seed.

Letters: V and W views, R samples, C classes.
"""

from typing import Protocol

import torch
from torch import Tensor

from kdcache.targets.target import SparseTarget
from pipelines.digits import NUM_CLASSES
from pipelines.study.bank import Lesson
from pipelines.study.data import Table
from pipelines.study.design import Arm

RECIPES: dict[Arm, str] = {
    "labels": "consistent",
    "labels + mixup": "funmatch",
    "fixed": "consistent",
    "fixed, mean of crops": "consistent",
    "fixed + mixup": "funmatch",
    "independent": "consistent",
    "consistent, mild crops": "mild",
    "consistent": "consistent",
    "function matching": "funmatch",
}


class Tables(Protocol):
    """Where a seed's tables come from."""

    def views(self, recipe: str) -> Table:
        """Return the student's views under a recipe."""

    def centre(self) -> Table:
        """Return the student's whole images."""


def make_lesson(
    arm: Arm, tables: Tables, *, temperature: float | None, num_views: int | None = None
) -> Lesson:
    """Return an arm's lesson. num_views: only the first of the stored views; None for all.

    temperature: of the teacher's predictions; None for labels.
    """
    table = tables.views(RECIPES[arm])
    pixels = table.pixels_VRHW[:num_views]
    if arm in ("independent", "consistent, mild crops", "consistent", "function matching"):
        assert temperature is not None
        target = table.target(temperature, num_views=num_views)
        return Lesson(pixels, target, shift=len(pixels) // 2 if arm == "independent" else 0)
    probs_RC = _fixed(arm, tables, temperature)
    if "mixup" in arm:
        return Lesson(pixels, certain(_mixed(probs_RC, table, num_views)))
    return Lesson(pixels, certain(probs_RC[None]))


def _fixed(arm: Arm, tables: Tables, temperature: float | None) -> Tensor:
    """Return the one distribution (R, C) that an arm learns of each image."""
    if temperature is None:
        return torch.eye(NUM_CLASSES)[tables.views(RECIPES[arm]).labels_R]
    if arm == "fixed, mean of crops":
        probs_RC = tables.views("consistent").target(1.0).log_probs_NK.exp().mean(0)
    else:
        probs_RC = tables.centre().target(1.0).log_probs_NK[0].exp()
    return (probs_RC.log() / temperature).softmax(1)


def _mixed(probs_RC: Tensor, table: Table, num_views: int | None) -> Tensor:
    """Return each image's distribution mixed with its partner's, as its pixels are: (V, R, C)."""
    weights_VR1 = table.weights_VR[:num_views, :, None]
    return torch.lerp(probs_RC[table.partners_VR[:num_views]], probs_RC[None], weights_VR1)


def certain(probs_VRC: Tensor) -> SparseTarget:
    """Return distributions over all classes as targets."""
    log_probs_VRC = probs_VRC.log()
    nothing_VR = torch.full(log_probs_VRC.shape[:2], -torch.inf)
    return SparseTarget(None, log_probs_VRC, nothing_VR)
