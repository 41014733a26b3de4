"""What the doctor's golden views were made with; they are never made again over those committed.

`python -m tests.doctor.golden` makes them in any environment, and names what differs.
"""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from kdcache.doctor import golden, replay
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.witness import pixel_versions
from tests.photos import encoded, exif, pattern, smooth_photo

FOLDER = Path(next(iter(golden.__path__)))


def make_files() -> dict[str, bytes]:
    """Return new image files: JPEGs of many kinds, one of which may be decoded at 1/8; others."""
    photo, small = smooth_photo(320, 260, seed=1, falloff=1.8), smooth_photo(90, 70, seed=2)
    return {
        "baseline.jpg": encoded(photo, quality=60, subsampling=2),
        "full_colours.jpg": encoded(small, quality=80, subsampling=0),
        "grey.jpg": encoded(small.convert("L"), quality=70, restart_marker_blocks=5),
        "half_colours.jpg": encoded(smooth_photo(131, 97, seed=3), quality=75, subsampling=1),
        "progressive.jpg": encoded(small, quality=80, subsampling=2, progressive=True),
        "rgb.png": encoded(Image.fromarray(pattern(41, 33, kind=1)), "PNG"),
        "rgb.webp": encoded(small, "WEBP", quality=60),
        "turned.jpg": encoded(small, quality=75, subsampling=2, exif=exif(6)),
    }


def make_views() -> dict[str, Any]:
    """Return the witnesses of all golden views, as made here."""
    out: dict[str, Any] = {}
    for resize in RESIZE:
        recipe = replay.golden_recipe(resize)
        out[resize] = {role: replay.make_witnesses(recipe, role) for role in recipe.roles}
    return out


def write() -> None:
    """Write files and witnesses, where there are none."""
    for name, data in make_files().items():
        with (FOLDER / name).open("xb") as file:
            file.write(data)
    with (FOLDER / "witnesses.json").open("x") as out:
        json.dump({"versions": pixel_versions(), "views": make_views()}, out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    if not (FOLDER / "witnesses.json").exists():
        write()
    wrong = replay.differences()
    sys.exit(replay.describe(wrong) if wrong else 0)
