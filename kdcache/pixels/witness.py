"""Digests of the pixels handed over, by which a replay proves itself, and of what led to them."""

from collections.abc import Sequence
from enum import StrEnum
from importlib.metadata import version

import numpy as np
import xxhash
from numpy.typing import NDArray


class Layer(StrEnum):
    """What makes a view's pixels, in order."""

    DRAW = "draw"
    DECODE = "decode"
    RESIZE = "resize"
    STEPS = "steps"
    MIX = "mix"


PIXEL_LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch")


def libraries(layer: Layer, *, resize: str) -> tuple[str, ...]:
    """Return the libraries that a layer rests on. resize: the recipe's."""
    if layer is Layer.RESIZE:
        return (resize.partition("-")[0],)
    return ("simplejpeg", "pillow") if layer is Layer.DECODE else ("numpy",)


def witness(pixels_NHW3: NDArray[np.uint8]) -> int:
    """Return xxh3-64 of a block's bytes in one view: rows in order, each row by row, RGB."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels_NHW3).data)


def pixel_versions() -> dict[str, str]:
    """Return the versions of the libraries that make pixels."""
    return {name: version(name) for name in PIXEL_LIBRARIES}


class LayerDigests:
    """Digests of what each layer gave for the usable rows of a block in one view, row after row.

    Where witnesses differ, the first of these that differs names the culprit. Mixing has none: it
    is to blame where all others agree.
    """

    def __init__(self) -> None:
        made = (Layer.DRAW, Layer.DECODE, Layer.RESIZE, Layer.STEPS)
        self._digests: dict[Layer, xxhash.xxh3_64] = {layer: xxhash.xxh3_64() for layer in made}

    def add(self, layer: Layer, array: NDArray[np.generic]) -> None:
        """Add a row's result; its bytes count, in C order."""
        self._digests[layer].update(np.ascontiguousarray(array).data)

    def values(self) -> dict[str, int]:
        """Return the digest of each layer, below 2**64."""
        return {layer.value: digest.intdigest() for layer, digest in self._digests.items()}


def join_layers(blocks: Sequence[dict[str, int]]) -> dict[str, str]:
    """Return the digest of each layer over the blocks of a tar, 16 hexadecimal digits."""
    return {
        layer: xxhash.xxh3_64_hexdigest(np.array([b[layer] for b in blocks], "<u8").tobytes())
        for layer in blocks[0]
    }
