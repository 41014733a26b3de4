"""Shears, translations, rotation and erasing of a view: uint8 (H, W, 3) to the same, of any size.

Invariant: integers only, so that the bytes are the same everywhere. Sines are computed once, in
integers of 80 bits after the point. Inputs are never modified; outputs are C-contiguous.

Warps take each pixel from the nearest one that the inverse map names, in 16.16 fixed point, and
leave black where it names none: torchvision's results for PIL images with nearest neighbours,
shears about the upper left corner as its RandAugment has them. Only where a shear puts a line
exactly between two pixels may torchvision's rounding differ: 1 in 3,400 shears of a 224-pixel view,
in one line. docs/format.md defines each.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.draws import raw_words
from kdcache.recipe.ops import UNIT

Pixels = NDArray[np.uint8]

_SHIFT = 16
_HALF = UNIT // 2
_MAX_SIDES = 1 << 14  # slopes are 1 at most, so places are below 3/4 of 2**31
_FULL_TURN = 720  # half degrees
_SINE_BITS = 48
_GUARD_BITS = 32
_SINE_TERMS = 14
_PI = 3_797_952_473_636_338_580_787_994  # pi x 2**80, rounded


# --- warps ------------------------------------------------------------------------------------


def translate(pixels_HW3: Pixels, *, right: int = 0, down: int = 0) -> Pixels:
    """Return pixels moved by whole pixels."""
    height, width, _ = pixels_HW3.shape
    out = np.zeros(pixels_HW3.shape, np.uint8)
    if abs(right) < width and abs(down) < height:
        rows, from_rows = _moved(height, down)
        columns, from_columns = _moved(width, right)
        out[rows, columns] = pixels_HW3[from_rows, from_columns]
    return out


def shear_x(pixels_HW3: Pixels, shear: int) -> Pixels:
    """Return pixels whose row y is taken from shear x y / 65,536 further right."""
    start = _HALF + (shear + 1 >> 1)
    return _warped(pixels_HW3, across=(UNIT, shear, start), along=(0, UNIT, _HALF))


def shear_y(pixels_HW3: Pixels, shear: int) -> Pixels:
    """Return pixels whose column x is taken from shear x x / 65,536 further down."""
    start = _HALF + (shear + 1 >> 1)
    return _warped(pixels_HW3, across=(UNIT, 0, _HALF), along=(shear, UNIT, start))


def rotate(pixels_HW3: Pixels, half_degrees: int) -> Pixels:
    """Return pixels turned counter-clockwise about the centre."""
    height, width, _ = pixels_HW3.shape
    sine, cosine = _sine(half_degrees), _sine(half_degrees + _FULL_TURN // 4)
    x = (width << _SINE_BITS) + cosine * (1 - width) - sine * (1 - height)
    y = (height << _SINE_BITS) + sine * (1 - width) + cosine * (1 - height)
    slope, rise = _fixed(cosine, _SINE_BITS), _fixed(sine, _SINE_BITS)
    return _warped(
        pixels_HW3,
        across=(slope, _fixed(-sine, _SINE_BITS), _fixed(x, _SINE_BITS + 1)),
        along=(rise, slope, _fixed(y, _SINE_BITS + 1)),
    )


def _moved(length: int, by: int) -> tuple[slice, slice]:
    """Return where pixels go, and where they come from, along an axis."""
    return slice(max(by, 0), length + min(by, 0)), slice(max(-by, 0), length - max(by, 0))


def _warped(
    pixels_HW3: Pixels, *, across: tuple[int, int, int], along: tuple[int, int, int]
) -> Pixels:
    """Return the pixels that an affine map names, black where there are none.

    Pixel (x, y) comes from column (across[0] x + across[1] y + across[2]) >> 16, and from the row
    that `along` gives likewise.
    """
    height, width, _ = pixels_HW3.shape
    assert width + height <= _MAX_SIDES, f"{width} x {height} pixels: places would not fit 32 bits"
    columns, rows = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)
    from_x, from_y = (
        np.add.outer(rows * by_y + start, columns * by_x) >> _SHIFT
        for by_x, by_y, start in (across, along)
    )
    inside = from_x.view(np.uint32) < np.uint32(width)
    inside &= from_y.view(np.uint32) < np.uint32(height)
    from_y *= width
    from_y += from_x
    from_y += 1
    from_y *= inside
    source = np.empty((height * width + 1, 3), np.uint8)
    source[0] = 0
    source[1:] = pixels_HW3.reshape(-1, 3)
    return source.take(from_y, axis=0)


def _fixed(value: int, bits: int) -> int:
    """Return a number with `bits` bits after the point rounded to 16, halves up."""
    return value + (1 << bits - _SHIFT - 1) >> bits - _SHIFT


@lru_cache(maxsize=_FULL_TURN)
def _sine(half_degrees: int) -> int:
    """Return the sine of an angle x 2**48, rounded to the nearest."""
    turned = half_degrees % _FULL_TURN
    if turned >= _FULL_TURN // 2:
        return -_sine(turned - _FULL_TURN // 2)
    turned = min(turned, _FULL_TURN // 2 - turned)
    bits = _SINE_BITS + _GUARD_BITS
    angle = _PI * turned // (_FULL_TURN // 2)
    square = angle * angle >> bits
    term, total = angle, 0
    for order in range(1, 2 * _SINE_TERMS, 2):
        total += term
        term = -(term * square >> bits) // ((order + 1) * (order + 2))
    return total + (1 << _GUARD_BITS - 1) >> _GUARD_BITS


# --- erasing ----------------------------------------------------------------------------------


def erase(pixels_HW3: Pixels, box: Sequence[int], *, colour: int) -> Pixels:
    """Return pixels with a box (left, top, width, height) in a colour, 0xRRGGBB."""
    out = np.array(pixels_HW3, order="C")
    _inside(out, box)[...] = np.array([colour >> 16, colour >> 8 & 255, colour & 255], np.uint8)
    return out


def erase_noise(pixels_HW3: Pixels, box: Sequence[int], *, key: int) -> Pixels:
    """Return pixels with a box (left, top, width, height) of uniform bytes, fixed by the key.

    key: 0 to 2**64 - 1. The words of the key's view 0 of uid 0, as little-endian bytes.
    """
    out = np.array(pixels_HW3, order="C")
    target = _inside(out, box)
    words = raw_words(key, np.zeros(1, np.uint64), view=0, count=-(-target.size // 8))
    noise = words.astype("<u8").view(np.uint8)[0, : target.size]
    target[...] = noise.reshape(target.shape)
    return out


def _inside(pixels_HW3: Pixels, box: Sequence[int]) -> Pixels:
    (left, top, wide, tall), (height, width, _) = box, pixels_HW3.shape
    assert 0 <= left <= left + wide <= width, f"columns {left} + {wide} of {width}"
    assert 0 <= top <= top + tall <= height, f"rows {top} + {tall} of {height}"
    return pixels_HW3[top : top + tall, left : left + wide]
