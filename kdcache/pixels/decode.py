"""Image file bytes to uint8 RGB, whole or at 1/2, 1/4 or 1/8 of a JPEG's size.

Invariant: every backend gives the same bytes for the same file and scale. Pillow is the reference
and decodes all formats; simplejpeg is faster and decodes clean grey, YCbCr and RGB JPEGs only: a
file that makes it warn is left to Pillow. Colour profiles are ignored, alpha is dropped, 16-bit
grey keeps its high byte, CMYK is converted as Pillow does.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from kdcache.errors import DataError, UsageError
from kdcache.recipe.schema import Decode

SCALES = (8, 4, 2, 1)
FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow's readers raise over damaged files, found by damaging files.
_DAMAGE = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    width, height: pixels, after turning where the recipe applies EXIF.
    scalable: may be decoded at 1/n. clean: simplejpeg may decode it. turned: EXIF moves its pixels.
    """

    width: int
    height: int
    scalable: bool
    clean: bool
    turned: bool


def read_header(data: bytes, decode: Decode) -> Header:
    """Return an image's header.

    Raises:
        DataError: not a JPEG, PNG or WebP image, or more pixels than decode.max_pixels.
    """
    header = _jpeg_header(data) if decode.exif == "ignore" else None
    if header is None:
        return _pillow_header(data, decode)
    _refuse_huge(header.width, header.height, decode)
    return header


def _refuse_huge(width: int, height: int, decode: Decode) -> None:
    if width * height > decode.max_pixels:
        raise DataError(
            f"{width} x {height} pixels, the recipe's decode.max_pixels is "
            f"{decode.max_pixels}; shrink the image, for instance with kdcache pack --shorter-side"
        )


def _jpeg_header(data: bytes) -> Header | None:
    """Return the header of a JPEG that simplejpeg can decode, else None."""
    if not simplejpeg.is_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    clean = colours in ("Gray", "YCbCr", "RGB")
    return Header(width, height, scalable=True, clean=True, turned=False) if clean else None


def _open(data: bytes) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which invents pixels; leave it False"
        )
    if not data:
        raise DataError("the image file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _DAMAGE as error:
        reason = str(error).replace("<_io.BytesIO object at ", "").split(" 0x")[0]
        raise DataError(f"not a readable JPEG, PNG or WebP image: {reason}") from None


def _pillow_header(data: bytes, decode: Decode) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(data) as image:
            width, height = image.size
            _refuse_huge(width, height, decode)  # reading a PNG's EXIF decodes it
            scalable = image.format in ("JPEG", "MPO")
            orientation = 1
            if decode.exif == "apply":
                try:
                    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                except _DAMAGE as error:
                    raise DataError(f"unreadable EXIF: {error}") from None
    turned = orientation in range(2, 9)
    if orientation in range(5, 9):
        width, height = height, width
    return Header(width, height, scalable=scalable and not turned, clean=False, turned=turned)


def decode_simplejpeg(data: bytes, header: Header, *, scale: int) -> Pixels | None:
    """Return uint8 RGB (H, W, 3) of a clean JPEG at 1/scale, or None where simplejpeg may not."""
    if scale > 1 and max(header.width, header.height) < 8:
        return None  # it takes the largest of the factors that give a size: 5/8, not 1/2, for 3 x 3
    tall, wide = -(-header.height // scale), -(-header.width // scale)
    least = (tall, wide) if scale > 1 else (0, 0)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
    except ValueError:
        return None
    return pixels if pixels.shape == (tall, wide, 3) else None


def decode_pillow(data: bytes, header: Header, *, scale: int) -> Pixels:
    """Return uint8 RGB (H, W, 3) at 1/scale; the reference for all formats.

    Raises:
        DataError: the image is truncated or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(data) as image:
            try:
                if scale > 1:
                    image.draft(None, (image.width // scale, image.height // scale))
                image.load()
                turned = ImageOps.exif_transpose(image) if header.turned else image
                return _to_rgb(turned)
            except _DAMAGE as error:
                raise DataError(f"cannot be decoded: {error}") from None


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        grey = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError("floating-point pixels; convert the image to 8 bits")
    return np.array(image.convert("RGB"))


def decode_image(data: bytes, header: Header, *, scale: int = 1) -> Pixels:
    """Return uint8 RGB (H, W, 3) at 1/scale, sides rounded up, by the fastest backend that may.

    Raises:
        DataError: the image is truncated or damaged.
    """
    pixels = decode_simplejpeg(data, header, scale=scale) if header.clean else None
    if pixels is None:
        pixels = decode_pillow(data, header, scale=scale)
    if pixels.shape != (-(-header.height // scale), -(-header.width // scale), 3):
        raise DataError(f"decoded to {pixels.shape} at 1/{scale}, unlike its header says")
    return pixels
