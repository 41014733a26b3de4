"""Drawn numbers to the steps of views: jitter, blur, RandAugment, erasing and the others.

Invariant: integers and + - x / , sqrt and rounding alone, as in geometry. Magnitudes of RandAugment
and TrivialAugment are exact fractions, rounded once.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.geometry import place_boxes, ratio_table
from kdcache.recipe.ops import STEP_WIDTH, UNIT, Op
from kdcache.recipe.parts import MAX_OPS, Erase, Jitter, RandAugment, Role, TrivialAugment
from kdcache.recipe.schema import Recipe

# Words of a sample, fixed for ever; those before are plan.py's.
_JITTER = 28  # chance, order, brightness, contrast, saturation, hue
_GREY = 34
_BLUR = 35  # chance, sigma
_SOLARIZE = 37
_POSTERIZE = 38
_EQUALIZE = 39
_AUTOCONTRAST = 40
_ERASE = 41  # chance, left, top, key of the noise, then area and ratio of ten tries
_ERASE_TRIES = 10
_AUGMENT = 65  # of each operation: which, magnitude, sign
NUM_WORDS = _AUGMENT + 3 * MAX_OPS

NUM_LEVELS = 31
_FACTORS = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION)
_CHANGES = (*_FACTORS, Op.SHARPNESS)
_WARPS = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)
_ORDERS = np.array(list(permutations(range(4))))
# The space of both laws, in torchvision's order; NOTHING is its Identity.
_SPACE = (
    Op.NOTHING, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, Op.BRIGHTNESS,
    Op.SATURATION, Op.CONTRAST, Op.SHARPNESS, Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST,
    Op.EQUALIZE,
)  # fmt: skip

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def draw_steps(recipe: Recipe, numbers_NW: F64, *, role: Role = "student") -> I64:
    """Return the steps of N rows, int64 (N, K, STEP_WIDTH), in the order of application.

    numbers_NW: words 0 to NUM_WORDS - 1 of each row as numbers in [0, 1). role: whose rendering;
    lengths are scaled from the student's size to the teacher's.
    """
    columns = [*_steps(recipe, numbers_NW, size=recipe.size_for(role))]
    if not columns:
        return np.zeros((len(numbers_NW), 0, STEP_WIDTH), np.int64)
    return np.concatenate(columns, axis=1)


def _steps(recipe: Recipe, u: F64, *, size: int) -> Iterator[I64]:
    """Yield the steps (N, k, STEP_WIDTH) of each table, in the order of the recipe's fields."""
    if recipe.jitter is not None:
        yield _jitter(recipe.jitter, u[:, _JITTER : _JITTER + 6])
    if recipe.grey is not None:
        yield _plain(Op.GREY, u[:, _GREY] < recipe.grey.probability)
    if recipe.blur is not None:
        low, high = recipe.blur.sigma
        sigma = np.rint((low + (high - low) * u[:, _BLUR + 1]) * 64 * (size / recipe.size))
        yield _plain(Op.BLUR, u[:, _BLUR] < recipe.blur.probability, sigma)
    if recipe.solarize is not None:
        done = u[:, _SOLARIZE] < recipe.solarize.probability
        yield _plain(Op.SOLARIZE, done, recipe.solarize.threshold)
    if recipe.posterize is not None:
        done = u[:, _POSTERIZE] < recipe.posterize.probability
        yield _plain(Op.POSTERIZE, done, recipe.posterize.bits)
    if recipe.equalize is not None:
        yield _plain(Op.EQUALIZE, u[:, _EQUALIZE] < recipe.equalize.probability)
    if recipe.autocontrast is not None:
        yield _plain(Op.AUTOCONTRAST, u[:, _AUTOCONTRAST] < recipe.autocontrast.probability)
    if recipe.augment is not None:
        yield _augment(recipe.augment, u[:, _AUGMENT:NUM_WORDS], sizes=(size, recipe.size))
    if recipe.erase is not None:
        yield _erase(recipe.erase, u[:, _ERASE:_AUGMENT], sizes=(size, recipe.size))


def _plain(op: Op, done_N: NDArray[np.bool_], argument: F64 | int = 0) -> I64:
    steps = np.zeros((len(done_N), 1, STEP_WIDTH), np.int64)
    steps[:, 0, 0] = op
    steps[:, 0, 1] = argument
    return np.where(done_N[:, None, None], steps, 0)


def _jitter(jitter: Jitter, u_N6: F64) -> I64:
    steps = np.zeros((len(u_N6), 4, STEP_WIDTH), np.int64)
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation)
    for place, (op, strength) in enumerate(zip(_FACTORS, strengths, strict=True)):
        if strength > 0:
            low, high = max(0.0, 1.0 - strength), 1.0 + strength
            steps[:, place, 0] = op
            steps[:, place, 1] = np.rint((low + (high - low) * u_N6[:, 2 + place]) * UNIT)
    if jitter.hue > 0:
        steps[:, 3, 0] = Op.HUE
        steps[:, 3, 1] = np.rint((2 * jitter.hue * u_N6[:, 5] - jitter.hue) * UNIT)
    order_N4 = _ORDERS[(u_N6[:, 1] * len(_ORDERS)).astype(np.int64)]
    steps = np.take_along_axis(steps, order_N4[..., None], axis=1)
    return np.where(u_N6[:, 0, None, None] < jitter.probability, steps, 0)


@lru_cache(maxsize=16)
def _magnitudes(law: str, sizes: tuple[int, int]) -> I64:
    """Return the argument of each operation at each level, (14, 31); signed ones from above 0.

    sizes: side of the view, and that for which the law is stated.
    """
    trivial = law == "trivial"
    level = [Fraction(m, NUM_LEVELS - 1) for m in range(NUM_LEVELS)]
    shear, change = Fraction("0.99" if trivial else "0.3"), Fraction("0.99" if trivial else "0.9")
    move = Fraction(32 * sizes[0], sizes[1]) if trivial else Fraction(150, 331) * sizes[0]
    turn, bits = (270, 6) if trivial else (60, 4)
    sheared = [round(shear * m * UNIT) for m in level]
    moved = [int(move * m) for m in level]
    changed = [round(change * m * UNIT) for m in level]
    rounded: dict[Op, list[int]] = {
        **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), sheared),
        **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), moved),
        Op.ROTATE: [int(turn * m) for m in level],
        **dict.fromkeys(_CHANGES, changed),
        Op.POSTERIZE: [8 - round(bits * m) for m in level],
        Op.SOLARIZE: [math.ceil(255 * (1 - m)) for m in level],
    }
    unused = [0] * NUM_LEVELS
    table = np.array([rounded.get(op, unused) for op in _SPACE], np.int64)
    table.setflags(write=False)
    return table


def _augment(law: RandAugment | TrivialAugment, u_NW: F64, *, sizes: tuple[int, int]) -> I64:
    num_ops = law.num_ops if isinstance(law, RandAugment) else 1
    u_NK3 = u_NW[:, : 3 * num_ops].reshape(len(u_NW), num_ops, 3)
    which_NK = (u_NK3[..., 0] * len(_SPACE)).astype(np.int64)
    if isinstance(law, RandAugment):
        level_NK = np.full_like(which_NK, law.magnitude)
    else:
        level_NK = (u_NK3[..., 1] * NUM_LEVELS).astype(np.int64)
    argument_NK = _magnitudes(law.law, sizes)[which_NK, level_NK]
    op_NK = np.array(_SPACE, np.int64)[which_NK]
    factor_NK = np.isin(op_NK, _CHANGES)
    signed_NK = factor_NK | np.isin(op_NK, _WARPS)
    argument_NK = np.where(signed_NK & (u_NK3[..., 2] < 0.5), -argument_NK, argument_NK)
    steps = np.zeros((*op_NK.shape, STEP_WIDTH), np.int64)
    steps[..., 0] = op_NK
    steps[..., 1] = np.where(factor_NK, UNIT + argument_NK, argument_NK)
    return steps


def _erase(erase: Erase, u_NW: F64, *, sizes: tuple[int, int]) -> I64:
    """Return the step of each row: the first of ten tries whose sides are below the view's.

    sizes: side of the view, and that at which the try is chosen, the same for both roles.
    """
    count = len(u_NW)
    tries_NT2 = u_NW[:, 4 : 4 + 2 * _ERASE_TRIES].reshape(count, _ERASE_TRIES, 2)
    table, (low, high) = ratio_table(*erase.ratio), erase.area
    share_NT = low + (high - low) * tries_NT2[..., 0]
    ratio_NT = table[(tries_NT2[..., 1] * len(table)).astype(np.int64)]
    size, chosen_at = sizes
    sides_NT2 = _erased_sides(share_NT, ratio_NT, size=chosen_at)
    fits_NT = (sides_NT2.min(axis=2) >= 1) & (sides_NT2.max(axis=2) < chosen_at)
    first_N1 = np.argmax(fits_NT, axis=1)[:, None]
    if size != chosen_at:
        sides_NT2 = np.clip(_erased_sides(share_NT, ratio_NT, size=size), 1, size)
    sides_N2 = np.take_along_axis(sides_NT2, first_N1[..., None], axis=1)[:, 0]
    done_N = (u_NW[:, 0] < erase.probability) & fits_NT.any(axis=1)
    sides_N2[~done_N] = 1
    steps = np.zeros((count, 1, STEP_WIDTH), np.int64)
    steps[:, 0, 1:5] = place_boxes(sides_N2, np.full_like(sides_N2, size), position_N2=u_NW[:, 1:3])
    if erase.fill == "noise":
        steps[:, 0, 0], steps[:, 0, 5] = Op.ERASE_NOISE, (u_NW[:, 3] * 2.0**53).astype(np.int64)
    else:
        red, green, blue = erase.fill
        steps[:, 0, 0], steps[:, 0, 5] = Op.ERASE, red << 16 | green << 8 | blue
    return np.where(done_N[:, None, None], steps, 0)


def _erased_sides(share_NT: F64, ratio_NT: F64, *, size: int) -> I64:
    """Return width and height (N, T, 2) of rectangles. share: of the view's area."""
    area_NT = size * size * share_NT
    sides_NT2 = np.stack((area_NT / ratio_NT, area_NT * ratio_NT), axis=2)
    return np.rint(np.sqrt(sides_NT2)).astype(np.int64)
