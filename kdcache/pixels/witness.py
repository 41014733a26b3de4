"""Digests of the pixels handed over, by which a replay proves itself."""

from importlib.metadata import version

import numpy as np
import xxhash
from numpy.typing import NDArray

PIXEL_LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch")


def witness(pixels_NHW3: NDArray[np.uint8]) -> int:
    """Return xxh3-64 of a block's bytes in one view: rows in order, each row by row, RGB."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels_NHW3).data)


def pixel_versions() -> dict[str, str]:
    """Return the versions of the libraries that make pixels."""
    return {name: version(name) for name in PIXEL_LIBRARIES}
