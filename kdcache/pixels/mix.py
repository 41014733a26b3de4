"""Blending of rows with their partners, in integers.

Invariant: (w x own + (256 - w) x partner + 128) >> 8 fits 16 bits, so the bytes are the same
everywhere.
"""

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.plan import FULL_WEIGHT


def blend(
    pixels_NHW3: NDArray[np.uint8],
    *,
    partners_N: NDArray[np.intp],
    weights_N: NDArray[np.uint16],
) -> NDArray[np.uint8]:
    """Return each row blended with its partner, uint8 (N, H, W, 3); weight 256 keeps the row."""
    out = np.empty_like(pixels_NHW3)
    for row, (partner, weight) in enumerate(zip(partners_N, weights_N, strict=True)):
        if weight == FULL_WEIGHT:
            out[row] = pixels_NHW3[row]
            continue
        total = np.multiply(pixels_NHW3[row], weight, dtype=np.uint16)
        total += np.multiply(pixels_NHW3[partner], FULL_WEIGHT - weight, dtype=np.uint16)
        total += np.uint16(128)
        total >>= np.uint16(8)
        out[row] = total
    return out
