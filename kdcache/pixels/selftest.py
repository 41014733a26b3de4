"""A proof, when a process first makes pixels, that it makes those of pixel function 1.

Each layer works on integer-made patterns, and must give the literal digests below. It takes some
ten milliseconds. Decoding is proven backend by backend in conformance.py.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from kdcache.errors import MismatchError
from kdcache.pixels.conformance import check_decode
from kdcache.pixels.mix import mix
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.steps import apply_steps
from kdcache.pixels.witness import Layer, libraries, pixel_versions
from kdcache.recipe.ops import STEP_WIDTH, Op
from kdcache.recipe.parts import Resize
from kdcache.recipe.plan import plan_block
from kdcache.recipe.schema import Recipe, parse_recipe

Pixels = NDArray[np.uint8]

_EXPECTED = {
    "draw": "c66874b56bee8325",
    "resize torch": "dd4bf4a81f11fb14",
    "resize pillow": "e4b911edbb041223",
    "resize torch-bicubic": "05d983388c6edfd5",
    "resize pillow-bicubic": "72de0245e0b06933",
    "steps": "b134099cd9e4fada",
    "mix": "f7348141b763279c",
}
_STEPS = (
    (Op.BRIGHTNESS, 83_000), (Op.CONTRAST, 41_000), (Op.SATURATION, 90_001), (Op.HUE, -7_777),
    (Op.SHARPNESS, 120_000), (Op.GREY,), (Op.BLUR, 77), (Op.SOLARIZE, 99), (Op.POSTERIZE, 3),
    (Op.EQUALIZE,), (Op.AUTOCONTRAST,), (Op.SHEAR_X, 12_345), (Op.SHEAR_Y, -9_876),
    (Op.TRANSLATE_X, 5), (Op.TRANSLATE_Y, -7), (Op.ROTATE, 33), (Op.ERASE, 3, 5, 9, 7, 0x123456),
    (Op.ERASE_NOISE, 4, 2, 6, 11, 2**53 - 1),
)  # fmt: skip


def _pattern(width: int, height: int) -> Pixels:
    y, x, c = np.mgrid[:height, :width, :3]
    values: NDArray[np.int64] = (x * 7919 + y * 104729 + c * 1299709) * 2654435761 >> 13
    return values.astype(np.uint8)


def _recipe() -> Recipe:
    steps = {"flip": {"horizontal": 0.5, "vertical": 0.5}, "mix": {"law": "switch"}}
    augment = {"augment": {"law": "trivial"}, "erase": {"probability": 0.5, "fill": "noise"}}
    base = {"seed": 3, "size": 24, "crop": {"law": "inception"}}
    return parse_recipe({**base, **steps, **augment}, source="self-test")


def _drawn() -> list[NDArray[np.generic]]:
    uids = np.arange(32, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    sizes = np.stack((np.arange(32) * 17 + 1, np.arange(32) * 29 % 97 + 1), axis=1)
    params = plan_block(_recipe(), uids, view=5, sizes_N2=sizes)
    names = ("boxes_N4", "flips_N2", "steps_NK6", "partners_N", "weights_N", "cuts_N4")
    return [getattr(params, name) for name in names]


def _resized(law: Resize) -> list[NDArray[np.generic]]:
    sizes = ((61, 47), (24, 24), (9, 80), (1, 1), (301, 203))
    return [RESIZE[law](_pattern(*size), 24) for size in sizes]


def _stepped() -> list[NDArray[np.generic]]:
    pixels, out = _pattern(24, 24), []
    for step in _STEPS:
        steps = np.zeros((1, STEP_WIDTH), np.int64)
        steps[0, : len(step)] = step
        out.append(apply_steps(pixels, steps))
    return list(out)


def _mixed() -> list[NDArray[np.generic]]:
    uids = np.arange(16, dtype=np.uint64)
    params = plan_block(_recipe(), uids, view=1, sizes_N2=np.full((16, 2), 30))
    pixels = np.stack([_pattern(24, 24 + row)[row:] for row in range(16)])
    out = np.empty_like(pixels)
    mix(pixels, params, out_NHW3=out)
    return [out]


_TESTS: dict[str, Callable[[], list[NDArray[np.generic]]]] = {
    "draw": _drawn,
    "resize torch": lambda: _resized("torch"),
    "resize pillow": lambda: _resized("pillow"),
    "resize torch-bicubic": lambda: _resized("torch-bicubic"),
    "resize pillow-bicubic": lambda: _resized("pillow-bicubic"),
    "steps": _stepped,
    "mix": _mixed,
}


def found_digest(test: str) -> str:
    """Return the digest that a test gives here."""
    digest = xxhash.xxh3_64()
    for array in _TESTS[test]():
        little = array.astype(array.dtype.newbyteorder("<"))
        digest.update(np.ascontiguousarray(little).data)
    return digest.hexdigest()


def first_failing(resize: Resize) -> str | None:
    """Return the first test that fails here, of those that a recipe with this resize rests on."""
    tests = ("draw", f"resize {resize}", "steps", "mix")
    return next((test for test in tests if found_digest(test) != _EXPECTED[test]), None)


@lru_cache(maxsize=4)
def check_pixels(resize: Resize) -> None:
    """Check, once in a process, that its libraries make the pixels of pixel function 1.

    Raises:
        MismatchError: a layer makes others; the message names it and its libraries.
    """
    check_decode()
    test = first_failing(resize)
    if test is not None:
        layer = Layer(test.split()[0])
        versions = pixel_versions()
        names = ", ".join(f"{name} {versions[name]}" for name in libraries(layer, resize=resize))
        raise MismatchError(
            f"the layer {test} makes other pixels here than pixel function 1 states; it rests on "
            f"{names}: install other versions (docs/format.md names those that were proven)"
        )
