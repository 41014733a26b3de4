"""Claims about the steps of views: torchvision's laws, at the stated rates, within their ranges."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import ColorJitter, RandAugment, RandomErasing, TrivialAugmentWide

from kdcache.recipe.augment import NUM_WORDS, draw_steps
from kdcache.recipe.draws import uniforms
from kdcache.recipe.ops import STEP_WIDTH, UNIT, Op
from kdcache.recipe.schema import Recipe
from tests.recipe import reference
from tests.recipe.tables import any_recipes, recipe_of

LEAST_P = 0.001
NUM_ROWS = 20_000
ALMOST_ONE = 1 - 2.0**-53
LEVELS = 31

# torchvision's names of our operations.
NAMES = {
    Op.NOTHING: "Identity",
    Op.SHEAR_X: "ShearX",
    Op.SHEAR_Y: "ShearY",
    Op.TRANSLATE_X: "TranslateX",
    Op.TRANSLATE_Y: "TranslateY",
    Op.ROTATE: "Rotate",
    Op.BRIGHTNESS: "Brightness",
    Op.SATURATION: "Color",
    Op.CONTRAST: "Contrast",
    Op.SHARPNESS: "Sharpness",
    Op.POSTERIZE: "Posterize",
    Op.SOLARIZE: "Solarize",
    Op.AUTOCONTRAST: "AutoContrast",
    Op.EQUALIZE: "Equalize",
}
FACTORS = (Op.BRIGHTNESS, Op.SATURATION, Op.CONTRAST, Op.SHARPNESS)

Steps = NDArray[np.int64]


def recipe(size: int = 32, **tables: Any) -> Recipe:
    return recipe_of({"seed": 1, "size": size, "crop": {"law": "full"}, **tables})


def steps_of(size: int = 32, *, num_rows: int = NUM_ROWS, **tables: Any) -> Steps:
    """Return the steps of many rows in one view."""
    names = np.arange(num_rows, dtype=np.uint64)
    chosen = recipe(size, **tables)
    return draw_steps(chosen, uniforms(chosen.seed, names, view=0, count=NUM_WORDS))


def numbers(num_rows: int, words: dict[int, Any]) -> NDArray[np.float64]:
    """Return numbers that are 0.5, apart from some words."""
    out = np.full((num_rows, NUM_WORDS), 0.5)
    for word, value in words.items():
        out[:, word] = value
    return out


# --- any tables --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    chosen=any_recipes,
    u=st.lists(
        st.sampled_from((0.0, ALMOST_ONE)) | st.floats(0, ALMOST_ONE),
        min_size=NUM_WORDS,
        max_size=NUM_WORDS,
    ),
)
@example(chosen=recipe(1, erase={"probability": 1.0}), u=[0.0] * NUM_WORDS)
@example(chosen=recipe(1, augment={"law": "trivial"}), u=[ALMOST_ONE] * NUM_WORDS)
def test_the_steps_of_any_numbers_are_those_of_the_reference_and_within_range(
    chosen: Recipe, u: list[float]
) -> None:
    steps = draw_steps(chosen, np.array([u]))
    assert steps.dtype == np.int64
    assert steps.shape[0] == 1
    assert steps.shape[2] == STEP_WIDTH == 6
    assert reference.trimmed(steps[0].tolist()) == reference.row(chosen, u, size=(9, 9)).steps
    for op, *arguments in steps[0].tolist():
        assert_in_range(Op(op), arguments, size=chosen.size)


def assert_in_range(op: Op, arguments: list[int], *, size: int) -> None:
    """Check the arguments against what kdcache.recipe.ops states of them."""
    value = arguments[0]
    bounds = {
        Op.BRIGHTNESS: (0, 11 * UNIT),
        Op.CONTRAST: (0, 11 * UNIT),
        Op.SATURATION: (0, 11 * UNIT),
        Op.SHARPNESS: (0, 2 * UNIT),
        Op.HUE: (-32_768, 32_768),
        Op.BLUR: (6, 640),
        Op.SOLARIZE: (0, 256),
        Op.POSTERIZE: (1, 8),
        Op.SHEAR_X: (-UNIT, UNIT),
        Op.SHEAR_Y: (-UNIT, UNIT),
        Op.TRANSLATE_X: (-max(size, 32), max(size, 32)),
        Op.TRANSLATE_Y: (-max(size, 32), max(size, 32)),
        Op.ROTATE: (-270, 270),
    }
    if op in (Op.ERASE, Op.ERASE_NOISE):
        left, top, wide, tall, fill = arguments
        assert 1 <= wide < size
        assert 1 <= tall < size
        assert 0 <= left <= size - wide
        assert 0 <= top <= size - tall
        assert 0 <= fill < (2**24 if op is Op.ERASE else 2**63)
        return
    low, high = bounds.get(op, (0, 0))
    assert low <= value <= high
    assert not any(arguments[1:])


def test_a_recipe_without_such_tables_has_no_steps() -> None:
    for tables in ({}, {"flip": {"vertical": 1.0}}, {"mix": {"law": "switch"}}):
        assert steps_of(num_rows=3, **tables).shape == (3, 0, STEP_WIDTH)


def test_steps_follow_the_order_of_the_recipes_fields() -> None:
    tables: dict[str, Any] = {
        "erase": {"probability": 1.0},
        "augment": {"law": "randaugment", "num_ops": 3},
        "autocontrast": {"probability": 1.0},
        "equalize": {"probability": 1.0},
        "posterize": {"probability": 1.0, "bits": 3},
        "solarize": {"probability": 1.0, "threshold": 7},
        "blur": {"probability": 1.0},
        "grey": {"probability": 1.0},
        "jitter": {"brightness": 0.5, "hue": 0.1},
    }
    steps = steps_of(num_rows=200, **tables)
    assert steps.shape[1] == 4 + 6 + 3 + 1
    for row in steps[..., 0].tolist():
        assert sorted(row[:4]) == [0, 0, Op.BRIGHTNESS, Op.HUE]
        assert row[4:10] == [
            Op.GREY, Op.BLUR, Op.SOLARIZE, Op.POSTERIZE, Op.EQUALIZE, Op.AUTOCONTRAST,
        ]  # fmt: skip
        assert set(row[10:13]) <= set(NAMES)
        assert row[13] == Op.ERASE
    assert (steps[:, 6, 1] == 7).all()
    assert (steps[:, 7, 1] == 3).all()


def test_every_operation_keeps_its_number() -> None:
    assert {op.name: op.value for op in Op} == {
        "NOTHING": 0,
        "BRIGHTNESS": 1,
        "CONTRAST": 2,
        "SATURATION": 3,
        "HUE": 4,
        "SHARPNESS": 5,
        "GREY": 6,
        "BLUR": 7,
        "SOLARIZE": 8,
        "POSTERIZE": 9,
        "EQUALIZE": 10,
        "AUTOCONTRAST": 11,
        "SHEAR_X": 12,
        "SHEAR_Y": 13,
        "TRANSLATE_X": 14,
        "TRANSLATE_Y": 15,
        "ROTATE": 16,
        "ERASE": 17,
        "ERASE_NOISE": 18,
    }


CHANCES: dict[str, dict[str, Any]] = {
    "jitter": {"hue": 0.1},
    "grey": {},
    "blur": {},
    "solarize": {},
    "posterize": {},
    "equalize": {},
    "autocontrast": {},
    "erase": {},
}


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("table", CHANCES)
def test_a_step_is_done_at_its_stated_rate(table: str, rate: float) -> None:
    steps = steps_of(**{table: {**CHANCES[table], "probability": rate}})
    done = steps[..., 0].any(axis=1)
    assert not steps[~done].any()
    assert stats.binomtest(int(done.sum()), len(done), rate).pvalue > LEAST_P
    if rate == 1.0:
        assert done.all()


# --- colour jitter -----------------------------------------------------------------------------

STRENGTHS = {"brightness": 0.4, "contrast": 0.9, "saturation": 1.7, "hue": 0.5}


def arguments(steps: Steps, op: Op) -> NDArray[np.int64]:
    return steps[steps[..., 0] == op][:, 1]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_uniform_around_one_and_never_below_zero(name: str) -> None:
    factors = arguments(steps_of(jitter=STRENGTHS), Op[name.upper()]) / UNIT
    low, high = max(0.0, 1 - STRENGTHS[name]), 1 + STRENGTHS[name]
    assert len(factors) == NUM_ROWS
    assert factors.min() >= low - 0.5 / UNIT
    assert factors.max() <= high + 0.5 / UNIT
    assert stats.kstest(factors, "uniform", (low, high - low)).pvalue > LEAST_P
    # The bounds are those that torchvision works out.
    theirs = getattr(ColorJitter(**{name: STRENGTHS[name]}), name)
    assert (low, high) == pytest.approx(tuple(theirs))


@pytest.mark.parametrize("hue", [0.02, 0.5])
def test_the_hue_is_uniform_both_ways(hue: float) -> None:
    turns = arguments(steps_of(jitter={"hue": hue}), Op.HUE) / UNIT
    assert np.abs(turns).max() <= hue + 0.5 / UNIT
    assert stats.kstest(turns, "uniform", (-hue, 2 * hue)).pvalue > LEAST_P


def test_the_amounts_of_a_jitter_are_independent_of_each_other_and_of_their_order() -> None:
    steps = steps_of(jitter=STRENGTHS)
    ops = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)
    amounts = np.stack([arguments(steps, op) for op in ops])
    places = np.stack([np.argmax(steps[..., 0] == op, axis=1) for op in ops])
    together = np.corrcoef(np.concatenate((amounts, places[:3])))
    of_amounts = together[:4][~np.eye(7, dtype=bool)[:4]]
    assert np.abs(of_amounts).max() < 4 / NUM_ROWS**0.5


def test_all_24_orders_of_a_jitter_are_equally_likely() -> None:
    orders, counts = np.unique(steps_of(jitter=STRENGTHS)[..., 0], axis=0, return_counts=True)
    ops = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)
    assert {tuple(order) for order in orders.tolist()} == set(permutations(ops))
    assert stats.chisquare(counts).pvalue > LEAST_P


@pytest.mark.parametrize("name", STRENGTHS)
def test_what_a_jitter_leaves_out_is_not_done_and_moves_no_other_amount(name: str) -> None:
    whole = steps_of(jitter=STRENGTHS)
    less = steps_of(jitter={**STRENGTHS, name: 0.0})
    assert np.array_equal(less, np.where(whole[..., :1] == Op[name.upper()], 0, whole))


# --- blur, solarize, posterize ------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [(0.1, 2.0), (3.0, 3.5), (10.0, 10.0)])
def test_sigmas_are_uniform_in_their_range(sigma: tuple[float, float]) -> None:
    """Each 64th of a pixel is as likely as the part of the range that rounds to it."""
    low, high = sigma
    found = arguments(steps_of(blur={"probability": 1.0, "sigma": list(sigma)}), Op.BLUR)
    if low == high:
        assert (found == round(64 * low)).all()
        return
    least, most = round(64 * low), round(64 * high)
    edges = np.clip(np.arange(least, most + 2) - 0.5, 64 * low, 64 * high)
    expected = np.diff(edges) / (64 * (high - low)) * len(found)
    counts = np.bincount(found, minlength=most + 1)
    assert counts[:least].sum() == 0
    assert len(counts) == most + 1
    assert stats.chisquare(counts[least:], expected).pvalue > LEAST_P


# --- RandAugment and TrivialAugmentWide ----------------------------------------------------------


def space(law: str, size: int) -> dict[str, tuple[torch.Tensor, bool]]:
    if law == "trivial":
        found = TrivialAugmentWide()._augmentation_space(LEVELS)
    else:
        found = RandAugment(num_magnitude_bins=LEVELS)._augmentation_space(LEVELS, (size, size))
    return dict(found)


def augmented(law: str, level: int, *, size: int, sign: float) -> Steps:
    """Return the step of each of the 14 operations at a level."""
    which = (np.arange(14) + 0.5) / 14
    u = numbers(14, {65: which, 66: (level + 0.5) / LEVELS, 67: sign})
    table = {"law": law} if law == "trivial" else {"law": law, "num_ops": 1, "magnitude": level}
    return draw_steps(recipe(size, augment=table), u)[:, 0]


@pytest.mark.parametrize("law", ["randaugment", "trivial"])
def test_the_operations_are_torchvisions_in_their_order(law: str) -> None:
    found = [NAMES[Op(op)] for op in augmented(law, 9, size=224, sign=0.7)[:, 0].tolist()]
    assert found == list(space(law, 224))


def assert_magnitude(op: Op, found: int, theirs: float, *, signed: bool) -> None:
    """Check our argument, its sign positive, against torchvision's magnitude in float32."""
    if op in FACTORS:
        assert signed
        assert abs(found - UNIT - theirs * UNIT) < 0.51
    elif op in (Op.SHEAR_X, Op.SHEAR_Y):
        assert signed
        assert abs(found - theirs * UNIT) < 0.51
    elif op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        # They cut off the fraction of a product in float32, which may lie just below a whole one.
        assert signed
        assert int(theirs * (1 - 1e-6)) <= found <= int(theirs * (1 + 1e-6))
    elif op is Op.ROTATE:
        assert signed
        assert found / 2 == pytest.approx(theirs, abs=1e-4)
    elif op is Op.POSTERIZE:
        assert not signed
        assert found == int(theirs)
    elif op is Op.SOLARIZE:
        values = np.arange(256)
        assert not signed
        assert np.array_equal(values >= found, values >= theirs)
    else:
        assert found == theirs == 0
        assert not signed


@pytest.mark.parametrize("size", [1, 32, 224, 331, 4096])
@pytest.mark.parametrize("law", ["randaugment", "trivial"])
def test_magnitudes_are_torchvisions_at_all_levels(law: str, size: int) -> None:
    for level in range(LEVELS):
        forward = augmented(law, level, size=size, sign=0.5)
        backward = augmented(law, level, size=size, sign=np.nextafter(0.5, 0))
        for ours, turned in zip(forward.tolist(), backward.tolist(), strict=True):
            op = Op(ours[0])
            magnitudes, signed = space(law, size)[NAMES[op]]
            theirs = float(magnitudes[level]) if magnitudes.ndim else 0.0
            assert_magnitude(op, ours[1], theirs, signed=signed)
            middle = UNIT if op in FACTORS else 0
            assert turned[1] - middle == (middle - ours[1] if signed else ours[1])
            assert turned[0] == op
            assert not any(ours[2:])


def test_operations_levels_and_signs_of_trivial_augment_are_uniform_and_independent() -> None:
    steps = steps_of(num_rows=100_000, augment={"law": "trivial"})[:, 0]
    counts = np.bincount(steps[:, 0], minlength=19)
    assert set(np.flatnonzero(counts).tolist()) == set(NAMES)
    assert stats.chisquare(counts[list(NAMES)]).pvalue > LEAST_P
    for op in (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, *FACTORS):
        offset = steps[steps[:, 0] == op][:, 1] - (UNIT if op in FACTORS else 0)
        values, levels = np.unique(np.abs(offset), return_counts=True)
        assert len(values) == LEVELS
        assert stats.chisquare(levels).pvalue > LEAST_P
        moved = offset[offset != 0]
        signs = np.stack((np.abs(moved), moved < 0))
        assert stats.binomtest(int(signs[1].sum()), len(moved), 0.5).pvalue > LEAST_P
        table = stats.contingency.crosstab(*signs).count
        assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_operations_of_rand_augment_are_uniform_and_independent_in_all_places() -> None:
    tables = {"augment": {"law": "randaugment", "num_ops": 8, "magnitude": 9}}
    steps = steps_of(num_rows=30_000, **tables)
    assert steps.shape[1] == 8
    for place in range(8):
        counts = np.bincount(steps[:, place, 0], minlength=19)
        assert set(np.flatnonzero(counts).tolist()) == set(NAMES)
        assert stats.chisquare(counts[list(NAMES)]).pvalue > LEAST_P
        following = steps[:, (place + 1) % 8]
        table = stats.contingency.crosstab(steps[:, place, 0], following[:, 0]).count
        assert stats.chi2_contingency(table).pvalue > LEAST_P
        sheared = steps[:, place][steps[:, place, 0] == Op.SHEAR_X][:, 1]
        assert set(np.abs(sheared).tolist()) == {round(0.09 * UNIT)}
        assert stats.binomtest(int((sheared < 0).sum()), len(sheared), 0.5).pvalue > LEAST_P


def test_fewer_operations_are_the_first_of_more() -> None:
    many = steps_of(num_rows=50, augment={"law": "randaugment", "num_ops": 8})
    for count in range(1, 8):
        few = steps_of(num_rows=50, augment={"law": "randaugment", "num_ops": count})
        assert np.array_equal(few, many[:, :count])


# --- erasing -----------------------------------------------------------------------------------


def torchvision_rectangles(
    size: int, *, area: tuple[float, float], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """Return left, top, width, height of what torchvision erases."""
    image = torch.empty(1).expand(1, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [RandomErasing.get_params(image, area, ratio, [0.0])[:4] for _ in range(NUM_ROWS)]
    return np.array(drawn)[:, [1, 0, 3, 2]]


def agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Return the least p value of two-sample KS tests on sides, area, ratio, left and top."""
    measures = [
        (boxes[:, 2], boxes[:, 3], boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3],
         boxes[:, 0], boxes[:, 1])
        for boxes in (a, b)
    ]  # fmt: skip
    return min(float(stats.ks_2samp(*pair).pvalue) for pair in zip(*measures, strict=True))


def rectangles(size: int, **options: Any) -> NDArray[np.int64]:
    steps = steps_of(size, erase={"probability": 1.0, **options})[:, 0]
    return steps[steps[:, 0] != 0][:, 1:5]


@pytest.mark.parametrize(
    ("size", "area", "ratio"),
    [
        (224, (0.02, 0.33), (0.3, 3.3)),
        (32, (0.02, 0.33), (0.3, 3.3)),
        (7, (0.02, 0.33), (0.3, 3.3)),
        (64, (0.3, 0.9), (0.2, 2.0)),  # many tries do not fit
    ],
)
def test_rectangles_are_distributed_as_torchvisions(
    size: int, area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    theirs = torchvision_rectangles(size, area=area, ratio=ratio)
    theirs = theirs[theirs[:, 2] < size]  # the whole image stands for none
    ours = rectangles(size, area=list(area), ratio=list(ratio))
    assert agreement(ours, theirs) > LEAST_P
    rates = [[len(ours), len(theirs)], [NUM_ROWS - len(ours), NUM_ROWS - len(theirs)]]
    assert stats.fisher_exact(rates).pvalue > LEAST_P


def test_the_distribution_test_sees_another_law_of_rectangles() -> None:
    ours = rectangles(224)
    assert agreement(ours, rectangles(224, area=[0.02, 0.34])) < LEAST_P
    assert agreement(ours, rectangles(224, ratio=[0.3, 3.0])) < LEAST_P
    assert agreement(ours, ours[:, [1, 0, 3, 2]] + [0, 4, 0, 0]) < LEAST_P


@settings(deadline=None, max_examples=100)
@given(size=st.integers(1, 60), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_rectangle_is_the_first_try_below_the_views_sides(
    size: int, seed: int, data: st.DataObject
) -> None:
    """A try of the whole side or more, or of no area, is passed over; after ten, all of them."""
    good = data.draw(st.integers(0, 10))
    u = np.random.default_rng(seed).random((1, NUM_WORDS))
    u[0, 45:65:2] = data.draw(st.sampled_from((0.0, ALMOST_ONE)))  # none or all of the area
    if good < 10:
        u[0, 45 + 2 * good] = 0.25
    chosen = recipe(size, erase={"probability": 1.0, "area": [1e-6, 1.0], "ratio": [1.0, 1.0]})
    step = draw_steps(chosen, u)[0, 0].tolist()
    side = round(size * (1e-6 + 0.25 * (1 - 1e-6)) ** 0.5)
    if good == 10 or not 0 < side < size:
        assert step == [0] * STEP_WIDTH
    else:
        assert step[0] == Op.ERASE
        assert step[3:5] == [side, side]


def test_an_area_that_never_fits_erases_nothing() -> None:
    assert not steps_of(20, erase={"probability": 1.0, "area": [0.99, 1.0]}).any()
    assert not steps_of(1, erase={"probability": 1.0, "area": [1e-6, 1.0]}).any()


def test_rectangles_reach_every_edge() -> None:
    boxes = rectangles(8, area=[0.25, 0.25], ratio=[1.0, 1.0])
    assert np.unique(boxes, axis=0).tolist() == [
        [left, top, 4, 4] for left in range(5) for top in range(5)
    ]
    places = stats.contingency.crosstab(boxes[:, 0], boxes[:, 1]).count
    assert stats.chisquare(places.ravel()).pvalue > LEAST_P


def test_the_colour_and_the_key_of_the_noise_are_the_last_argument() -> None:
    plain = steps_of(erase={"probability": 0.5, "fill": [1, 128, 255]})[:, 0]
    noise = steps_of(erase={"probability": 0.5, "fill": "noise"})[:, 0]
    done = plain[:, 0] == Op.ERASE
    assert np.array_equal(done, noise[:, 0] == Op.ERASE_NOISE)
    assert np.array_equal(plain[:, 1:5], noise[:, 1:5])
    assert set(plain[done, 5].tolist()) == {0x0180FF}
    keys = noise[done, 5]
    assert len(np.unique(keys)) == len(keys)
    assert stats.kstest(keys / 2.0**53, "uniform").pvalue > LEAST_P
    default = steps_of(erase={"probability": 1.0}, num_rows=9)[:, 0]
    assert set(default[:, 5].tolist()) == {0x7C7468}  # ImageNet's mean: 124, 116, 104
