"""Crops to views: resizes in uint8 whose bytes are the same on every machine.

All are antialiased. torch's and Pillow's differ by one level, rarely by two.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from kdcache.recipe.parts import Resize

Pixels = NDArray[np.uint8]


def resize_torch(pixels: Pixels, size: int) -> Pixels:
    """Return pixels as (size, size, 3) by torch's bilinear antialiased resize in uint8."""
    return _by_torch(pixels, size, "bilinear")


def resize_torch_bicubic(pixels: Pixels, size: int) -> Pixels:
    """Return pixels as (size, size, 3) as resize_torch, bicubic (a = -0.5)."""
    return _by_torch(pixels, size, "bicubic")


def _by_torch(pixels: Pixels, size: int, mode: str) -> Pixels:
    # The batch's axis comes first: added after permuting, torch takes this for channels first, and
    # moves every pixel twice.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(batch, size=(size, size), mode=mode, antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def resize_pillow(pixels: Pixels, size: int) -> Pixels:
    """Return pixels as (size, size, 3) by two one-dimensional Pillow resizes, horizontal first."""
    return _by_pillow(pixels, size, Image.Resampling.BILINEAR)


def resize_pillow_bicubic(pixels: Pixels, size: int) -> Pixels:
    """Return pixels as (size, size, 3) as resize_pillow, bicubic (a = -0.5)."""
    return _by_pillow(pixels, size, Image.Resampling.BICUBIC)


def _by_pillow(pixels: Pixels, size: int, filter_: Image.Resampling) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    wide = image.resize((size, image.height), filter_)
    return np.array(wide.resize((size, size), filter_))


RESIZE: dict[Resize, Callable[[Pixels, int], Pixels]] = {
    "torch": resize_torch,
    "pillow": resize_pillow,
    "torch-bicubic": resize_torch_bicubic,
    "pillow-bicubic": resize_pillow_bicubic,
}
