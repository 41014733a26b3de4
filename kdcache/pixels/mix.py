"""Mixing of rows with their partners, in integers.

Invariant: (w x own + (256 - w) x partner + 128) >> 8 fits 16 bits, so the bytes are the same
everywhere.
"""

import numpy as np
from numpy.typing import NDArray

from kdcache.pixels.image import scratch
from kdcache.recipe.plan import FULL_WEIGHT, ViewParams

Pixels = NDArray[np.uint8]


def mix_row(own: Pixels, partner: Pixels, *, weight: int, cut: list[int], out: Pixels) -> None:
    """Write a row mixed with its partner to out, other memory than both.

    own, partner, out: uint8 (H, W, 3). weight: of the row itself, in 256ths. cut: left, top, width
    and height of what is taken from the partner.
    """
    if weight == FULL_WEIGHT:
        out[:] = own
    else:
        memory = scratch("mix", (2, out.size * 2)).view(np.uint16)
        total, other = (part.reshape(out.shape) for part in memory)
        np.multiply(own, np.uint16(weight), out=total, dtype=np.uint16)
        np.multiply(partner, np.uint16(FULL_WEIGHT - weight), out=other, dtype=np.uint16)
        np.add(total, other, out=total)
        np.add(total, np.uint16(FULL_WEIGHT // 2), out=total)
        np.right_shift(total, np.uint16(8), out=total)
        np.copyto(out, total, casting="unsafe")
    left, top, wide, tall = cut
    if wide and tall:
        part = np.s_[top : top + tall, left : left + wide]
        out[part] = partner[part]


def mix(pixels_NHW3: Pixels, params: ViewParams, *, out_NHW3: Pixels) -> None:
    """Write each row mixed with its partner to out_NHW3, other memory than pixels_NHW3."""
    weights, cuts = params.weights_N.tolist(), params.cuts_N4.tolist()
    for row, partner in enumerate(params.partners_N.tolist()):
        mix_row(
            pixels_NHW3[row],
            pixels_NHW3[partner],
            weight=weights[row],
            cut=cuts[row],
            out=out_NHW3[row],
        )
