"""Image files of all formats by Pillow, the reference."""

import io
import struct
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageFile

from kdcache.errors import DataError, UsageError
from kdcache.pixels.image import Decoded, Header, Pixels, Window, scratch

FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow's readers raise over damaged files, found by damaging files.
DAMAGE = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip


def open_image(data: bytes) -> Image.Image:
    """Return an image whose header is read.

    Raises:
        DataError: not a readable JPEG, PNG or WebP image.
        UsageError: Pillow is set to invent pixels of files that are cut.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which invents pixels; leave it False"
        )
    if not data:
        raise DataError("the image file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except DAMAGE as error:
        reason = str(error).replace("<_io.BytesIO object at ", "").split(" 0x")[0]
        raise DataError(f"not a readable JPEG, PNG or WebP image: {reason}") from None


_TURNS = {  # by orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_SWAPPED = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))


def read_turn(image: Image.Image) -> Image.Transpose | None:
    """Return how EXIF says that an image is to be turned, if so.

    What XMP says does not count: only some versions of Pillow read it.

    Raises:
        DataError: the EXIF cannot be read.
    """
    try:
        if image.format == "PNG":
            image.load()  # EXIF and XMP may come after the pixels
        for name in ("xmp", "XML:com.adobe.xmp"):
            image.info.pop(name, None)
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE as error:
        raise DataError(f"unreadable EXIF: {error}") from None


def decode_window(
    data: bytes, header: Header, *, scale: int = 1, window: Window | None = None
) -> Decoded:
    """Return the pixels in a window of an image at 1/scale; all is decoded.

    Raises:
        DataError: the image is truncated or damaged.
    """
    shape = header.shape(scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(data) as image:
            try:
                if scale > 1:
                    image.draft(None, (image.width // scale, image.height // scale))
                image.load()
                turn = read_turn(image) if header.turned else None
                turned = image if turn is None else image.transpose(turn)
                if (turned.height, turned.width) != shape:
                    raise DataError(
                        f"decoded to {turned.width} x {turned.height} pixels at 1/{scale}, unlike "
                        f"its header says: {shape[1]} x {shape[0]}"
                    )
                part = turned if window is None else turned.crop(window)
                return Decoded(_to_rgb(part, scale), *(window or (0, 0))[:2])
            except DAMAGE as error:
                raise DataError(f"cannot be decoded: {error}") from None


def decode_pillow(data: bytes, header: Header, *, scale: int = 1) -> Pixels:
    """Return the reference's pixels of a whole image at 1/scale, in memory of their own."""
    return decode_window(data, header, scale=scale).pixels.copy()


def _to_rgb(image: Image.Image, slot: int) -> Pixels:
    pixels = scratch(slot, (image.height, image.width, 3))
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        pixels[:] = (np.clip(values, 0, 65535) >> 8)[..., None]
    elif image.mode == "F":
        raise DataError("floating-point pixels; convert the image to 8 bits")
    else:
        pixels[:] = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels
