"""Digests of every operation's bytes on integer-made patterns, never to be rewritten.

They rest on numpy and xxhash alone, to be made in any environment, where
`python -m tests.pixels.golden_ops` names what differs.
"""

import numpy as np
from numpy.typing import NDArray

from kdcache.pixels.steps import apply_steps
from kdcache.pixels.witness import witness
from kdcache.recipe.ops import STEP_WIDTH, Op
from tests.photos import pattern

Pixels = NDArray[np.uint8]

SIZES = ((1, 1), (1, 9), (8, 1), (2, 2), (3, 5), (24, 24), (61, 47), (130, 160))
KINDS = 3

# An operation and its arguments. Boxes to erase are parts of the image: see step_of.
CASES: tuple[tuple[int, ...], ...] = (
    (Op.NOTHING,),
    *((Op.BRIGHTNESS, f) for f in (0, 1, 6_554, 65_536, 83_001, 131_072, 1_048_576)),
    *((Op.CONTRAST, f) for f in (0, 6_554, 65_537, 83_001, 131_072, 1_048_576)),
    *((Op.SATURATION, f) for f in (0, 6_554, 65_536, 83_001, 131_072, 1_048_576)),
    *((Op.HUE, t) for t in (-32_768, -16_384, -9_999, -1, 0, 1, 8_192, 10_923, 32_768)),
    *((Op.SHARPNESS, f) for f in (0, 6_554, 65_536, 83_001, 131_072, 1_048_576)),
    (Op.GREY,),
    *((Op.BLUR, s) for s in (1, 6, 33, 64, 128, 201, 640)),
    *((Op.SOLARIZE, t) for t in (0, 1, 99, 128, 255, 256)),
    *((Op.POSTERIZE, b) for b in (1, 2, 4, 7, 8)),
    (Op.EQUALIZE,),
    (Op.AUTOCONTRAST,),
    *((Op.SHEAR_X, s) for s in (-65_536, -19_661, 1, 3_277, 21_845, 65_536)),
    *((Op.SHEAR_Y, s) for s in (-65_536, -19_661, 1, 3_277, 21_845, 65_536)),
    *((Op.TRANSLATE_X, d) for d in (-5_000, -47, -1, 0, 7, 200)),
    *((Op.TRANSLATE_Y, d) for d in (-5_000, -47, -1, 0, 7, 200)),
    *((Op.ROTATE, a) for a in (-360, -181, -60, -1, 1, 33, 90, 180, 271, 360)),
    *((Op.ERASE, c) for c in (0, 0x7C7468, 0xFFFFFF)),
    *((Op.ERASE_NOISE, k) for k in (0, 2**53 - 1, 2**63 - 1)),
)
CHAIN: tuple[tuple[int, ...], ...] = (
    (Op.BRIGHTNESS, 72_000), (Op.HUE, -3_333), (Op.SATURATION, 91_234), (Op.CONTRAST, 80_000),
    (Op.BLUR, 50), (Op.ROTATE, -17), (Op.SHARPNESS, 99_999), (Op.SHEAR_X, 9_876),
    (Op.AUTOCONTRAST,), (Op.SHEAR_Y, -5_432), (Op.TRANSLATE_X, 1), (Op.SOLARIZE, 200),
    (Op.EQUALIZE,), (Op.POSTERIZE, 6), (Op.TRANSLATE_Y, -1), (Op.ERASE_NOISE, 5), (Op.GREY,),
    (Op.ERASE, 0x102030),
)  # fmt: skip


def step_of(case: tuple[int, ...], width: int, height: int) -> NDArray[np.int64]:
    """Return a case as a step for an image of this size, (STEP_WIDTH,)."""
    op, *arguments = case
    if op in (Op.ERASE, Op.ERASE_NOISE):
        left, top = width // 3, height // 4
        arguments = [left, top, (width - left + 1) // 2, height - top, *arguments]
    step = np.zeros(STEP_WIDTH, np.int64)
    step[: 1 + len(arguments)] = op, *arguments
    return step


def name_of(case: tuple[int, ...]) -> str:
    """Return a case in words: the operation, then its arguments."""
    return " ".join([Op(case[0]).name, *map(str, case[1:])])


def images() -> list[Pixels]:
    """Return patterns of every kind and size, some of few levels."""
    patterns = [pattern(*size, kind=kind) for size in SIZES for kind in range(KINDS)]
    return patterns + [pattern(*size, kind=2) // 16 + np.uint8(100) for size in SIZES]


def found_digests() -> dict[str, str]:
    """Return the digest of each case over all images, and of the chain."""
    made = images()
    digests = {name_of(case): _digest([_applied(image, case) for image in made]) for case in CASES}
    digests["CHAIN"] = _digest([_applied(image, *CHAIN) for image in made])
    return digests


def _applied(image: Pixels, *cases: tuple[int, ...]) -> Pixels:
    height, width, _ = image.shape
    return apply_steps(image, np.stack([step_of(case, width, height) for case in cases]))


def _digest(results: list[Pixels]) -> str:
    return f"{witness(np.concatenate([result.ravel() for result in results])):016x}"


EXPECTED: dict[str, str] = {
    "NOTHING": "3c4cdce207092824",
    "BRIGHTNESS 0": "306ed162df6aefc0",
    "BRIGHTNESS 1": "306ed162df6aefc0",
    "BRIGHTNESS 6554": "21cfa96a3d7815c9",
    "BRIGHTNESS 65536": "3c4cdce207092824",
    "BRIGHTNESS 83001": "b6da728a007f7e78",
    "BRIGHTNESS 131072": "60f18bee0405ca26",
    "BRIGHTNESS 1048576": "fdbc10fa446cf070",
    "CONTRAST 0": "ac9003e930174785",
    "CONTRAST 6554": "ed7e9a3e708ea608",
    "CONTRAST 65537": "3746efe2f3506ecd",
    "CONTRAST 83001": "4bfad0d0cede7117",
    "CONTRAST 131072": "112757b775acc98b",
    "CONTRAST 1048576": "88643fe1b10775f9",
    "SATURATION 0": "4265d7f381587b10",
    "SATURATION 6554": "574a7642beb2e51f",
    "SATURATION 65536": "3c4cdce207092824",
    "SATURATION 83001": "04c5fae13faa9cd3",
    "SATURATION 131072": "0783bc80104aec3d",
    "SATURATION 1048576": "fec5279729d00f33",
    "HUE -32768": "f2edc7cda0e7867d",
    "HUE -16384": "7aaa1e0cf8b3a3f4",
    "HUE -9999": "dfe8bd7eb08a0920",
    "HUE -1": "3c4cdce207092824",
    "HUE 0": "3c4cdce207092824",
    "HUE 1": "3c4cdce207092824",
    "HUE 8192": "6b8c32ff9ed0192d",
    "HUE 10923": "95384d2a51daac57",
    "HUE 32768": "f2edc7cda0e7867d",
    "SHARPNESS 0": "5afa8ed74aac8e6e",
    "SHARPNESS 6554": "e48b10c436f4e5cd",
    "SHARPNESS 65536": "3c4cdce207092824",
    "SHARPNESS 83001": "ed475bb789c23b94",
    "SHARPNESS 131072": "ffd7cb631db71706",
    "SHARPNESS 1048576": "346bf5862d0f1bfd",
    "GREY": "4265d7f381587b10",
    "BLUR 1": "3c4cdce207092824",
    "BLUR 6": "3c4cdce207092824",
    "BLUR 33": "a0f4ca26bd97b3f7",
    "BLUR 64": "4c9f69d2882464d4",
    "BLUR 128": "427a4c1c8234b1db",
    "BLUR 201": "3ccd4c5d9b417bc2",
    "BLUR 640": "101902505d2c9812",
    "SOLARIZE 0": "6af47e3c40bd4f31",
    "SOLARIZE 1": "911c628374064e61",
    "SOLARIZE 99": "5a4e98ef7d4123b0",
    "SOLARIZE 128": "6f78506077c49b46",
    "SOLARIZE 255": "4d103d72917a9f60",
    "SOLARIZE 256": "3c4cdce207092824",
    "POSTERIZE 1": "4cf186e0ba66c531",
    "POSTERIZE 2": "a555741de0c00129",
    "POSTERIZE 4": "ab641061eab40bcd",
    "POSTERIZE 7": "20a30b42d55eae26",
    "POSTERIZE 8": "3c4cdce207092824",
    "EQUALIZE": "241a551fccb5b8c1",
    "AUTOCONTRAST": "d453434dc7bd4beb",
    "SHEAR_X -65536": "afbe1666b8a03fde",
    "SHEAR_X -19661": "81a4cb10f0fd17a1",
    "SHEAR_X 1": "3c4cdce207092824",
    "SHEAR_X 3277": "494859ec5754b4d4",
    "SHEAR_X 21845": "69cf64a198ae9335",
    "SHEAR_X 65536": "1027360352df8d4e",
    "SHEAR_Y -65536": "9f7fd286909e1bfa",
    "SHEAR_Y -19661": "96672398519731c8",
    "SHEAR_Y 1": "3c4cdce207092824",
    "SHEAR_Y 3277": "07b1890451553c72",
    "SHEAR_Y 21845": "8c139e7dba0dcdb7",
    "SHEAR_Y 65536": "db330f70ef7fc3fb",
    "TRANSLATE_X -5000": "306ed162df6aefc0",
    "TRANSLATE_X -47": "616df316cb9dcea0",
    "TRANSLATE_X -1": "fc0c3b4c5d24ba12",
    "TRANSLATE_X 0": "3c4cdce207092824",
    "TRANSLATE_X 7": "34b8e27e5f8fbfac",
    "TRANSLATE_X 200": "306ed162df6aefc0",
    "TRANSLATE_Y -5000": "306ed162df6aefc0",
    "TRANSLATE_Y -47": "1d58cd6b46cc8c28",
    "TRANSLATE_Y -1": "459c1dd69ac666d0",
    "TRANSLATE_Y 0": "3c4cdce207092824",
    "TRANSLATE_Y 7": "a1e4ee593746e8e1",
    "TRANSLATE_Y 200": "306ed162df6aefc0",
    "ROTATE -360": "5fcb5eb8138b8340",
    "ROTATE -181": "b94d62d2d9444440",
    "ROTATE -60": "c46c670d28792925",
    "ROTATE -1": "ad930bdb62eeb600",
    "ROTATE 1": "122dbc0ec4f53862",
    "ROTATE 33": "b53f42277cbe328b",
    "ROTATE 90": "be89911633f84099",
    "ROTATE 180": "4a2e35f3972ecccc",
    "ROTATE 271": "bd385a513939681a",
    "ROTATE 360": "5fcb5eb8138b8340",
    "ERASE 0": "48876f6321af2638",
    "ERASE 8156264": "b5d083736363c3ec",
    "ERASE 16777215": "3bcda7f689f8f7b3",
    "ERASE_NOISE 0": "490608aa07ca81a3",
    "ERASE_NOISE 9007199254740991": "d9e2029b0145ae2e",
    "ERASE_NOISE 9223372036854775807": "38a1b63b20750fd1",
    "CHAIN": "25ec930ba1adca8d",
}

if __name__ == "__main__":
    found = found_digests()
    wrong = sorted(name for name in EXPECTED | found if found.get(name) != EXPECTED.get(name))
    print(*(f"{name}: {found.get(name)}" for name in wrong), sep="\n", end="\n" * bool(wrong))
    raise SystemExit(bool(wrong))
