"""Another library's pixels: one layer of the pixel function altered a little."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcache.pixels import mix as mix_module
from kdcache.pixels import render, selftest
from kdcache.pixels.decode import Decoded
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.selftest import check_pixels
from kdcache.pixels.witness import Layer
from kdcache.recipe import plan

Array = NDArray[Any]


def one_off(array: Array) -> Array:
    """Return a copy with its middle value one level up or down."""
    changed = array.copy(order="C")
    changed.reshape(-1)[changed.size // 2] ^= 1
    return changed


def _after(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *args, **options: one_off(function(*args, **options))


def _smaller(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return a law of boxes that are one pixel narrower where they may."""

    def boxes(*args: Any, **options: Any) -> Array:
        boxes_N4 = function(*args, **options)
        boxes_N4[:, 2] = np.maximum(boxes_N4[:, 2] - 1, 1)
        return boxes_N4

    return boxes


def alter(patch: pytest.MonkeyPatch, layer: Layer) -> None:
    """Alter what a layer makes: one channel of one pixel of each image, or its box, by one.

    The self-test is done before, so that only the pixels tell.
    """
    for law in RESIZE:
        check_pixels(law)
    if layer is Layer.DRAW:
        patch.setattr(plan, "crop_boxes", _smaller(plan.crop_boxes))
    elif layer is Layer.DECODE:
        whole = render.decode_image

        def decoded(*args: Any, **options: Any) -> Decoded:
            made = whole(*args, **options)
            return made._replace(pixels=made.pixels ^ 1)

        patch.setattr(render, "decode_image", decoded)
    elif layer is Layer.RESIZE:
        for law, resize in list(RESIZE.items()):
            patch.setitem(RESIZE, law, _after(resize))
    elif layer is Layer.STEPS:
        for module in (render, selftest):
            patch.setattr(module, "apply_steps", _after(module.apply_steps))
    else:
        plain = mix_module.mix_row

        def mixed(*args: Any, out: Array, **options: Any) -> None:
            plain(*args, out=out, **options)
            out[:] = one_off(out)

        for module in (render, mix_module):
            patch.setattr(module, "mix_row", mixed)
