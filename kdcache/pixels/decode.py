"""Image file bytes to uint8 RGB, whole or in a window, at 1, 1/2, 1/4 or 1/8 of a JPEG's size.

Invariant: every backend gives the same bytes for the same file, scale and window. Pillow is the
reference and decodes all formats; simplejpeg and TurboJPEG are faster and decode clean grey, YCbCr
and RGB JPEGs only: a file that makes them warn is left to Pillow. Colour profiles are ignored,
alpha is dropped, 16-bit grey keeps its high byte, CMYK is converted as Pillow does.
"""

import warnings
from dataclasses import replace

import simplejpeg

from kdcache.errors import DataError
from kdcache.pixels.conformance import SCALES, Backend, chosen_backends, decode_by
from kdcache.pixels.image import Decoded, Header, Pixels, Window
from kdcache.pixels.pillow import (
    SIDES_SWAPPED,
    decode_pillow,
    decode_window,
    open_image,
    read_turn,
)
from kdcache.recipe.parts import Decode

__all__ = [
    "SCALES",
    "Backend",
    "Decoded",
    "Header",
    "Pixels",
    "Window",
    "chosen_backends",
    "decode_image",
    "decode_pillow",
    "read_header",
]


def read_header(data: bytes, decode: Decode, *, whole: bool = True) -> Header:
    """Return an image's header.

    whole: have Pillow read it as well, since it refuses headers that the other backends pass over;
    else take it for one that was read so before.

    Raises:
        DataError: not a JPEG, PNG or WebP image, or more pixels than decode.max_pixels.
    """
    upright = decode.exif == "ignore" or b"\xff\xe1" not in data  # no EXIF, and no XMP either
    header = _jpeg_header(data) if upright else None
    if header is None:
        return _pillow_header(data, decode)
    _refuse_huge(header.width, header.height, decode)
    if whole:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_image(data).close()
    return header


def _refuse_huge(width: int, height: int, decode: Decode) -> None:
    if width * height > decode.max_pixels:
        raise DataError(
            f"{width} x {height} pixels, the recipe's decode.max_pixels is "
            f"{decode.max_pixels}; shrink the image, for instance with kdcache pack --shorter-side"
        )


def _jpeg_header(data: bytes) -> Header | None:
    """Return the header of a JPEG that other backends than Pillow may decode, else None."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: colours sampled in a way that it has no name for
        return None
    clean = colours in ("Gray", "YCbCr", "RGB")
    return Header(width, height, scalable=True, clean=True, turned=False) if clean else None


def _pillow_header(data: bytes, decode: Decode) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(data) as image:
            width, height = image.size
            _refuse_huge(width, height, decode)  # reading a PNG's EXIF decodes it
            scalable = image.format in ("JPEG", "MPO")
            turn = read_turn(image) if decode.exif == "apply" else None
    turned = turn is not None
    if turn in SIDES_SWAPPED:
        width, height = height, width
    header = Header(width, height, scalable=scalable and not turned, clean=False, turned=turned)
    clean = replace(header, clean=True)
    return clean if not turned and _jpeg_header(data) == clean else header


def decode_image(
    data: bytes,
    header: Header,
    *,
    scale: int = 1,
    window: Window | None = None,
    backend: Backend | None = None,
) -> Decoded:
    """Return an image's uint8 RGB pixels at 1/scale, sides rounded up, or those in a window.

    window: what is needed of an image that was decoded in whole before; damage elsewhere may pass.
    Without a window all is decoded, and damage anywhere is an error. backend: of clean JPEGs, by
    default the first of chosen_backends().

    The pixels lie in memory that the thread's next call with the same scale overwrites.

    Raises:
        DataError: the image is truncated or damaged.
        ValueError: the window is empty, or not within the image.
    """
    tall, wide = header.shape(scale)
    part = Window(0, 0, wide, tall) if window is None else window
    if not (0 <= part.left < part.right <= wide and 0 <= part.top < part.bottom <= tall):
        raise ValueError(f"{window} is not within {wide} x {tall} pixels")
    if backend is None:
        backend = chosen_backends()[0] if header.clean else "pillow"
    decoded = decode_by(backend, data, header, scale=scale, window=window)
    if decoded is None:
        decoded = decode_window(data, header, scale=scale, window=window)
    return decoded.cut(part)
