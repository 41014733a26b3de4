"""The steps of a view, one after another: which function serves each operation."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdcache.pixels import colour, warp
from kdcache.recipe.ops import Op

Pixels = NDArray[np.uint8]

_APPLY: dict[int, Callable[[Pixels, list[int]], Pixels]] = {
    Op.NOTHING: lambda pixels, _: pixels,
    Op.BRIGHTNESS: lambda pixels, a: colour.brightness(pixels, a[0]),
    Op.CONTRAST: lambda pixels, a: colour.contrast(pixels, a[0]),
    Op.SATURATION: lambda pixels, a: colour.saturation(pixels, a[0]),
    Op.HUE: lambda pixels, a: colour.hue(pixels, a[0]),
    Op.SHARPNESS: lambda pixels, a: colour.sharpness(pixels, a[0]),
    Op.GREY: lambda pixels, _: colour.grey(pixels),
    Op.BLUR: lambda pixels, a: colour.blur(pixels, a[0]),
    Op.SOLARIZE: lambda pixels, a: colour.solarize(pixels, a[0]),
    Op.POSTERIZE: lambda pixels, a: colour.posterize(pixels, a[0]),
    Op.EQUALIZE: lambda pixels, _: colour.equalize(pixels),
    Op.AUTOCONTRAST: lambda pixels, _: colour.autocontrast(pixels),
    Op.SHEAR_X: lambda pixels, a: warp.shear_x(pixels, a[0]),
    Op.SHEAR_Y: lambda pixels, a: warp.shear_y(pixels, a[0]),
    Op.TRANSLATE_X: lambda pixels, a: warp.translate(pixels, right=a[0]),
    Op.TRANSLATE_Y: lambda pixels, a: warp.translate(pixels, down=a[0]),
    Op.ROTATE: lambda pixels, a: warp.rotate(pixels, a[0]),
    Op.ERASE: lambda pixels, a: warp.erase(pixels, a[:4], colour=a[4]),
    Op.ERASE_NOISE: lambda pixels, a: warp.erase_noise(pixels, a[:4], key=a[4]),
}


def apply_steps(pixels_HW3: Pixels, steps_K6: NDArray[np.int64]) -> Pixels:
    """Return pixels after the K steps, in order: C-contiguous uint8 (H, W, 3).

    It may be pixels_HW3 itself, which is not modified.
    """
    pixels = np.ascontiguousarray(pixels_HW3)
    for op, *arguments in steps_K6.tolist():
        assert op in _APPLY, f"operation {op}: a newer recipe's, or no step at all"
        pixels = _APPLY[op](pixels, arguments)
    return pixels
