"""Numbers and image sizes to crop boxes.

Invariant: only + - x / , sqrt and rounding, which IEEE 754 fixes to the last bit; NumPy's exp, log
and pow differ between CPUs and versions, so aspect ratios come from a table made by square roots.

Source: the crop law of torchvision's RandomResizedCrop (Szegedy et al. 2015, arXiv:1409.4842), its
ten tries and central fallback; the table of ratios is ours.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.parts import CentreCrop, Crop, FullCrop, InceptionCrop, MildCrop

NUM_TRIES = 10
_RATIO_BITS = 12

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
LaterTries = Callable[[NDArray[np.intp]], F64]


@lru_cache(maxsize=16)
def ratio_table(low: float, high: float) -> F64:
    """Return 4,096 ratios from low to below high, evenly spaced in the logarithm.

    Entry i is low x the product of (high / low)**(1 / 2**j) over the binary digits j of i / 4096.
    """
    index = np.arange(1 << _RATIO_BITS)
    table = np.full(len(index), low)
    factor = np.float64(high) / np.float64(low)
    for bit in reversed(range(_RATIO_BITS)):
        factor = np.sqrt(factor)
        table = np.where(index >> bit & 1, table * factor, table)
    table.setflags(write=False)
    return table


def place_boxes(sides_N2: I64, sizes_N2: I64, *, position_N2: F64) -> I64:
    """Return boxes (N, 4) of the given sides, placed in images by numbers for left and top."""
    room_N2 = sizes_N2 - sides_N2
    corners_N2 = np.minimum((position_N2 * (room_N2 + 1)).astype(np.int64), room_N2)
    return np.concatenate((corners_N2, sides_N2), axis=1)


def _first_fit(crop: InceptionCrop, sizes_N2: I64, tries_NT2: F64) -> tuple[I64, NDArray[np.bool_]]:
    """Return the width and height of the first try that fits, (N, 2), and whether one does."""
    table, (low, high) = ratio_table(*crop.ratio), crop.area
    area_NT = (sizes_N2[:, 0] * sizes_N2[:, 1])[:, None] * (low + (high - low) * tries_NT2[..., 0])
    ratio_NT = table[(tries_NT2[..., 1] * len(table)).astype(np.int64)]
    real_NT2 = np.empty(tries_NT2.shape)
    np.multiply(area_NT, ratio_NT, out=real_NT2[..., 0])
    np.divide(area_NT, ratio_NT, out=real_NT2[..., 1])
    sides_NT2 = np.rint(np.sqrt(real_NT2, out=real_NT2), out=real_NT2).astype(np.int64)
    inside_NT2 = (sides_NT2 > 0) & (sides_NT2 <= sizes_N2[:, None])
    fits_NT = inside_NT2[..., 0] & inside_NT2[..., 1]
    if tries_NT2.shape[1] == 1:
        return sides_NT2[:, 0], fits_NT[:, 0]
    first_N = np.argmax(fits_NT, axis=1)
    found_N: NDArray[np.bool_] = np.logical_or.reduce(fits_NT, axis=1)
    return sides_NT2[np.arange(len(first_N)), first_N], found_N


def inception_boxes(
    crop: InceptionCrop, sizes_N2: I64, *, position_N2: F64, tries_NT2: F64, later: LaterTries
) -> I64:
    """Return boxes (N, 4): left, top, width, height in pixels.

    sizes_N2: width, height. position_N2: numbers for left and top. tries_NT2: numbers for area and
    ratio of the first tries; later: the numbers of all later tries of some rows, asked for where
    none of the first fits. When none fits at all: the central box of the nearest ratio.
    """
    sides_N2, found_N = _first_fit(crop, sizes_N2, tries_NT2[:, :1])
    for tries in (lambda rows: tries_NT2[rows, 1:], later):
        if found_N.all():
            return place_boxes(sides_N2, sizes_N2, position_N2=position_N2)
        rows = np.flatnonzero(~found_N)
        sides_N2[rows], found_N[rows] = _first_fit(crop, sizes_N2[rows], tries(rows))
    rows = np.flatnonzero(~found_N)
    sides_N2[rows] = 1  # any sides that fit
    boxes_N4 = place_boxes(sides_N2, sizes_N2, position_N2=position_N2)
    boxes_N4[rows] = _fallback(crop, sizes_N2[rows])
    return boxes_N4


def _fallback(crop: InceptionCrop, sizes_N2: I64) -> I64:
    (low, high), width_N, height_N = crop.ratio, sizes_N2[:, 0], sizes_N2[:, 1]
    wide_N = np.minimum(width_N, np.maximum(np.rint(height_N * high).astype(np.int64), 1))
    tall_N = np.minimum(height_N, np.maximum(np.rint(width_N / low).astype(np.int64), 1))
    sides_N2 = np.stack((wide_N, tall_N), axis=1)
    return np.concatenate(((sizes_N2 - sides_N2) // 2, sides_N2), axis=1)


def square_boxes(crop: MildCrop | CentreCrop, sizes_N2: I64, *, size: int, position_N2: F64) -> I64:
    """Return square boxes (N, 4) whose side is size / resize of the shorter side."""
    side_N1 = np.maximum(np.rint(sizes_N2.min(axis=1, keepdims=True) * size / crop.resize), 1)
    sides_N2 = np.repeat(side_N1.astype(np.int64), 2, axis=1)
    if isinstance(crop, MildCrop):
        return place_boxes(sides_N2, sizes_N2, position_N2=position_N2)
    return np.concatenate(((sizes_N2 - sides_N2) // 2, sides_N2), axis=1)


def crop_boxes(
    crop: Crop,
    sizes_N2: I64,
    *,
    size: int,
    position_N2: F64,
    tries_NT2: F64,
    later: LaterTries,
) -> I64:
    """Return each image's crop box (N, 4): left, top, width, height, inside the image.

    sizes_N2: int64 width and height of each image, at least 1. size: side of a view. The rest:
    numbers in [0, 1), as inception_boxes takes them.
    """
    if isinstance(crop, InceptionCrop):
        return inception_boxes(
            crop, sizes_N2, position_N2=position_N2, tries_NT2=tries_NT2, later=later
        )
    if isinstance(crop, FullCrop):
        return np.concatenate((np.zeros_like(sizes_N2), sizes_N2), axis=1)
    return square_boxes(crop, sizes_N2, size=size, position_N2=position_N2)
