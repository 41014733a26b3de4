"""Witnesses of every preset and step over random boxes and of every edge file, never rewritten.

`python -m tests.pixels.golden` makes them in any environment, compares them with
tests/golden/pixels.json and names what differs; it needs kdcache's own dependencies alone.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import DataError
from kdcache.pixels.decode import decode_image, read_header
from kdcache.pixels.render import render_block
from kdcache.pixels.witness import witness
from kdcache.recipe.parts import Decode, Resize, Role
from kdcache.recipe.schema import Recipe, load_recipe, parse_recipe, presets
from tests.photos import pattern_png

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = GOLDEN / "pixels.json"
EDGE = sorted((GOLDEN / "edge").iterdir())
PHOTO = GOLDEN / "photo.jpg"

TABLES: dict[str, dict[str, Any]] = {
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grey": {"probability": 0.5},
    "blur": {"probability": 0.9, "sigma": [0.1, 2.0]},
    "solarize": {"probability": 0.5},
    "posterize": {"probability": 0.5},
    "equalize": {"probability": 0.5},
    "autocontrast": {"probability": 0.5},
    "augment": {"law": "trivial"},
    "erase": {"probability": 0.9, "fill": "noise"},
    "mix": {"law": "switch", "mixup": 0.4, "cutmix": 0.4},
}
RESIZES = ("torch", "pillow")
BICUBIC: tuple[Resize, ...] = ("torch-bicubic", "pillow-bicubic")
TEACHERS = ((24, None), (11, "torch-bicubic"))
NUM_VIEWS = 8


def _recipe(**changes: Any) -> Recipe:
    base = {"seed": 11, "size": 16, "crop": {"law": "inception"}}
    return parse_recipe({**base, **changes}, source="golden")


def _rendered(recipe: Recipe, *, views: int = NUM_VIEWS, role: Role = "student") -> list[str]:
    """Return the witness of a block of sound images in each view: JPEG at all scales, PNG, WebP."""
    names = ("rgb420.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "rgba.png", "rgb.webp")
    files = [PHOTO.read_bytes(), pattern_png(61, 47), pattern_png(300, 200, kind=2)]
    files += [(GOLDEN / "edge" / name).read_bytes() for name in names]
    uids = np.arange(1, len(files) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    block = render_block(recipe, files, uids_N=uids, views=range(views), role=role)
    assert block.usable_N.all(), block.problems
    return [f"{found:016x}" for found in block.witnesses().tolist()]


def _edge(path: Path, resize: str) -> list[str]:
    """Return an edge file's witness in each view, or the name of the error that refuses it."""
    out = []
    for exif in ("ignore", "apply"):
        recipe = _recipe(resize=resize, decode={"exif": exif})
        uids = np.array([5], np.uint64)
        block = render_block(recipe, [path.read_bytes()], uids_N=uids, views=range(NUM_VIEWS))
        digests = [f"{found:016x}" for found in block.witnesses().tolist()]
        out += digests if block.usable_N[0] else [DataError.__name__]
    return out


def _decoded(path: Path) -> list[str]:
    """Return the digest of a file decoded at each scale."""
    data = path.read_bytes()
    header = read_header(data, Decode())
    least = min(header.width, header.height)
    scales = [n for n in (1, 2, 4, 8) if n == 1 or (header.scalable and n <= least)]
    return [f"{witness(decode_image(data, header, scale=n).pixels):016x}" for n in scales]


def _cases() -> Iterator[tuple[str, list[str]]]:
    for name in presets():
        yield f"preset {name}", _rendered(load_recipe(name), views=2)
        values = {**load_recipe(name).canonical(), "size": 16}
        if "resize" in values["crop"]:
            values["crop"]["resize"] = 18
        yield f"preset {name} at 16", _rendered(parse_recipe(values, source=name))
    for resize in RESIZES:
        yield f"plain, {resize}", _rendered(_recipe(resize=resize), views=40)
        yield f"all tables, {resize}", _rendered(_recipe(resize=resize, **TABLES))
        for path in EDGE:
            yield f"edge {path.name}, {resize}", _edge(path, resize)
    for resize in BICUBIC:
        yield f"plain, {resize}", _rendered(_recipe(resize=resize), views=40)
    for size, teachers in TEACHERS:
        table = {"size": size} if teachers is None else {"size": size, "resize": teachers}
        recipe = _recipe(teacher=table, **TABLES)
        yield f"all tables, teacher at {size}", _rendered(recipe, role="teacher")
        assert _rendered(recipe) == _rendered(_recipe(**TABLES))
    for name, table in TABLES.items():
        yield f"table {name}", _rendered(_recipe(**{name: table}))
    for path in EDGE:
        try:
            yield f"decoded {path.name}", _decoded(path)
        except DataError:
            yield f"decoded {path.name}", [DataError.__name__]


def make() -> dict[str, list[str]]:
    """Return the witnesses of all cases, as made here."""
    return dict(_cases())


def differing() -> list[str]:
    """Return the names of the cases that are made otherwise here than stated."""
    expected, found = json.loads(EXPECTED.read_text()), make()
    return [n for n in {**expected, **found} if expected.get(n) != found.get(n)]


if __name__ == "__main__":
    wrong = differing()
    sys.exit(f"{len(wrong)} cases differ: {'; '.join(wrong)}" if wrong else 0)
