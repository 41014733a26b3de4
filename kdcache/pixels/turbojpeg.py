"""JPEG files to uint8 RGB by a libturbojpeg of version 3 or newer, where the system has one.

It decodes a window alone: rows below are not read, rows above and columns beside are not computed.
The library is called through ctypes, so sizes of all memory handed over are derived here from what
the library says of the same bytes. Invariant: a warning counts as a failure, and gives None.
"""

import ctypes
import os
import sys
from functools import lru_cache
from typing import Any, ClassVar

from kdcache.errors import UsageError
from kdcache.pixels.image import Decoded, Window, scratch

PATH_VARIABLE = "KDCACHE_TURBOJPEG"
LEAST_WIDTH = 8

# Values of turbojpeg.h, version 3.
_INIT_DECOMPRESS = 1
_STOP_ON_WARNING, _SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION = 0, 4, 5, 6, 7
_FAST_UPSAMPLE, _FAST_DCT = 9, 10
_PARAMETERS = {_STOP_ON_WARNING: 1, _FAST_UPSAMPLE: 0, _FAST_DCT: 0}
_PIXEL_RGB = 0
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # 444 422 420 grey 440 411 441


class _Factor(ctypes.Structure):
    _fields_: ClassVar = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


class _Region(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


_HANDLE, _INT, _FILE = ctypes.c_void_p, ctypes.c_int, (ctypes.c_char_p, ctypes.c_size_t)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # the result's type, then the arguments'
    "tj3Init": (_HANDLE, _INT),
    "tj3Destroy": (None, _HANDLE),
    "tj3Set": (_INT, _HANDLE, _INT, _INT),
    "tj3Get": (_INT, _HANDLE, _INT),
    "tj3DecompressHeader": (_INT, _HANDLE, *_FILE),
    "tj3SetScalingFactor": (_INT, _HANDLE, _Factor),
    "tj3SetCroppingRegion": (_INT, _HANDLE, _Region),
    "tj3Decompress8": (_INT, _HANDLE, *_FILE, ctypes.c_void_p, _INT, _INT),
}


@lru_cache(maxsize=1)
def find_library() -> ctypes.CDLL | None:
    """Return the library that KDCACHE_TURBOJPEG names or the system's loader finds, if any.

    Raises:
        UsageError: what KDCACHE_TURBOJPEG names is no libturbojpeg of version 3.
    """
    chosen = os.environ.get(PATH_VARIABLE)
    if chosen:
        try:
            return _load(chosen)
        except (OSError, AttributeError) as error:
            raise UsageError(
                f"{PATH_VARIABLE}={chosen}: not a libturbojpeg of version 3 or newer ({error}); "
                "name another, or leave the variable unset"
            ) from None
    for name in _names():
        try:
            return _load(name)
        except (OSError, AttributeError):
            continue
    return None


def _names() -> tuple[str, ...]:
    """Return the names that a system's loader may know the library by."""
    if sys.platform == "darwin":
        return "libturbojpeg.0.dylib", "libturbojpeg.dylib"
    if sys.platform == "win32":
        return "libturbojpeg.dll", "turbojpeg.dll"
    return "libturbojpeg.so.0", "libturbojpeg.so"


def _load(name: str) -> ctypes.CDLL:
    """Return a library with the types of what is called in it; AttributeError before version 3."""
    library = ctypes.CDLL(name)
    for function, (result, *arguments) in _FUNCTIONS.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    return library


def _region(window: Window, *, size: tuple[int, int], unit: int) -> _Region:
    """Return the region to decode so that a window of an image of a size is right.

    unit: width of a scan's unit; regions begin at its multiples. The outermost columns of a region
    are upsampled as those of an image, without a neighbour, so it is wider unless the image ends
    there; and one of less than three columns, whose colours have one, as one colour.
    """
    left = max(min(window.left - 1, size[0] - LEAST_WIDTH), 0) // unit * unit
    right = min(-(-(window.right + 1) // unit) * unit, size[0])
    return _Region(left, window.top, right - left, window.bottom - window.top)


def decode_turbojpeg(
    data: bytes, size: tuple[int, int], *, scale: int, window: Window | None = None
) -> Decoded | None:
    """Return at least the window of a JPEG at 1/scale, or None where it may not or would warn.

    size: width and height of the whole image.
    """
    library = find_library()
    if library is None:
        return None
    # A decoder for each image: one that is used again keeps the tables of the image before, and
    # decodes a damaged one by them.
    handle = library.tj3Init(_INIT_DECOMPRESS)
    if handle is None:
        return None
    try:
        return _decode(library, handle, data, size, scale=scale, window=window)
    finally:
        library.tj3Destroy(handle)


def _decode(
    library: ctypes.CDLL,
    handle: int,
    data: bytes,
    size: tuple[int, int],
    *,
    scale: int,
    window: Window | None,
) -> Decoded | None:
    if any(library.tj3Set(handle, *parameter) for parameter in _PARAMETERS.items()):
        return None
    if library.tj3DecompressHeader(handle, data, len(data)):
        return None
    found = library.tj3Get(handle, _WIDTH), library.tj3Get(handle, _HEIGHT)
    if found != size or library.tj3Get(handle, _PRECISION) != 8:
        return None
    wide, tall = -(-size[0] // scale), -(-size[1] // scale)
    region = _Region(0, 0, wide, tall)
    unit = _MCU_WIDTH.get(library.tj3Get(handle, _SUBSAMPLING))
    if window is not None and unit is not None:
        region = _region(window, size=(wide, tall), unit=unit // scale)
    if library.tj3SetScalingFactor(handle, _Factor(1, scale)):
        return None
    if (region.w, region.h) != (wide, tall) and library.tj3SetCroppingRegion(handle, region):
        return None
    pixels = scratch(scale, (region.h, region.w, 3))
    address = pixels.ctypes.data
    if library.tj3Decompress8(handle, data, len(data), address, region.w * 3, _PIXEL_RGB):
        return None
    return Decoded(pixels, region.x, region.y)
