"""Pixels that are not those the teacher saw: the price of a wrong replay is paid on them.

The library's own rendering with an altered plan; its stream would refuse these pixels.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.pixels.render import render_drawn
from kdcache.recipe.plan import Drawn, draw_view, plan_drawn
from kdcache.recipe.schema import Recipe
from pipelines.digits import FRAME
from pipelines.study.design import Fault


def wrong_pixels(dataset: Dataset, recipe: Recipe, *, fault: Fault, num_views: int) -> Tensor:
    """Return the first views of a dataset of one block with a fault, uint8 (V, R, H, W), grey."""
    images = dataset_source(dataset, recipe).read(0, slice(0, dataset.num_samples))
    uids = dataset.uids
    drawn = [altered(recipe, uids, view=view, fault=fault) for view in range(num_views)]
    pixels_VRHW3 = render_drawn(recipe, images, drawn).pixels_GNHW3
    return torch.from_numpy(np.ascontiguousarray(pixels_VRHW3[..., 0]))


def altered(recipe: Recipe, uids_N: NDArray[np.uint64], *, view: int, fault: Fault) -> Drawn:
    """Return what is drawn for a block in one view, with a fault."""
    if fault == "seed shifted by one":
        recipe = recipe.model_copy(update={"seed": recipe.seed + 1})
    drawn = draw_view(recipe, uids_N, view=view)
    if fault == "partner swapped":
        others = draw_view(recipe, uids_N, view=view + 1)
        return replace(drawn, partners_N=others.partners_N)
    return _moved(recipe, drawn) if fault == "crop moved by one pixel" else drawn


def _moved(recipe: Recipe, drawn: Drawn) -> Drawn:
    """Return draws whose boxes stand one pixel further right; left, where there is no room.

    A box as wide as the image stays.
    """
    sizes_N2 = np.full((len(drawn.uids_N), 2), FRAME)
    left_N, _, width_N, _ = plan_drawn(recipe, drawn, sizes_N2=sizes_N2).boxes_N4.T
    room_N = FRAME - width_N
    moved_N = np.where(left_N < room_N, left_N + 1, np.maximum(left_N - 1, 0))
    numbers_NB = drawn.numbers_NB.copy()
    numbers_NB[:, 2] = (moved_N + 0.5) / (room_N + 1)  # of the words, the one that places left
    return replace(drawn, numbers_NB=numbers_NB)
