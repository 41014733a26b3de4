"""JPEG files to uint8 RGB by simplejpeg, whole or down to the last row that is needed.

Entropy coding goes from the top to the bottom and takes most of the time, so an image of which only
the upper part is needed is decoded as if it were less high: its copy states another height.
Invariant: pixels come only from decoders that met nothing to warn about; whatever is unusual or
damaged within the part decoded gives None, and the caller turns to the reference.
"""

import re
import struct
from typing import NamedTuple

import numpy as np
import simplejpeg

from kdcache.pixels.image import Decoded, Pixels, Window, scratch

# An early stop costs about 10 microseconds, as much as decoding half as many pixels as these.
LEAST_PIXELS_SAVED = 1 << 11

_SOF, _DHT, _RST, _EOI, _SOS, _DQT, _DRI = 0xC0, 0xC4, 0xD0, 0xD9, 0xDA, 0xDB, 0xDD
_PASSED_OVER = {_DHT, _DQT, 0xFE, *range(0xE0, 0xF0)}
# What libjpeg's warning is when it has all rows, looks for the end mark and meets more data first.
_MORE_DATA = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


class Frame(NamedTuple):
    """What an early stop needs of a sequential 8-bit Huffman JPEG of one scan.

    height_at: where the height stands in the file. mcu_width, mcu_height: pixels of the units that
    the scan consists of. interval: units between restart markers, 0 for none. scan_at: where the
    scan's data begins.
    """

    width: int
    height: int
    height_at: int
    mcu_width: int
    mcu_height: int
    interval: int
    scan_at: int


def find_frame(data: bytes) -> Frame | None:
    """Return the frame of a JPEG that may be stopped early, else None."""
    try:
        return _find_frame(data)
    except (IndexError, struct.error):
        return None


def _find_frame(data: bytes) -> Frame | None:
    at, interval, frame, count = 2, 0, None, 0
    while True:
        mark, marker, size = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            return None
        if marker == _SOS:
            if frame is None or data[at + 4] != count:
                return None
            return frame._replace(interval=interval, scan_at=at + 2 + size)
        if marker in (_SOF, _SOF + 1):
            bits, height, width, count = struct.unpack_from(">BHHB", data, at + 4)
            factors = data[at + 11 : at + 2 + size : 3]
            if frame is not None or bits != 8 or not height or not width:
                return None
            if size != 8 + 3 * count or count not in (1, 3):
                return None
            across, down = {f >> 4 for f in factors}, {f & 15 for f in factors}
            if not across | down <= {1, 2, 3, 4} or (count == 1 and factors != b"\x11"):
                return None
            frame = Frame(width, height, at + 5, 8 * max(across), 8 * max(down), 0, 0)
        elif marker == _DRI:
            (interval,) = struct.unpack_from(">H", data, at + 4)
        elif marker not in _PASSED_OVER:
            return None
        at += 2 + size


def rows_needed(frame: Frame, *, bottom: int, scale: int) -> int:
    """Return the height at which an image may be cut so that rows before `bottom` stay the same.

    bottom: of the image decoded at 1/scale. Upsampled colours take a part of the row below theirs,
    so one row more than asked for is decoded, and then whole units, which every scale divides.
    """
    return -(-(bottom + 1) * scale // frame.mcu_height) * frame.mcu_height


def _restart_at(data: bytes, frame: Frame, *, rows: int) -> int | None:
    """Return where the first restart marker stands that all units of the rows precede, if any.

    Ended there, data that is more than needed has the end mark after it, and data between other
    markers has not: so it is known which was met.
    """
    units = rows // frame.mcu_height * -(-frame.width // frame.mcu_width)
    count = -(-units // frame.interval)
    coded = np.frombuffer(data, np.uint8, offset=frame.scan_at)
    places = np.flatnonzero(coded[:-1] == 0xFF)
    places = places[coded[places + 1] & 0xF8 == _RST]
    return frame.scan_at + int(places[count - 1]) if len(places) >= count else None


def _cut(data: bytes, frame: Frame, *, rows: int) -> Pixels | None:
    """Return a copy of a file that states a height of only so many rows; None if that may fail."""
    end = _restart_at(data, frame, rows=rows) if frame.interval else len(data)
    if end is None:
        return None
    copy = scratch("file", (end + 2,))
    copy[:end] = np.frombuffer(data, np.uint8, end)
    copy[frame.height_at : frame.height_at + 2] = rows >> 8, rows & 255
    copy[end:] = 0xFF, _EOI
    return copy


def _decode_upper(data: bytes, size: tuple[int, int], window: Window, scale: int) -> Pixels | None:
    """Return the rows of an image down to a window's bottom; None if an early stop cannot be."""
    tall, wide = -(-size[1] // scale), -(-size[0] // scale)
    if (tall - window.bottom) * wide * scale < LEAST_PIXELS_SAVED:
        return None
    frame = find_frame(data)
    if frame is None or (frame.width, frame.height) != size:
        return None
    rows = rows_needed(frame, bottom=window.bottom, scale=scale)
    if (size[1] - rows) * size[0] < LEAST_PIXELS_SAVED:
        return None
    copy = _cut(data, frame, rows=rows)
    if copy is None:
        return None
    least = (rows // scale, wide) if scale > 1 else (0, 0)
    shape = rows // scale, wide, 3
    pixels = scratch(scale, shape)
    try:
        found = simplejpeg.decode_jpeg_header(copy, min_height=least[0], min_width=least[1])
    except (ValueError, KeyError):
        return None
    if found[:2] != shape[:2]:
        return None
    try:
        simplejpeg.decode_jpeg(copy, min_height=least[0], min_width=least[1], buffer=pixels)
    except ValueError as error:  # after all rows were written, if it is only that more follows
        if not _MORE_DATA.fullmatch(str(error)):
            return None
    return pixels


def decode_simplejpeg(
    data: bytes, size: tuple[int, int], *, scale: int, window: Window | None = None
) -> Decoded | None:
    """Return at least the window of a grey, YCbCr or RGB JPEG at 1/scale, or None.

    size: width and height of the whole image. None: simplejpeg may not, or warns.
    """
    if scale > 1 and max(size) < 8:
        return None  # it takes the largest of the factors that give a size: 5/8, not 1/2, for 3 x 3
    if window is not None:
        upper = _decode_upper(data, size, window, scale)
        if upper is not None:
            return Decoded(upper, 0, 0)
    shape = -(-size[1] // scale), -(-size[0] // scale), 3
    least = shape[:2] if scale > 1 else (0, 0)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, min_height=least[0], min_width=least[1], buffer=scratch(scale, shape)
        )
    except ValueError:
        return None
    return Decoded(pixels, 0, 0) if pixels.shape == shape else None
