"""The backends of JPEGs, and the proof that they give the pixels that docs/format.md specifies.

Pillow, the reference, must give a small file's pixels at every scale, which are known by their
digests. The others are used only if they give the same as Pillow, whole and in windows, over all
ways to sample colours. The proof takes a process some 15 milliseconds, once.
"""

import base64
import io
import logging
import os
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import simplejpeg
import xxhash
from PIL import Image, features
from PIL import __version__ as pillow_version

from kdcache.errors import MismatchError, UsageError
from kdcache.pixels import pillow, turbojpeg
from kdcache.pixels.image import Decoded, Header, Pixels, Window
from kdcache.pixels.jpeg import decode_simplejpeg
from kdcache.pixels.turbojpeg import decode_turbojpeg

_log = logging.getLogger(__name__)

SCALES = (8, 4, 2, 1)
BACKEND_VARIABLE = "KDCACHE_JPEG"

Backend = Literal["pillow", "simplejpeg", "turbojpeg"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)  # the slowest first


class Jpeg(NamedTuple):
    """A JPEG file and its header."""

    data: bytes
    header: Header


# Waves and squares, 4:2:0, sides that no unit divides.
KNOWN = Jpeg(
    base64.b64decode(
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwc"
        "KDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAlAC0DASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAABgAHBQT/xAAh"
        "EAABBAMBAQEAAwAAAAAAAAABAAIDEQQFIRIxExRBUf/EABgBAQEAAwAAAAAAAAAAAAAAAAUGAAIE/8QAKxEAAQIEBAUD"
        "BQAAAAAAAAAAAQIDAAQFERITUfAhIkFh0TEyghRicYGR/9oADAMBAAIRAxEAPwB2MeM49D+wiW7w2tJJHEkbmAQX6+BF"
        "N5sQ/wBN+Wgn6Y+HSEG46xrTKo8GiG+KesGXYrHTUOm0u0OI1lehVoT/ADhHPd31LtHniTz2qVIxTH/prA8mu/EGVCqP"
        "Xwj2a9d/qGUmI18NgWKRfYY0bZ6PCkLtgI4K+8RXY5ofkerq1MTNMfLllHl6GFZCqPFkBfs6HfiOgz9TCASaKLb5jmhx"
        "A6tIGIw49D6QiW7wA0kkcXbMVol+9sPbWGacZQovbD21jNWiR2RRspdpWvZ582LXOdhNfNTRZtLtDhNZXoVapGK0cjFb"
        "478QZUDKZmK3x3/fSPf4e/Ht1kops/0blEC6WjSYIfDbRfEX2GGxs9HhUxMVoh0m1+2kLU8ygRitf7dN/iFzXuEF/wCB"
        "FN5kOeHNqrUpY60hbhWocREVSnFOMlajxHpBH9XRz396lujmdJ55VKUqVhlBlcy3NBlQcURnX5tYVundHBVXxFtlI5+R"
        "6+WpSmJplCVZgHEwrIuKRLh1J5jH/9k="
    ),
    Header(45, 37, scalable=True, clean=True, turned=False),
)
KNOWN_DIGESTS = {  # xxh3-64 of the pixels at 1/scale
    1: "eebd11541fd5b454",
    2: "9ec2d789ff4672e7",
    4: "f7d734d02ceca887",
    8: "4fb1a63a2b4d2527",
}


def sampled() -> list[Jpeg]:
    """Return files with each way to sample colours, one progressive and one with restarts."""
    width, height = 98, 70  # two columns more than whole units
    y, x, c = np.mgrid[:height, :width, :3]
    pixels = ((x * x // 7 + y * (c + 3) + (x // 5 ^ y // 3) * 9) % 256).astype(np.uint8)
    files = [_by_pillow(pixels, 0, restart_marker_blocks=7), _by_pillow(pixels, 1)]
    files.append(_by_pillow(pixels, 2, progressive=True))
    files += [
        simplejpeg.encode_jpeg(pixels, quality=75, colorsubsampling=name)
        for name in ("420", "440", "411")
    ]
    header = Header(width, height, scalable=True, clean=True, turned=False)
    return [Jpeg(data, header) for data in files]


def _by_pillow(pixels: Pixels, subsampling: int, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75, subsampling=subsampling, **options)
    return file.getvalue()


def windows(width: int, height: int) -> list[Window]:
    """Return the whole of an image, a part above, one between units' edges, one at its end."""
    middle, third = max(width // 16 * 8, 1), height // 3
    return [
        Window(0, 0, width, height),
        Window(width // 8, 0, middle, max(height // 4, 1)),
        Window(middle, third, min(middle + 16, width), third + 1),
        Window(width - 1, height // 2, width, height),
    ]


# --- which backends conform ----------------------------------------------------------------


def available_backends() -> tuple[Backend, ...]:
    """Return the backends that this machine has, the slowest first."""
    return BACKENDS if turbojpeg.find_library() else BACKENDS[:-1]


def decode_by(
    backend: Backend, data: bytes, header: Header, *, scale: int, window: Window | None
) -> Decoded | None:
    """Return at least a window by a backend; None where it leaves that to Pillow."""
    size = header.width, header.height
    if backend == "pillow":
        return pillow.decode_window(data, header, scale=scale, window=window)
    if not header.clean:
        return None
    if backend == "turbojpeg":
        return decode_turbojpeg(data, size, scale=scale, window=window)
    return decode_simplejpeg(data, size, scale=scale, window=window)


@lru_cache(maxsize=1)
def check_decode() -> None:
    """Check, once in a process, that Pillow gives the pixels of pixel function 1.

    Raises:
        MismatchError: it gives others.
    """
    for scale, digest in KNOWN_DIGESTS.items():
        pixels = pillow.decode_pillow(*KNOWN, scale=scale)
        if xxhash.xxh3_64_hexdigest(pixels.data) != digest:
            codec = "libjpeg_turbo" if features.check_feature("libjpeg_turbo") else "jpg"
            raise MismatchError(
                "the layer decode makes other pixels here than pixel function 1 states; it rests "
                f"on pillow {pillow_version} with {codec} {features.version(codec)}: install "
                "Pillow's own wheel, 10.4 or newer, which has libjpeg-turbo"
            )


@lru_cache(maxsize=len(BACKENDS))
def conforming(backend: Backend) -> bool:
    """Return whether a backend is there and gives Pillow's pixels wherever it gives any."""
    if backend not in available_backends():
        return False
    for data, header in (KNOWN, *sampled()):
        for scale in SCALES:
            whole = Decoded(pillow.decode_pillow(data, header, scale=scale), 0, 0)
            for window in windows(*whole.pixels.shape[1::-1]):
                found = decode_by(backend, data, header, scale=scale, window=window)
                expected = whole.cut(window).pixels
                if found and not np.array_equal(found.cut(window).pixels, expected):
                    return False
    return True


@lru_cache(maxsize=1)
def chosen_backends() -> tuple[Backend, ...]:
    """Return the backend of clean JPEGs, KDCACHE_JPEG's or the fastest that conforms, then Pillow.

    Raises:
        MismatchError: Pillow gives other pixels than it should.
        UsageError: KDCACHE_JPEG names no backend, or one that is not there or gives other pixels.
    """
    check_decode()
    forced = os.environ.get(BACKEND_VARIABLE) or None
    asked = BACKENDS if forced is None else tuple(b for b in BACKENDS if b == forced)
    for backend in reversed(asked):
        if backend == "pillow":
            _log.debug("JPEGs are decoded by pillow")
            return ("pillow",)
        if conforming(backend):
            _log.debug("JPEGs are decoded by %s, then pillow", backend)
            return backend, "pillow"
    if forced == "turbojpeg" and forced not in available_backends():
        raise UsageError(
            f"{BACKEND_VARIABLE}={forced}: the system's loader finds no libturbojpeg of version 3; "
            f"name one by {turbojpeg.PATH_VARIABLE}=PATH, or leave the variable unset"
        )
    there = ", ".join(b for b in available_backends() if conforming(b))
    reason = "gives other pixels here" if asked else f"the backends are {', '.join(BACKENDS)}"
    raise UsageError(
        f"{BACKEND_VARIABLE}={forced}: {reason}; choose one of {there}, or leave the variable unset"
    )
