"""Numbers and image sizes to crop boxes.

Invariant: only + - x / , sqrt and rounding, which IEEE 754 fixes to the last bit; NumPy's exp, log
and pow differ between CPUs and versions, so aspect ratios come from a table made by square roots.

Source: the crop law of torchvision's RandomResizedCrop (Szegedy et al. 2015, arXiv:1409.4842), its
ten tries and central fallback; the table of ratios is ours.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.schema import CentreCrop, FullCrop, InceptionCrop, MildCrop

NUM_TRIES = 10
_RATIO_BITS = 12

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


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


def _place(u_N: F64, room_N: I64) -> I64:
    """Return a uniform integer from 0 to room for each number."""
    return np.minimum((u_N * (room_N + 1)).astype(np.int64), room_N)


def _boxes(left_N: I64, top_N: I64, width_N: I64, height_N: I64) -> I64:
    return np.stack((left_N, top_N, width_N, height_N), axis=1)


def inception_boxes(crop: InceptionCrop, sizes_N2: I64, *, tries_NT2: F64, position_N2: F64) -> I64:
    """Return boxes (N, 4): left, top, width, height in pixels.

    sizes_N2: width, height. tries_NT2: T pairs of numbers for area and ratio, of which the first
    that fits is taken. position_N2: numbers for left and top. When no try fits: the central box of
    the nearest allowed ratio.
    """
    width_N1, height_N1 = sizes_N2[:, :1], sizes_N2[:, 1:]
    table = ratio_table(*crop.ratio)
    low, high = crop.area
    area_NT = (width_N1 * height_N1) * (low + (high - low) * tries_NT2[..., 0])
    ratio_NT = table[(tries_NT2[..., 1] * len(table)).astype(np.int64)]
    wide_NT = np.rint(np.sqrt(area_NT * ratio_NT)).astype(np.int64)
    tall_NT = np.rint(np.sqrt(area_NT / ratio_NT)).astype(np.int64)
    fits_NT = (wide_NT > 0) & (wide_NT <= width_N1) & (tall_NT > 0) & (tall_NT <= height_N1)
    first_N, rows = np.argmax(fits_NT, axis=1), np.arange(len(sizes_N2))
    wide_N, tall_N = wide_NT[rows, first_N], tall_NT[rows, first_N]
    width_N, height_N = sizes_N2[:, 0], sizes_N2[:, 1]
    boxes = _boxes(
        _place(position_N2[:, 0], width_N - wide_N),
        _place(position_N2[:, 1], height_N - tall_N),
        wide_N,
        tall_N,
    )
    found_N1 = fits_NT.any(axis=1, keepdims=True)
    return np.where(found_N1, boxes, _fallback(crop, width_N, height_N))


def _fallback(crop: InceptionCrop, width_N: I64, height_N: I64) -> I64:
    low, high = crop.ratio
    wide_N = np.minimum(width_N, np.maximum(np.rint(height_N * high).astype(np.int64), 1))
    tall_N = np.minimum(height_N, np.maximum(np.rint(width_N / low).astype(np.int64), 1))
    return _boxes((width_N - wide_N) // 2, (height_N - tall_N) // 2, wide_N, tall_N)


def square_boxes(crop: MildCrop | CentreCrop, sizes_N2: I64, *, size: int, position_N2: F64) -> I64:
    """Return square boxes (N, 4) whose side is size / resize of the shorter side."""
    width_N, height_N = sizes_N2[:, 0], sizes_N2[:, 1]
    shorter_N = np.minimum(width_N, height_N)
    side_N = np.maximum(np.rint(shorter_N * size / crop.resize).astype(np.int64), 1)
    if isinstance(crop, MildCrop):
        left_N = _place(position_N2[:, 0], width_N - side_N)
        top_N = _place(position_N2[:, 1], height_N - side_N)
    else:
        left_N, top_N = (width_N - side_N) // 2, (height_N - side_N) // 2
    return _boxes(left_N, top_N, side_N, side_N)


def crop_boxes(
    crop: InceptionCrop | MildCrop | CentreCrop | FullCrop,
    sizes_N2: I64,
    *,
    size: int,
    tries_NT2: F64,
    position_N2: F64,
) -> I64:
    """Return each image's crop box (N, 4): left, top, width, height, inside the image.

    sizes_N2: int64 width and height of each image, at least 1. size: side of a view.
    tries_NT2, position_N2: numbers in [0, 1).
    """
    if isinstance(crop, InceptionCrop):
        return inception_boxes(crop, sizes_N2, tries_NT2=tries_NT2, position_N2=position_N2)
    if isinstance(crop, FullCrop):
        return np.concatenate((np.zeros_like(sizes_N2), sizes_N2), axis=1)
    return square_boxes(crop, sizes_N2, size=size, position_N2=position_N2)
