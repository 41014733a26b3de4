"""Claims about witnesses: any change of any pixel shows, and pixels never change.

The golden witnesses are those of blocks of patterns stored as PNG, and of a committed JPEG whose
views are decoded at every scale. If one differs, the pixels of all caches of that recipe differ:
make a new version of the pixel function instead.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.pixels.decode import decode_image, read_header
from kdcache.pixels.render import jpeg_scale, render_block
from kdcache.pixels.witness import PIXEL_LIBRARIES, pixel_versions, witness
from kdcache.recipe.parts import Decode
from kdcache.recipe.schema import parse_recipe
from tests import photos
from tests.photos import encoded, pattern, pattern_png

UIDS = np.array([3, 2**63 + 5, 2**64 - 1], np.uint64)
PHOTO = Path(__file__).parents[1] / "golden" / "photo.jpg"
PHOTO_VIEWS = (0, 1, 6)  # by the inception crop: at 1/2, 1/8 and 1/4
FLIP, MIX = {"horizontal": 0.5}, {"law": "mixup"}

RECIPES: dict[str, dict[str, Any]] = {
    "function matching": {"crop": {"law": "inception"}, "flip": FLIP, "mix": MIX},
    "by pillow": {"crop": {"law": "inception"}, "flip": FLIP, "mix": MIX, "resize": "pillow"},
    "mild": {"crop": {"law": "mild", "resize": 12}, "flip": FLIP},
    "centre": {"crop": {"law": "centre", "resize": 11}},
    "full": {"crop": {"law": "full"}, "mix": MIX},
    "turned": {"crop": {"law": "inception", "area": (0.5, 1.0)}, "decode": {"exif": "apply"}},
}
PATTERNS = (
    pattern_png(61, 47),
    encoded(Image.fromarray(pattern(30, 80, kind=1)), "PNG", exif=photos.exif(6)),
    pattern_png(9, 7, kind=2),
)


def witnesses(
    steps: dict[str, Any], images: tuple[bytes, ...], views: tuple[int, ...]
) -> list[str]:
    recipe = parse_recipe({"seed": 1, "size": 8, **steps}, source="test")
    uids = UIDS[: len(images)]
    block = render_block(recipe, images, uids_N=uids, views=views)
    assert block.usable_N.all()
    return [f"{found:016x}" for found in block.witnesses().tolist()]


GOLDEN_PATTERNS: dict[str, list[str]] = {
    "function matching": ["d3e450ff6b07b422", "feee610eaf9c2b8d", "d6ad686b0cd7a0b1"],
    "by pillow": ["d3e450ff6b07b422", "6807e38244a2a213", "7b7d3a1f7ff9109a"],
    "mild": ["e6adc81764bd5371", "7f482a1a50928691", "d3b4e89b2c033be6"],
    "centre": ["e68df9d1fbccdd61", "e68df9d1fbccdd61", "e68df9d1fbccdd61"],
    "full": ["8c696ab06225b78a", "23188214757472b7", "055cc140a9319b25"],
    "turned": ["71c9a18efbe22c69", "c9f1da6670ea7909", "d7a06cd4bcfc1fe8"],
}
GOLDEN_PHOTO: dict[str, list[str]] = {
    "function matching": ["21b1e442817aa861", "57f79df8cae0ed46", "847aaebce04e5a57"],
    "by pillow": ["21b1e442817aa861", "c51b858c6f5cd413", "593730a7e804ae81"],
    "mild": ["997c7c6959e0f0a7", "a00d386887d0c885", "3322a26f64f23d00"],
    "centre": ["c4a9bb3e4354ec99", "c4a9bb3e4354ec99", "c4a9bb3e4354ec99"],
    "full": ["982e9159c3ea3f53", "982e9159c3ea3f53", "982e9159c3ea3f53"],
    "turned": ["9aef40b805860742", "87fb12de91d04531", "8ab0f2ae05d3b6f8"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_pixels_of_patterns_never_change(name: str) -> None:
    assert witnesses(RECIPES[name], PATTERNS, (0, 1, 2)) == GOLDEN_PATTERNS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_pixels_of_a_photo_never_change(name: str) -> None:
    assert witnesses(RECIPES[name], (PHOTO.read_bytes(),), PHOTO_VIEWS) == GOLDEN_PHOTO[name]


def test_the_golden_photo_is_decoded_at_three_scales() -> None:
    recipe = parse_recipe({"seed": 1, "size": 8, **RECIPES["function matching"]}, source="test")
    block = render_block(recipe, [PHOTO.read_bytes()], uids_N=UIDS[:1], views=PHOTO_VIEWS)
    boxes = [params.boxes_N4[0].tolist() for params in block.params]
    assert [jpeg_scale(box[2], box[3], least=10) for box in boxes] == [2, 8, 4]


def test_the_decoded_golden_photo_never_changes_at_any_scale() -> None:
    data = PHOTO.read_bytes()
    header = read_header(data, Decode())
    found = {n: f"{witness(decode_image(data, header, scale=n).pixels):016x}" for n in (1, 2, 4, 8)}
    assert found == {
        1: "ae150270c9a1e536",
        2: "09842fe33a3b757d",
        4: "29545f6c6739a42a",
        8: "b456bc1e05604fff",
    }


@settings(deadline=None, max_examples=200)
@given(
    place=st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(0, 7), st.integers(0, 2)),
    up=st.booleans(),
)
def test_one_level_of_one_pixel_changes_the_witness(
    place: tuple[int, int, int, int], up: bool
) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (5, 8, 8, 3), np.uint8)
    before = witness(pixels)
    pixels[place] = pixels[place] + 1 if up else pixels[place] - 1
    assert witness(pixels) != before


def test_the_order_of_rows_and_the_layout_of_pixels_count_but_not_the_layout_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    assert witness(pixels[::-1]) != witness(pixels)
    assert witness(pixels[:, :, ::-1]) != witness(pixels)
    assert witness(pixels[..., ::-1]) != witness(pixels)
    assert witness(pixels[:4]) != witness(pixels)
    assert witness(np.asfortranarray(pixels)) == witness(pixels)
    assert witness(pixels[::2]) == witness(pixels[::2].copy())


def test_the_witness_is_xxh3_of_the_bytes() -> None:
    """The known answer of xxHash's own sanity check for no bytes, and the library's for some."""
    assert witness(np.zeros((0, 8, 8, 3), np.uint8)) == 0x2D06800538D394C2
    pixels = pattern(31, 17, kind=2)
    assert witness(pixels[None]) == xxhash.xxh3_64_intdigest(pixels.tobytes())


def test_the_versions_of_all_libraries_that_make_pixels_are_named() -> None:
    found = pixel_versions()
    assert tuple(found) == PIXEL_LIBRARIES == ("numpy", "pillow", "simplejpeg", "torch")
    assert found["numpy"] == np.__version__
    assert all(version[0].isdigit() for version in found.values())
