"""What is known of an image file, parts of its pixels, and the memory they are decoded into."""

import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The largest array of one slot that is kept for the next image.
MAX_KEPT_BYTES = 64 << 20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    width, height: pixels, after turning where the recipe applies EXIF.
    scalable: may be decoded at 1/n. clean: backends other than Pillow may try. turned: EXIF moves
    its pixels.
    """

    width: int
    height: int
    scalable: bool
    clean: bool
    turned: bool

    def shape(self, scale: int) -> tuple[int, int]:
        """Return rows and columns of the image decoded at 1/scale: sides are rounded up."""
        return -(-self.height // scale), -(-self.width // scale)


class Window(NamedTuple):
    """A part of an image decoded at 1/scale: columns left to right - 1, rows top to bottom - 1."""

    left: int
    top: int
    right: int
    bottom: int


class Decoded(NamedTuple):
    """Pixels of an image decoded at 1/scale.

    pixels: uint8 RGB (H, W, 3). left, top: the column and row at which they begin.
    """

    pixels: Pixels
    left: int
    top: int

    def cut(self, window: Window) -> "Decoded":
        """Return the part in a window, which these pixels must hold."""
        left, top, right, bottom = window
        rows = slice(top - self.top, bottom - self.top)
        columns = slice(left - self.left, right - self.left)
        return Decoded(self.pixels[rows, columns], left, top)


_local = threading.local()


def scratch(slot: str | int, shape: tuple[int, ...], *, most_bytes: int | None = None) -> Pixels:
    """Return memory for an array that the next call with this slot and thread overwrites.

    Pages that are fresh from the system cost a quarter of a decoder's time. What is too large to be
    kept, above most_bytes or else MAX_KEPT_BYTES, is fresh.
    """
    slots: dict[str | int, Pixels] | None = getattr(_local, "slots", None)
    if slots is None:
        slots = _local.slots = {}
    size = math.prod(shape)
    memory = slots.get(slot)
    if memory is None or memory.size < size:
        memory = np.empty(size, np.uint8)
        if size <= (most_bytes or MAX_KEPT_BYTES):
            slots[slot] = memory
    return memory[:size].reshape(shape)
