"""JPEG files for tests of decoders: of the kinds that encoders write, and of some that none do."""

import struct
from collections import Counter
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from kdcache.errors import DataError
from kdcache.pixels.conformance import decode_by
from kdcache.pixels.decode import (
    Backend,
    Header,
    Pixels,
    Window,
    decode_image,
    decode_pillow,
    read_header,
)
from kdcache.recipe.parts import Decode
from tests.photos import encoded, pattern, smooth_photo

SUBSAMPLINGS = ("444", "422", "420", "440", "411")

Factors = tuple[tuple[int, int], ...]


def random_jpeg(rng: np.random.Generator, *, most: int = 150) -> tuple[bytes, str]:
    """Return a JPEG with sides of up to `most` pixels, and a word for its kind."""
    width, height = (int(side) for side in rng.integers(1, rng.choice((12, 40, most)), 2))
    image = smooth_photo(width, height, seed=int(rng.integers(2**31)), falloff=rng.choice((0.7, 1)))
    if rng.random() < 0.2:
        image = Image.fromarray(pattern(width, height, kind=int(rng.integers(3))))
    options: dict[str, Any] = {
        "quality": int(rng.integers(3, 98)),
        "optimize": bool(rng.integers(2)),
    }
    kind = str(rng.choice(("plain", "progressive", "grey", "rgb", "restart", "simplejpeg")))
    if kind == "simplejpeg":
        name = str(rng.choice(SUBSAMPLINGS))
        pixels = np.array(image)
        return simplejpeg.encode_jpeg(pixels, options["quality"], colorsubsampling=name), name
    if kind == "grey":
        image = image.convert("L")
    options["subsampling"] = 0 if kind == "rgb" else int(rng.integers(3))
    options["keep_rgb"] = kind == "rgb"
    options["progressive"] = kind == "progressive" or (kind == "grey" and bool(rng.integers(2)))
    if kind == "restart":
        which = str(rng.choice(("restart_marker_rows", "restart_marker_blocks")))
        options[which] = int(rng.integers(1, 10))
    return encoded(image, **options), f"{kind} {options['subsampling']}"


def coded(width: int, height: int, factors: Factors, *, interval: int = 0, seed: int = 0) -> bytes:
    """Return a sequential JPEG with any sampling factors (across, down), its coefficients random.

    interval: units between restart markers, 0 for none.
    """
    rng = np.random.default_rng(seed)
    count = len(factors)
    if count == 1:
        factors = ((1, 1),)  # a scan of one component has units of one block
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    parts = [b"\xff\xd8", _segment(0xDB, bytes([0]) + bytes([6]) * 64)]
    tables = b"".join(
        bytes([which, 0, 0, 0, len(symbols), *[0] * 12]) + bytes(symbols)
        for which, symbols in ((0x00, _DC), (0x10, _AC))
    )
    ids = b"".join(bytes([n + 1, h << 4 | v, 0]) for n, (h, v) in enumerate(factors))
    parts.append(_segment(0xC0, struct.pack(">BHHB", 8, height, width, count) + ids))
    parts.append(_segment(0xC4, tables))
    if interval:
        parts.append(_segment(0xDD, struct.pack(">H", interval)))
    selectors = b"".join(bytes([n + 1, 0]) for n in range(count))
    parts.append(_segment(0xDA, bytes([count]) + selectors + bytes([0, 63, 0])))
    for number, first in enumerate(range(0, units, interval or units)):
        if number:
            parts.append(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        some = min(interval or units, units - first)
        parts.append(_entropy_coded(rng, factors, some))
    return b"".join(parts) + b"\xff\xd9"


_DC = tuple(range(11))  # sizes of differences; code n, of four bits, is for the n-th
_AC = (0x00, 0x01, 0x02, 0x03, 0x11, 0x12, 0x21, 0x32)  # end; zeros before and size of a value


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _value(value: int, size: int) -> str:
    """Return the bits of a signed value of a size: negative ones are one less, without the sign."""
    return format(value if value > 0 else value + (1 << size) - 1, f"0{size}b") if size else ""


def _entropy_coded(rng: np.random.Generator, factors: Factors, units: int) -> bytes:
    """Return random units, padded with ones to whole bytes, 0xFF stuffed."""
    bits, levels = [], [0] * len(factors)
    for _ in range(units):
        for component, (h, v) in enumerate(factors):
            for _ in range(h * v):
                level = int(rng.integers(-150, 151))
                difference, levels[component] = level - levels[component], level
                size = abs(difference).bit_length()
                bits.append(format(size, "04b") + _value(difference, size))
                for code in rng.integers(1, len(_AC), rng.integers(0, 9)).tolist():
                    size = _AC[code] & 15
                    value = int(rng.integers(1 << size - 1, 1 << size) * rng.choice((-1, 1)))
                    bits.append(format(code, "04b") + _value(value, size))
                bits.append("0000")
    joined = "".join(bits)
    joined += "1" * (-len(joined) % 8)
    return int(joined, 2).to_bytes(len(joined) // 8).replace(b"\xff", b"\xff\x00")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with up to three runs of up to eight bytes changed, put in or taken out."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, count = int(rng.integers(len(out))), int(rng.integers(1, 9))
        new = rng.integers(0, 256, count, np.uint8).tobytes()
        out[at : at + (0, 1, count)[rng.integers(3)]] = new[: (count, 1, 0)[rng.integers(3)]]
    return bytes(out)


# --- what a backend makes of them ----------------------------------------------------------


def random_window(rng: np.random.Generator, shape: tuple[int, ...]) -> Window:
    """Return a window of an image of shape (H, W, ...), often thin, often at an edge."""
    edges = []
    for side in (shape[1], shape[0]):
        low = int(rng.integers(side)) if rng.random() < 0.8 else 0
        most = side if rng.random() < 0.7 else min(low + 4, side)
        edges.append((low, int(rng.integers(low + 1, most + 1))))
    (left, right), (top, bottom) = edges
    return Window(left, top, right, bottom)


def all_windows_agree(
    data: bytes, header: Header, *, backend: Backend | None, num_windows: int, seed: int
) -> bool:
    """Return whether random windows at every scale are parts of the whole image by Pillow."""
    rng = np.random.default_rng(seed)
    for scale in (1, 2, 4, 8) if header.scalable else (1,):
        if min(header.width, header.height) < scale:
            continue
        whole = decode_pillow(data, header, scale=scale)
        for _ in range(num_windows):
            part = random_window(rng, whole.shape)
            found = decode_image(data, header, scale=scale, window=part, backend=backend)
            expected = whole[part.top : part.bottom, part.left : part.right]
            if found[1:] != part[:2] or not np.array_equal(found.pixels, expected):
                return False
    return True


def window_outcomes(backend: Backend, *, num_files: int, seed: int) -> Counter[str]:
    """Return how often a backend, without the reference's help, gave its pixels in a window."""
    rng, outcomes = np.random.default_rng(seed), Counter[str]()
    for _ in range(num_files):
        data, kind = random_jpeg(rng)
        header = read_header(data, Decode())
        for scale in (1, 2, 4, 8):
            if min(header.width, header.height) < scale:
                continue
            whole = decode_pillow(data, header, scale=scale)
            for _ in range(3):
                part = random_window(rng, whole.shape)
                found = decode_by(backend, data, header, scale=scale, window=part)
                if found is None:
                    outcomes["by the reference"] += 1
                    continue
                expected = whole[part.top : part.bottom, part.left : part.right]
                same = np.array_equal(found.cut(part).pixels, expected)
                outcomes["same" if same else f"{kind}, {header}, 1/{scale}, {part}"] += 1
    return outcomes


def frame_at(data: bytes) -> int:
    """Return where the frame header's marker stands in a file whose segments are whole."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return at


def broken(rng: np.random.Generator) -> bytes:
    """Return a file that is damaged in one of the ways that files are."""
    data, _ = random_jpeg(rng, most=90)
    way = int(rng.integers(7))
    if way == 0:
        return data[: int(rng.integers(2, len(data)))]
    if way == 1:
        return data[:-2]
    if way == 2:
        return data + rng.integers(0, 256, int(rng.integers(1, 50)), np.uint8).tobytes()
    if way == 3:  # another height or width
        at = frame_at(data) + 5 + 2 * int(rng.integers(2))
        side = struct.unpack_from(">H", data, at)[0] + int(rng.integers(-30, 31))
        return data[:at] + struct.pack(">H", max(side, 0)) + data[at + 2 :]
    if way == 4:  # in its second half, which is data
        half = len(data) // 2
        return data[:half] + damaged(data[half:], rng)
    return damaged(data, rng)


def damage_outcomes(backend: Backend, *, num_files: int, seed: int) -> Counter[str]:
    """Return how often a backend and Pillow agreed over damaged files, in whole and in part."""
    rng, outcomes = np.random.default_rng(seed), Counter[str]()
    for _ in range(num_files):
        data = broken(rng)
        try:
            header = read_header(data, Decode(max_pixels=1 << 20))
        except DataError:
            continue
        for scale in (1, 2, 4, 8):
            if min(header.width, header.height) < scale or (scale > 1 and not header.scalable):
                continue
            whole, found = (
                _or_none(data, header, scale=scale, backend=name) for name in ("pillow", backend)
            )
            if whole is None or found is None:
                outcomes["refused" if whole is found else "one refuses"] += 1
            else:
                outcomes["same" if np.array_equal(whole, found) else "others"] += 1
            shape = -(-header.height // scale), -(-header.width // scale)
            part = random_window(rng, shape)
            found = _or_none(data, header, scale=scale, window=part, backend=backend)
            if whole is not None:
                expected = whole[part.top : part.bottom, part.left : part.right]
                same = found is not None and np.array_equal(found, expected)
                outcomes["part the same" if same else "part unlike"] += 1
    return outcomes


def _or_none(data: bytes, header: Header, **options: Any) -> Pixels | None:
    try:
        return decode_image(data, header, **options).pixels.copy()
    except DataError:
        return None
