"""The parameters of a view worked out row by row in plain Python, from NumPy's own generator.

It follows the words' layout in docs/format.md and kdcache/recipe/plan.py, and shares no code with
them: only numbers that are Python's, `round` (half to even) and `math.sqrt`.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from kdcache.recipe.ops import Op
from kdcache.recipe.plan import ViewParams
from kdcache.recipe.schema import Recipe

NUM_WORDS = 89
Step = tuple[int, ...]

# torchvision's order, Color being saturation.
SPACE = [
    "NOTHING", "SHEAR_X", "SHEAR_Y", "TRANSLATE_X", "TRANSLATE_Y", "ROTATE", "BRIGHTNESS",
    "SATURATION", "CONTRAST", "SHARPNESS", "POSTERIZE", "SOLARIZE", "AUTOCONTRAST", "EQUALIZE",
]  # fmt: skip
SIGNED = SPACE[1:10]


class Row(NamedTuple):
    """A row's share of ViewParams, partner apart; steps without the trailing zeros."""

    box: list[int]
    flips: list[bool]
    steps: list[Step]
    weight: int
    cut: list[int]


def numpy_words(seed: int, uid: int, *, view: int, count: int, stream: int = 0) -> list[int]:
    """Return the first words of a name by numpy.random.Philox."""
    # Integers of 2**63 and more pass through float64 in a list: only arrays are exact.
    key, counter = np.array([seed, 0], np.uint64), np.array([0, view, uid, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count).tolist()


def numbers(seed: int, uid: int, *, view: int) -> list[float]:
    """Return all numbers of a sample's view."""
    return [(w >> 11) * 2.0**-53 for w in numpy_words(seed, uid, view=view, count=NUM_WORDS)]


def partners(seed: int, uids: list[int], *, view: int) -> list[int]:
    """Return the partner of each row of one block."""
    drawn = numpy_words(seed, uids[0], view=view, count=len(uids), stream=1)
    cycle = sorted(range(len(uids)), key=lambda row: (drawn[row], row))
    following = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [following[row] for row in range(len(uids))]


def plan(
    recipe: Recipe, uids: list[int], *, view: int, sizes: list[list[int]]
) -> tuple[list[Row], list[int]]:
    """Return each row of one block, and its partners; a block of one is not mixed."""
    rows = [
        row(recipe, numbers(recipe.seed, uid, view=view), size=(size[0], size[1]))
        for uid, size in zip(uids, sizes, strict=True)
    ]
    if recipe.mix is None:
        return rows, list(range(len(uids)))
    if len(uids) == 1:
        return [rows[0]._replace(weight=256, cut=[0, 0, 0, 0])], [0]
    return rows, partners(recipe.seed, uids, view=view)


def as_rows(params: ViewParams) -> list[Row]:
    """Return parameters in the form of the reference."""
    return [
        Row(box, flips, trimmed(steps), weight, cut)
        for box, flips, steps, weight, cut in zip(
            params.boxes_N4.tolist(),
            params.flips_N2.tolist(),
            params.steps_NK6.tolist(),
            params.weights_N.tolist(),
            params.cuts_N4.tolist(),
            strict=True,
        )
    ]


def trimmed(steps: list[list[int]]) -> list[Step]:
    """Return the steps of a row that do something, without trailing zeros."""
    out = []
    for step in steps:
        if step[0]:
            last = max(place for place, value in enumerate(step) if value)
            out.append(tuple(step[: last + 1]))
        else:
            assert not any(step), "a step that does nothing has no arguments"
    return out


def row(recipe: Recipe, u: list[float], *, size: tuple[int, int]) -> Row:
    """Return a row's parameters from its 89 numbers and the image's width and height."""
    table: dict[str, Any] = recipe.model_dump(exclude_none=True)
    flip = table.get("flip", {})
    flips = [u[4] < flip.get("horizontal", 0), u[24] < flip.get("vertical", 0)]
    weight, cut = _mixing(table, u)
    return Row(_box(table, u, size), flips, _steps(table, u), weight, cut)


def _place(u: float, room: int) -> int:
    return min(int(u * (room + 1)), room)


def _ratio(low: float, high: float, u: float) -> float:
    """Return entry floor(4096 u) of the table of ratios."""
    index, ratio, factor = int(u * 4096), low, high / low
    for bit in range(11, -1, -1):
        factor = math.sqrt(factor)
        if index >> bit & 1:
            ratio *= factor
    return ratio


def _tried(
    crop: dict[str, Any], u: list[float], size: tuple[int, int], number: int
) -> tuple[int, int]:
    """Return the width and height of one of the ten tries."""
    first, (low, high) = 4 + 2 * number if number else 0, crop["area"]
    area = size[0] * size[1] * (low + (high - low) * u[first])
    ratio = _ratio(*crop["ratio"], u[first + 1])
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))


def fitting_try(table: dict[str, Any], u: list[float], size: tuple[int, int]) -> int | None:
    """Return the number of the first try whose box fits, 0 to 9, or None."""
    for number in range(10):
        wide, tall = _tried(table["crop"], u, size, number)
        if 0 < wide <= size[0] and 0 < tall <= size[1]:
            return number
    return None


def _box(table: dict[str, Any], u: list[float], size: tuple[int, int]) -> list[int]:
    crop, (width, height) = table["crop"], size
    if crop["law"] == "full":
        return [0, 0, width, height]
    if crop["law"] != "inception":
        side = max(round(min(size) * table["size"] / crop["resize"]), 1)
        room = width - side, height - side
        central = crop["law"] == "centre"
        corner = [r // 2 if central else _place(u[2 + i], r) for i, r in enumerate(room)]
        return [*corner, side, side]
    number, (least, most) = fitting_try(table, u, size), crop["ratio"]
    if number is not None:
        wide, tall = _tried(crop, u, size, number)
        return [_place(u[2], width - wide), _place(u[3], height - tall), wide, tall]
    wide = min(width, max(round(height * most), 1))
    tall = min(height, max(round(width / least), 1))
    return [(width - wide) // 2, (height - tall) // 2, wide, tall]


def _mixing(table: dict[str, Any], u: list[float]) -> tuple[int, list[int]]:
    mix, size = table.get("mix", {"law": "none"}), table["size"]
    law, drawn = mix["law"], int(u[5] * 257)
    if law == "switch":
        both = mix["mixup"] + mix["cutmix"]
        law = "mixup" if u[25] < mix["mixup"] else "cutmix" if u[25] < both else "none"
    if law == "none":
        return 256, [0, 0, 0, 0]
    if law == "mixup":
        return drawn, [0, 0, 0, 0]
    half = int(0.5 * math.sqrt(1.0 - drawn / 256) * size)
    spans = []
    for number in u[26:28]:
        centre = int(number * size)
        start, stop = max(centre - half, 0), min(centre + half, size)
        spans.append((start, stop - start))
    (left, wide), (top, tall) = spans
    return 256, [left, top, wide, tall]


def _steps(table: dict[str, Any], u: list[float]) -> list[Step]:
    """Return what is done, in the order of the tables."""
    steps: list[Step] = []
    if "jitter" in table and u[28] < table["jitter"]["probability"]:
        steps += _jitter(table["jitter"], u)
    if "grey" in table and u[34] < table["grey"]["probability"]:
        steps.append((Op.GREY,))
    if "blur" in table and u[35] < table["blur"]["probability"]:
        low, high = table["blur"]["sigma"]
        steps.append((Op.BLUR, round((low + (high - low) * u[36]) * 64)))
    if "solarize" in table and u[37] < table["solarize"]["probability"]:
        steps.append((Op.SOLARIZE, table["solarize"]["threshold"]))
    if "posterize" in table and u[38] < table["posterize"]["probability"]:
        steps.append((Op.POSTERIZE, table["posterize"]["bits"]))
    if "equalize" in table and u[39] < table["equalize"]["probability"]:
        steps.append((Op.EQUALIZE,))
    if "autocontrast" in table and u[40] < table["autocontrast"]["probability"]:
        steps.append((Op.AUTOCONTRAST,))
    if "augment" in table:
        steps += _augment(table, u)
    if "erase" in table and u[41] < table["erase"]["probability"]:
        steps += _erase(table, u)
    return [trimmed([list(step)])[0] for step in steps if step[0]]


def _jitter(jitter: dict[str, Any], u: list[float]) -> list[Step]:
    found: list[Step] = []
    for word, name in ((30, "brightness"), (31, "contrast"), (32, "saturation")):
        x = jitter[name]
        low, high = max(0.0, 1.0 - x), 1.0 + x
        factor = round((low + (high - low) * u[word]) * 65536)
        found.append((Op[name.upper()], factor) if x > 0 else (0,))
    hue = jitter["hue"]
    found.append((Op.HUE, round((2 * hue * u[33] - hue) * 65536)) if hue > 0 else (0,))
    # The orders are those of a dictionary: 0123, 0132, 0213, ...
    index, ordered = int(u[29] * 24), []
    for width in (6, 2, 1, 1):
        ordered.append(found.pop(index // width))
        index %= width
    return ordered


def magnitude(law: str, name: str, level: int, size: int) -> int:
    """Return the argument of an operation without its sign, factors less 1."""
    trivial = law == "trivial"
    if name.startswith("SHEAR"):
        return round(Fraction(99 if trivial else 30, 100) * level / 30 * 65536)
    if name.startswith("TRANSLATE"):
        return 32 * level // 30 if trivial else 150 * size * level // (331 * 30)
    if name == "ROTATE":
        return 9 * level if trivial else 2 * level
    if name in ("BRIGHTNESS", "SATURATION", "CONTRAST", "SHARPNESS"):
        return round(Fraction(99 if trivial else 90, 100) * level / 30 * 65536)
    if name == "POSTERIZE":
        return 8 - round(Fraction(6 if trivial else 4) * level / 30)
    if name == "SOLARIZE":
        return -(-255 * (30 - level) // 30)
    return 0


def _augment(table: dict[str, Any], u: list[float]) -> list[Step]:
    augment = table["augment"]
    steps: list[Step] = []
    for number in range(augment.get("num_ops", 1)):
        which, level, sign = u[65 + 3 * number : 68 + 3 * number]
        name = SPACE[int(which * 14)]
        chosen = augment.get("magnitude", int(level * 31))
        value = magnitude(augment["law"], name, chosen, table["size"])
        if name in SIGNED and sign < 0.5:
            value = -value
        steps.append((Op[name], 65536 + value if name in SIGNED[5:] else value))
    return steps


def _erase(table: dict[str, Any], u: list[float]) -> list[Step]:
    erase, size = table["erase"], table["size"]
    (low, high), bounds = erase["area"], erase["ratio"]
    for first in range(45, 65, 2):
        area = size * size * (low + (high - low) * u[first])
        ratio = _ratio(*bounds, u[first + 1])
        wide, tall = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < wide < size and 0 < tall < size:
            box = (_place(u[42], size - wide), _place(u[43], size - tall), wide, tall)
            if erase["fill"] == "noise":
                return [(Op.ERASE_NOISE, *box, int(u[44] * 2**53))]
            red, green, blue = erase["fill"]
            return [(Op.ERASE, *box, 65536 * red + 256 * green + blue)]
    return []
