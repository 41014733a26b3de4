"""Colour, sharpness and blur of a view: uint8 (H, W, 3) to the same, of any size and layout.

Invariant: integers, elementwise, each within its dtype, so that the bytes are the same everywhere.
Two tables are not: autocontrast's, of single float64 operations in a fixed order, and the Gaussian
weights, whose exponentials are decimal's, correctly rounded. Inputs are never modified; outputs
are C-contiguous. Histograms and look-ups are NumPy's and bytearray's: Pillow's are no faster but
for equalize, and would be one more library to rest on.

Factors and turns are in 65,536ths. With the same factors, results are those of torchvision's
transforms.functional for PIL images, but for two that stay within one level of its transforms.v2
functional for uint8 tensors: hue, since PIL's keeps hues in 8 bits, and blur, which rounds between
rows and columns. docs/format.md defines each operation.
"""

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.ops import UNIT

Pixels = NDArray[np.uint8]
Plane = NDArray[np.int32]

_SHIFT = 16
_HALF = UNIT // 2
_LUMA = (19_595, 38_470, 7_471)  # of 65,536: Rec. 601
_LEVELS = 256
_TOP = 255
_SMOOTH = 13  # sum of the 3 x 3 kernel: 5 in the middle, 1 around
_REACH = 3  # radius of the Gaussian in sigmas
_SIGMA_UNIT = 64
_KEPT_BITS = 6


# --- tables of levels -------------------------------------------------------------------------


def brightness(pixels_HW3: Pixels, factor: int) -> Pixels:
    """Return pixels blended with black."""
    return _looked_up(pixels_HW3, _blend_table(0, factor))


def contrast(pixels_HW3: Pixels, factor: int) -> Pixels:
    """Return pixels blended with the mean of their grey levels, rounded to a level."""
    levels_HW = _luma(_planes(pixels_HW3))
    total, count = int(levels_HW.sum(dtype=np.int64)), levels_HW.size
    return _looked_up(pixels_HW3, _blend_table((2 * total + count) // (2 * count), factor))


def solarize(pixels_HW3: Pixels, threshold: int) -> Pixels:
    """Return pixels with the values from threshold (0 to 256) on inverted."""
    levels = range(_LEVELS)
    table = bytes(level if level < threshold else _TOP - level for level in levels)
    return _looked_up(pixels_HW3, table)


def posterize(pixels_HW3: Pixels, bits: int) -> Pixels:
    """Return pixels with the upper bits (1 to 8) of each value."""
    mask = _TOP & ~(_TOP >> bits)
    return np.bitwise_and(pixels_HW3, np.uint8(mask), order="C")


def equalize(pixels_HW3: Pixels) -> Pixels:
    """Return pixels whose values are spread evenly, channel by channel."""
    return _by_channel(pixels_HW3, _equalize_table)


def autocontrast(pixels_HW3: Pixels) -> Pixels:
    """Return pixels stretched to 0 to 255, channel by channel."""
    return _by_channel(pixels_HW3, _autocontrast_table)


def _blend_table(towards: int, factor: int) -> bytes:
    values = np.arange(_LEVELS, dtype=np.int64) * factor
    values += towards * (UNIT - factor)
    values >>= _SHIFT
    return np.clip(values, 0, _TOP).astype(np.uint8).tobytes()


def _equalize_table(plane_HW: Pixels) -> bytes:
    counts = np.bincount(plane_HW.ravel(), minlength=_LEVELS)
    step = (plane_HW.size - int(counts[plane_HW.max()])) // _TOP
    if step == 0:
        return bytes(range(_LEVELS))
    below = np.cumsum(counts) - counts
    values: NDArray[np.intp] = np.minimum((below + step // 2) // step, _TOP)
    return values.astype(np.uint8).tobytes()


def _autocontrast_table(plane_HW: Pixels) -> bytes:
    low, high = int(plane_HW.min()), int(plane_HW.max())
    if low == high:
        return bytes(range(_LEVELS))
    scale = 255.0 / (high - low)
    values: NDArray[np.float64] = np.arange(_LEVELS, dtype=np.float64) * scale
    values += -low * scale
    return np.clip(values, 0.0, 255.0).astype(np.uint8).tobytes()


def _looked_up(values: Pixels, table: bytes) -> Pixels:
    """Return table[value] of each value; bytearray.translate is three times as fast as take."""
    found = bytearray(np.ascontiguousarray(values).data).translate(table)
    return np.frombuffer(found, np.uint8).reshape(values.shape)


def _by_channel(pixels_HW3: Pixels, table_of: Callable[[Pixels], bytes]) -> Pixels:
    out = np.empty(pixels_HW3.shape, np.uint8)
    for channel in range(3):
        plane_HW = np.ascontiguousarray(pixels_HW3[..., channel])
        out[..., channel] = _looked_up(plane_HW, table_of(plane_HW))
    return out


# --- grey, saturation, hue --------------------------------------------------------------------


def grey(pixels_HW3: Pixels) -> Pixels:
    """Return pixels whose three channels are their grey level."""
    level_HW = _luma(_planes(pixels_HW3)).astype(np.uint8)
    out = np.empty(pixels_HW3.shape, np.uint8)
    for channel in range(3):
        out[..., channel] = level_HW
    return out


def saturation(pixels_HW3: Pixels, factor: int) -> Pixels:
    """Return pixels blended with their own grey levels; factor up to 128 x 65,536."""
    planes = _planes(pixels_HW3)
    towards_HW = _luma(planes)
    towards_HW *= UNIT - factor
    out = np.empty(pixels_HW3.shape, np.uint8)
    for channel, plane_HW in enumerate(planes):
        plane_HW *= factor
        plane_HW += towards_HW
        plane_HW >>= _SHIFT
        out[..., channel] = np.clip(plane_HW, 0, _TOP, out=plane_HW)
    return out


def hue(pixels_HW3: Pixels, turn: int) -> Pixels:
    """Return pixels with their hues turned by -32,768 to 32,768.

    With d the range of a pixel's channels, its hue is an integer place on a wheel of 6 d: red at 0,
    green at 2 d, blue at 4 d. So the turn, rounded to such places, is all that is not exact.
    """
    red, green, blue = (pixels_HW3[..., channel].astype(np.int16) for channel in range(3))
    low = np.minimum(np.minimum(red, green), blue)
    top = np.maximum(np.maximum(red, green), blue)
    d = top - low
    d2 = d + d
    is_red = top == red
    is_green = top == green
    is_green &= ~is_red
    place = (green - blue) * is_red
    place += (blue - red + d2) * is_green
    place += (red - green + d2 + d2) * ~(is_red | is_green)
    place += _turned(d, turn)  # -4 d to 8 d
    wheel = d2 * np.int16(3)
    place += wheel * (place < 0)
    place -= wheel * (place >= wheel)
    above = (np.abs(place - d2 - d) - d, d2 - np.abs(place - d2), d2 - np.abs(place - d2 - d2))
    out, none = np.empty(pixels_HW3.shape, np.uint8), np.zeros_like(d)
    for channel, amount in enumerate(above):
        np.maximum(amount, none, out=amount)
        np.minimum(amount, d, out=amount)
        amount += low
        out[..., channel] = amount
    return out


def _turned(d: NDArray[np.int16], turn: int) -> NDArray[np.int16]:
    """Return 6 d x turn / 65,536, rounded to the nearest, halves up."""
    places = d.astype(np.int32)
    places *= 12 * turn
    places += UNIT
    places >>= _SHIFT + 1
    return places.astype(np.int16)


def _planes(pixels_HW3: Pixels) -> tuple[Plane, Plane, Plane]:
    red, green, blue = (
        pixels_HW3[..., channel].astype(np.int32, order="C") for channel in range(3)
    )
    return red, green, blue


def _luma(planes: tuple[Plane, Plane, Plane]) -> Plane:
    """Return grey levels 0 to 255, rounded."""
    level_HW = planes[0] * _LUMA[0]
    level_HW += planes[1] * _LUMA[1]
    level_HW += planes[2] * _LUMA[2]
    level_HW += _HALF
    level_HW >>= _SHIFT
    return level_HW


# --- neighbourhoods ---------------------------------------------------------------------------


def sharpness(pixels_HW3: Pixels, factor: int) -> Pixels:
    """Return pixels blended with the mean around them; factor up to 128 x 65,536.

    Pixels at the edge stay as they are.
    """
    wide = pixels_HW3.astype(np.uint16, order="C")
    inner = wide[1:-1, 1:-1]
    across = wide[:, :-2] + wide[:, 1:-1]
    across += wide[:, 2:]
    total = across[:-2] + across[1:-1]
    total += across[2:]
    total += inner * np.uint16(4)
    total += np.uint16(_SMOOTH // 2)
    total //= np.uint16(_SMOOTH)
    blended = total.astype(np.int32)
    blended *= UNIT - factor
    blended += np.multiply(inner, factor, dtype=np.int32)
    blended >>= _SHIFT
    out = np.array(pixels_HW3, order="C")
    out[1:-1, 1:-1] = np.clip(blended, 0, _TOP, out=blended)
    return out


def blur(pixels_HW3: Pixels, sigma: int) -> Pixels:
    """Return pixels under a Gaussian of sigma / 64 pixels, along rows, then along columns.

    Between the two, 6 bits after the point are kept: then both sums fit 31 bits.
    """
    weights = gaussian_weights(sigma)
    rows = _convolved(pixels_HW3, weights, axis=1, shift=_SHIFT - _KEPT_BITS)
    both = _convolved(rows, weights, axis=0, shift=_SHIFT + _KEPT_BITS)
    return both.astype(np.uint8, order="C")


@lru_cache(maxsize=1024)
def gaussian_weights(sigma: int) -> tuple[int, ...]:
    """Return the weights at distances 0 to ceil(3 sigma / 64), whose sum over both sides is 65,536.

    Each is rounded to the nearest; the one in the middle takes up the rest.
    """
    with localcontext(Context(prec=40, rounding=ROUND_HALF_EVEN)):
        radius = -(-_REACH * sigma // _SIGMA_UNIT)
        heights = [Decimal(1)]
        for distance in range(1, radius + 1):
            square = Decimal((_SIGMA_UNIT * distance) ** 2)
            heights.append((-square / (2 * sigma * sigma)).exp())
        total = heights[0] + 2 * sum(heights[1:])
        sides = [int((UNIT * height / total).to_integral_value()) for height in heights[1:]]
    return (UNIT - 2 * sum(sides), *sides)


def _convolved(
    values_HW3: NDArray[np.integer], weights: tuple[int, ...], *, axis: int, shift: int
) -> NDArray[np.int32]:
    """Return the weighted sums along an axis / 2**shift, rounded; outside, values are mirrored."""
    radius, length = len(weights) - 1, values_HW3.shape[axis]
    around = np.moveaxis(_mirrored(values_HW3, radius, axis=axis), axis, 0)
    total = around[radius : radius + length] * weights[0]
    total += 1 << shift - 1
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        left, right = radius - distance, radius + distance
        np.add(around[left : left + length], around[right : right + length], out=pair)
        pair *= weights[distance]
        total += pair
    total >>= shift
    return np.moveaxis(total, 0, axis)


def _mirrored(values_HW3: NDArray[np.integer], radius: int, *, axis: int) -> NDArray[np.int32]:
    """Return values with `radius` more on both sides, mirrored about the centres of edge pixels."""
    length = values_HW3.shape[axis]
    period = max(2 * (length - 1), 1)
    place = np.arange(-radius, length + radius) % period
    place = np.minimum(place, period - place) if length > 1 else place
    shape = list(values_HW3.shape)
    shape[axis] += 2 * radius
    out = np.empty(shape, np.int32)
    source, target = np.moveaxis(values_HW3, axis, 0), np.moveaxis(out, axis, 0)
    target[radius : radius + length] = source
    target[:radius] = source[place[:radius]]
    target[radius + length :] = source[place[radius + length :]]
    return out
