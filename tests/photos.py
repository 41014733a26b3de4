"""Image files for the tests: photograph-like, patterned, turned, damaged.

Patterns are integer arithmetic and stored as PNG, so that their pixels depend on no encoder.
"""

import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x112


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return an image's file bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_photo(width: int, height: int, *, seed: int = 0, falloff: float = 1.5) -> Image.Image:
    """Return RGB noise whose spectrum falls as 1 / f**falloff, the channels correlated.

    Photographs are between 1 (sharp, much texture) and 2 (soft).
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    normal = rng.normal(size=(2, 4, height, width // 2 + 1))
    common, *own = normal[0] + 1j * normal[1]
    spectra = [(0.85 * common + 0.5 * channel) / frequency**falloff for channel in own]
    levels = np.stack([np.fft.irfft2(each, s=(height, width)) for each in spectra], -1)
    scaled = 128 + 50 * levels / max(float(levels.std()), 1e-12)
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))


def real_photos() -> list[bytes]:
    """Return the two photographs that ship with scikit-learn: 640 x 427 JPEGs, sharp."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


def pattern(width: int, height: int, *, kind: int = 0) -> Pixels:
    """Return uint8 RGB (height, width, 3) made of integers: ramps, rings or a hash."""
    y, x, c = np.mgrid[:height, :width, :3]
    if kind == 0:
        values = 5 * x + 3 * y + 40 * c
    elif kind == 1:
        values = (x - width // 2) ** 2 + (y - height // 3) ** 2 * (c + 1)
    else:
        values = (x * 7919 + y * 104729 + c * 1299709) * 2654435761 >> 13
    return (values % 256).astype(np.uint8)


def pattern_png(width: int, height: int, *, kind: int = 0) -> bytes:
    """Return a pattern as a PNG file."""
    return encoded(Image.fromarray(pattern(width, height, kind=kind)), "PNG")


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8) -> bytes:
    """Return a PNG file that claims a size and holds the chunks (kind, data), digests right."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    out = PNG_MAGIC
    for kind, data in (head, *chunks, (b"IEND", b"")):
        checked = kind + data
        out += struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))
    return out


def idat(pixels: Pixels) -> tuple[bytes, bytes]:
    """Return the chunk that holds uint8 RGB pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"IDAT", zlib.compress(rows)


def exif(orientation: int) -> Image.Exif:
    """Return EXIF that states an orientation."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags
