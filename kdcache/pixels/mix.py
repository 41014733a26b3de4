"""Mixing of rows with their partners, in integers.

Invariant: (w x own + (256 - w) x partner + 128) >> 8 fits 16 bits, so the bytes are the same
everywhere.
"""

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.plan import FULL_WEIGHT, ViewParams

Pixels = NDArray[np.uint8]


def mix(pixels_NHW3: Pixels, params: ViewParams, *, out_NHW3: Pixels) -> None:
    """Write each row mixed with its partner to out_NHW3, other memory than pixels_NHW3."""
    total = np.empty(pixels_NHW3.shape[1:], np.uint16)
    other = np.empty_like(total)
    weights, cuts = params.weights_N.tolist(), params.cuts_N4.tolist()
    for row, partner in enumerate(params.partners_N.tolist()):
        own, out, weight = pixels_NHW3[row], out_NHW3[row], weights[row]
        if weight == FULL_WEIGHT:
            out[:] = own
        else:
            np.multiply(own, np.uint16(weight), out=total, dtype=np.uint16)
            np.multiply(
                pixels_NHW3[partner], np.uint16(FULL_WEIGHT - weight), out=other, dtype=np.uint16
            )
            np.add(total, other, out=total)
            np.add(total, np.uint16(FULL_WEIGHT // 2), out=total)
            np.right_shift(total, np.uint16(8), out=total)
            np.copyto(out, total, casting="unsafe")
        left, top, wide, tall = cuts[row]
        if wide and tall:
            part = np.s_[top : top + tall, left : left + wide]
            out[part] = pixels_NHW3[partner][part]
