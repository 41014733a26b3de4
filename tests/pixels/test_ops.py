"""Claims about the steps of a view: torchvision's pixels, the same bytes wherever they are made."""

import decimal
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as V
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from kdcache.pixels import colour, warp
from kdcache.pixels.steps import apply_steps
from kdcache.recipe.ops import STEP_WIDTH, UNIT, Op
from tests.photos import Pixels, pattern, smooth_photo
from tests.pixels import golden_ops
from tests.pixels.golden_ops import CASES, name_of, step_of

LEVELS = np.arange(256, dtype=np.uint8)
MAX_FACTOR = 16 * UNIT
NEAREST = InterpolationMode.NEAREST

Change = Callable[[Image.Image, int], Image.Image]

# --- references -------------------------------------------------------------------------------

PIL_REFERENCES: dict[Op, Change] = {
    Op.BRIGHTNESS: lambda image, a: F.adjust_brightness(image, a / UNIT),
    Op.CONTRAST: lambda image, a: F.adjust_contrast(image, a / UNIT),
    Op.SATURATION: lambda image, a: F.adjust_saturation(image, a / UNIT),
    Op.SHARPNESS: lambda image, a: F.adjust_sharpness(image, a / UNIT),
    Op.GREY: lambda image, _: F.to_grayscale(image, 3),
    Op.SOLARIZE: F.solarize,
    Op.POSTERIZE: F.posterize,
    Op.EQUALIZE: lambda image, _: F.equalize(image),
    Op.AUTOCONTRAST: lambda image, _: F.autocontrast(image),
    Op.SHEAR_X: lambda image, a: _apply_op(image, "ShearX", a / UNIT, NEAREST, None),
    Op.SHEAR_Y: lambda image, a: _apply_op(image, "ShearY", a / UNIT, NEAREST, None),
    Op.TRANSLATE_X: lambda image, a: _apply_op(image, "TranslateX", a, NEAREST, None),
    Op.TRANSLATE_Y: lambda image, a: _apply_op(image, "TranslateY", a, NEAREST, None),
    Op.ROTATE: lambda image, a: F.rotate(image, a / 2, NEAREST),
}
factors = st.one_of(
    st.sampled_from([0, 1, UNIT - 1, UNIT, UNIT + 1, 2 * UNIT, MAX_FACTOR]),
    st.integers(0, 2 * UNIT),
    st.integers(0, MAX_FACTOR),
)
turns = st.one_of(st.sampled_from([-UNIT // 2, -1, 0, 1, UNIT // 2]), st.integers(-32768, 32768))
shears = st.one_of(st.sampled_from([-UNIT, -1, 0, 1, UNIT]), st.integers(-UNIT, UNIT))
shifts, nothing = st.integers(-60, 60), st.just(0)
ARGUMENTS: dict[Op, st.SearchStrategy[int]] = {
    **dict.fromkeys((Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.SHARPNESS), factors),
    **dict.fromkeys((Op.GREY, Op.EQUALIZE, Op.AUTOCONTRAST), nothing),
    Op.SOLARIZE: st.integers(0, 256),
    Op.POSTERIZE: st.integers(1, 8),
    **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), shears),
    **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), shifts),
    Op.ROTATE: st.integers(-360, 360),
}


def steps(*wanted: tuple[int, ...]) -> NDArray[np.int64]:
    out = np.zeros((len(wanted), STEP_WIDTH), np.int64)
    for row, step in zip(out, wanted, strict=True):
        row[: len(step)] = step
    return out


def applied(pixels: Pixels, *step: int) -> Pixels:
    out = apply_steps(pixels, steps(step))
    assert out.dtype == np.uint8
    assert out.shape == pixels.shape
    assert out.flags.c_contiguous
    return out


def by_pil(op: Op, pixels: Pixels, argument: int) -> Pixels:
    return np.asarray(PIL_REFERENCES[op](Image.fromarray(pixels), argument))


def as_tensor(pixels: Pixels) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)


def as_pixels(tensor: torch.Tensor) -> Pixels:
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


def blurred_by_torchvision(pixels: Pixels, sigma: int) -> Pixels:
    side = 2 * len(colour.gaussian_weights(sigma)) - 1
    return as_pixels(V.gaussian_blur(as_tensor(pixels), [side, side], [sigma / 64, sigma / 64]))


def distance(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


# --- images -----------------------------------------------------------------------------------


def picture(kind: str, width: int, height: int, *, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    if kind == "photo":
        return np.array(smooth_photo(width, height, seed=seed))
    if kind == "pattern":
        return pattern(width, height, kind=seed % 3)
    if kind == "constant":
        return np.tile(rng.integers(0, 256, 3, np.uint8), (height, width, 1))
    span = 4 if kind == "faint" else 256
    low = int(rng.integers(0, 257 - span))
    return rng.integers(low, low + span, (height, width, 3), np.uint8)


pictures = st.builds(
    picture,
    st.sampled_from(["photo", "pattern", "constant", "faint", "noise"]),
    st.integers(1, 40),
    st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
PHOTOS = (picture("photo", 224, 224), picture("photo", 101, 77, seed=1), pattern(224, 224, kind=1))

# --- against torchvision ----------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(set(PIL_REFERENCES) - {Op.SHEAR_X, Op.SHEAR_Y}))
@settings(deadline=None, max_examples=150)
@given(pixels=pictures, data=st.data())
def test_an_operation_equals_torchvision_on_pil_images(
    op: Op, pixels: Pixels, data: st.DataObject
) -> None:
    argument = data.draw(ARGUMENTS[op])
    assert (applied(pixels, op, argument) == by_pil(op, pixels, argument)).all()


@pytest.mark.parametrize("op", sorted(PIL_REFERENCES))
def test_an_operation_equals_torchvision_on_photographs(op: Op) -> None:
    plain = {Op.SOLARIZE: [99], Op.POSTERIZE: [4], Op.ROTATE: [-60, 33, 90, 271]}
    moves = {Op.TRANSLATE_X: [-97, 30, 300], Op.TRANSLATE_Y: [-97, 30, 300]}
    for argument in (plain | moves).get(op, [19_660, -6_554] if "SHEAR" in op.name else [83_001]):
        for pixels in PHOTOS:
            assert (applied(pixels, op, argument) == by_pil(op, pixels, argument)).all()


@pytest.mark.parametrize("op", [Op.SHEAR_X, Op.SHEAR_Y])
@settings(deadline=None, max_examples=150)
@given(pixels=pictures, shear=shears)
def test_shears_equal_torchvision_but_where_a_line_lands_between_two_pixels(
    op: Op, pixels: Pixels, shear: int
) -> None:
    # torchvision takes the tangent of an arc tangent in float64, which may fall on either side.
    found, expected = applied(pixels, op, shear), by_pil(op, pixels, shear)
    if op is Op.SHEAR_Y:
        found, expected = found.swapaxes(0, 1), expected.swapaxes(0, 1)
    line = np.arange(len(found))
    between = (UNIT // 2 + (shear + 1) // 2 + shear * line) % UNIT == 0
    assert (found == expected)[~between | (shear % 2 == 0)].all()


@settings(deadline=None, max_examples=150)
@given(pixels=pictures, turn=turns)
def test_hue_is_within_one_level_of_torchvision_on_tensors(pixels: Pixels, turn: int) -> None:
    expected = as_pixels(V.adjust_hue(as_tensor(pixels), turn / UNIT))
    assert distance(applied(pixels, Op.HUE, turn), expected) <= 1


@settings(deadline=None, max_examples=100)
@given(pixels=pictures, sigma=st.integers(1, 640))
def test_blur_is_within_one_level_of_torchvision(pixels: Pixels, sigma: int) -> None:
    radius = math.ceil(3 * sigma / 64)
    if radius >= min(pixels.shape[:2]):  # torchvision cannot mirror that far
        sigma, radius = 6, 1
        pixels = np.pad(pixels, ((0, 1), (0, 1), (0, 0)))
    assert len(colour.gaussian_weights(sigma)) == radius + 1
    assert distance(applied(pixels, Op.BLUR, sigma), blurred_by_torchvision(pixels, sigma)) <= 1


@pytest.mark.parametrize("sigma", [6, 64, 77, 128, 640])
def test_blur_differs_from_torchvision_in_few_values(sigma: int) -> None:
    for pixels in PHOTOS:
        found, expected = applied(pixels, Op.BLUR, sigma), blurred_by_torchvision(pixels, sigma)
        assert distance(found, expected) <= 1
        assert (found != expected).mean() < 0.01


# --- against exact arithmetic -----------------------------------------------------------------


def blended(value: int, towards: int, factor: int) -> int:
    exact = towards + Fraction(factor, UNIT) * (value - towards)
    return min(max(math.floor(exact), 0), 255)


def test_brightness_of_every_level_is_the_exact_product_rounded_down() -> None:
    ramp = np.repeat(LEVELS, 3).reshape(1, 256, 3)
    rng = np.random.default_rng(0)
    for factor in (0, 1, UNIT - 1, UNIT, MAX_FACTOR, *rng.integers(0, 4 * UNIT, 200).tolist()):
        expected = [blended(level, 0, factor) for level in range(256)]
        assert (applied(ramp, Op.BRIGHTNESS, factor) == np.array(expected)[:, None]).all()


def test_contrast_blends_with_the_mean_grey_level_rounded_half_up() -> None:
    # Grey levels 7 and 8 in equal parts: the mean, 7.5, counts as 8.
    ramp = np.array([7, 8, 8, 7], np.uint8)[:, None, None].repeat(3, 2)
    for factor in (0, 1000, UNIT, 99_999, MAX_FACTOR):
        expected = [blended(level, 8, factor) for level in (7, 8, 8, 7)]
        assert applied(ramp, Op.CONTRAST, factor)[:, 0, 0].tolist() == expected


def test_every_colour_has_the_grey_level_of_pillow() -> None:
    green, blue = np.meshgrid(LEVELS, LEVELS, indexing="ij")
    for red in range(256):
        pixels = np.stack([np.full_like(green, red), green, blue], -1)
        expected = np.asarray(Image.fromarray(pixels).convert("L"))
        assert (applied(pixels, Op.GREY) == expected[..., None]).all()


@pytest.mark.parametrize("op", [Op.SOLARIZE, Op.POSTERIZE])
def test_tables_of_every_argument_are_pillows(op: Op) -> None:
    ramp = np.repeat(LEVELS, 3).reshape(16, 16, 3)
    for argument in range(257) if op is Op.SOLARIZE else range(1, 9):
        assert (applied(ramp, op, argument) == by_pil(op, ramp, argument)).all()


def test_autocontrast_of_every_range_of_levels_is_pillows() -> None:
    ranges = [(low, high) for high in range(256) for low in range(high + 1)]
    ranges += ranges[: -len(ranges) % 3]
    for start in range(0, len(ranges), 3):
        channels = [np.clip(LEVELS, *bounds) for bounds in ranges[start : start + 3]]
        pixels = np.stack(channels, -1)[None]
        assert (applied(pixels, Op.AUTOCONTRAST) == by_pil(Op.AUTOCONTRAST, pixels, 0)).all()


def hued(pixel: tuple[int, int, int], turn: int) -> list[Fraction]:
    """Return a colour turned in exact arithmetic, by way of hue, saturation and value."""
    top, low = max(pixel), min(pixel)
    if top == low:
        return [Fraction(top)] * 3
    red, green, blue = (Fraction(top - value, top - low) for value in pixel)
    if pixel[0] == top:
        place = blue - green
    else:
        place = 2 + red - blue if pixel[1] == top else 4 + green - red
    place += Fraction(6 * turn, UNIT)
    out = []
    for start in (5, 3, 1):
        k = (start + place) % 6
        out.append(top - (top - low) * max(Fraction(0), min(k, 4 - k, Fraction(1))))
    return out


def test_hue_is_the_exact_colour_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(3)
    corners = rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (300, 3))
    pixels = np.concatenate([corners, rng.integers(0, 256, (300, 3), np.uint8)])[None]
    for turn in (-32768, -20_001, -1, 0, 1, 5_461, 10_923, 32_768):
        found = applied(pixels, Op.HUE, turn)[0].tolist()
        for before, after in zip(pixels[0].tolist(), found, strict=True):
            gaps = [abs(a - b) for a, b in zip(hued(before, turn), after, strict=True)]
            assert max(gaps) <= Fraction(1, 2)


def test_hue_of_a_million_colours_is_within_one_level_of_torchvision() -> None:
    grid = np.stack(np.meshgrid(LEVELS[::5], LEVELS[::5], LEVELS[::5]), -1).reshape(208, -1, 3)
    noise = np.random.default_rng(4).integers(0, 256, (1000, 850, 3), np.uint8)
    for pixels, turn in ((grid, 1), (grid, -32_768), (grid, 12_345), (noise, -6_554)):
        expected = as_pixels(V.adjust_hue(as_tensor(pixels), turn / UNIT))
        assert distance(applied(pixels, Op.HUE, turn), expected) <= 1


def test_no_turn_changes_a_grey() -> None:
    ramp = np.repeat(LEVELS, 3).reshape(1, 256, 3)
    for turn in range(-32_768, 32_769, 257):
        assert (applied(ramp, Op.HUE, turn) == ramp).all()


@settings(deadline=None, max_examples=60)
@given(
    pixels=st.builds(picture, st.just("noise"), st.integers(1, 12), st.integers(1, 12)),
    sigma=st.integers(1, 640),
)
def test_blur_is_the_exact_weighted_mean_of_mirrored_pixels(pixels: Pixels, sigma: int) -> None:
    half = [Fraction(weight, UNIT) for weight in colour.gaussian_weights(sigma)]
    radius = len(half) - 1
    weights = np.array([float(half[abs(at)]) for at in range(-radius, radius + 1)])
    padded = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    rows = np.apply_along_axis(np.convolve, 1, padded.astype(np.float64), weights, mode="valid")
    exact = np.apply_along_axis(np.convolve, 0, rows, weights, mode="valid")
    # Rows are kept in 64ths: half of one of those is added to the rounding at the end.
    assert np.abs(applied(pixels, Op.BLUR, sigma) - exact).max() <= 0.5 + 1 / 128 + 1e-9


def test_gaussian_weights_sum_to_one_and_fall_with_distance() -> None:
    for sigma in range(1, 641):
        weights = colour.gaussian_weights(sigma)
        assert weights[0] + 2 * sum(weights[1:]) == UNIT
        assert sorted(weights, reverse=True) == list(weights)
        total = sum(math.exp(-2048 * d * d / sigma**2) * (1 + (d > 0)) for d in range(len(weights)))
        for d, weight in enumerate(weights[1:], 1):
            exact = UNIT * math.exp(-2048 * d * d / sigma**2) / total
            assert abs(weight - exact) < 0.5 + 1e-6


def test_gaussian_weights_do_not_depend_on_the_decimal_context() -> None:
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        found = colour.gaussian_weights.__wrapped__(77)
    assert found == colour.gaussian_weights(77)


def test_sines_are_right_to_the_last_bit() -> None:
    for half_degrees in range(-720, 1441):
        exact = math.sin(math.radians(half_degrees % 720 / 2)) * 2**48
        assert abs(warp._sine(half_degrees) - exact) <= 0.6
    assert warp._sine(60) == 2**47
    assert [warp._sine(quarter) for quarter in (0, 180, 360, 540)] == [0, 2**48, 0, -(2**48)]


# --- erasing ----------------------------------------------------------------------------------


def test_erasing_fills_the_box_and_nothing_else() -> None:
    before = pattern(20, 15, kind=2)
    after = applied(before, Op.ERASE, 3, 5, 7, 9, 0x0A80FF)
    inside = np.zeros((15, 20), bool)
    inside[5:14, 3:10] = True
    assert (after[inside] == [0x0A, 0x80, 0xFF]).all()
    assert (after[~inside] == before[~inside]).all()


@pytest.mark.parametrize("key", [0, 1, 2**53 - 1, 2**63 - 1])
def test_noise_is_the_words_of_its_key_row_by_row(key: int) -> None:
    before = pattern(20, 15, kind=2)
    after = applied(before, Op.ERASE_NOISE, 3, 5, 7, 9, key)
    generator = np.random.Philox(key=np.array([key, 0], np.uint64), counter=np.zeros(4, np.uint64))
    words = generator.random_raw(-(-7 * 9 * 3 // 8))
    noise = b"".join(int(word).to_bytes(8, "little") for word in words)[: 7 * 9 * 3]
    assert after[5:14, 3:10].tobytes() == noise
    after[5:14, 3:10] = before[5:14, 3:10]
    assert (after == before).all()


def test_noise_is_uniform() -> None:
    noise = applied(np.zeros((256, 256, 3), np.uint8), Op.ERASE_NOISE, 0, 0, 256, 256, 7)
    counts = np.bincount(noise.ravel(), minlength=256)
    expected = noise.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 350  # chi-square, 255 degrees of freedom


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -1, 2, 2), (4, 0, 2, 2), (0, 4, 2, 2)])
def test_a_box_outside_the_view_is_refused(box: tuple[int, ...]) -> None:
    for op in (Op.ERASE, Op.ERASE_NOISE):
        with pytest.raises(AssertionError, match=r"of 5"):
            applied(np.zeros((5, 5, 3), np.uint8), op, *box, 0)


# --- every operation --------------------------------------------------------------------------

IDENTITIES: tuple[tuple[int, ...], ...] = (
    (Op.NOTHING,), (Op.BRIGHTNESS, UNIT), (Op.CONTRAST, UNIT), (Op.SATURATION, UNIT), (Op.HUE, 0),
    (Op.SHARPNESS, UNIT), (Op.BLUR, 0), (Op.SOLARIZE, 256), (Op.POSTERIZE, 8), (Op.SHEAR_X, 0),
    (Op.SHEAR_Y, 0), (Op.TRANSLATE_X, 0), (Op.TRANSLATE_Y, 0), (Op.ROTATE, 0), (Op.ROTATE, 720),
    (Op.ERASE, 0, 0, 0, 0, 5), (Op.ERASE_NOISE, 0, 0, 0, 0, 5),
)  # fmt: skip


@pytest.mark.parametrize("step", IDENTITIES, ids=name_of)
@settings(deadline=None, max_examples=40)
@given(pixels=pictures)
def test_identity_arguments_leave_the_pixels_as_they_are(
    step: tuple[int, ...], pixels: Pixels
) -> None:
    assert (applied(pixels, *step) == pixels).all()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_neither_memory_layout_nor_read_only_memory_matters(case: tuple[int, ...]) -> None:
    pixels = pattern(37, 29, kind=2)
    step = step_of(case, 37, 29)[None]
    expected = apply_steps(pixels, step)
    doubled = pixels.repeat(2, 0).repeat(2, 1)[::2, ::2]
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    mirrored = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    locked = pixels.copy()
    locked.setflags(write=False)
    for other in (np.asfortranarray(pixels), doubled, planes, mirrored, locked):
        found = apply_steps(other, step)
        assert found.flags.c_contiguous
        assert found.tobytes() == expected.tobytes()
        assert (other == pixels).all()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        *((function, (83_001,)) for function in (colour.brightness, colour.contrast)),
        *((function, (83_001,)) for function in (colour.saturation, colour.sharpness)),
        *((function, ()) for function in (colour.grey, colour.equalize, colour.autocontrast)),
        *((function, (5,)) for function in (colour.hue, colour.blur)),
        *((function, (5,)) for function in (colour.solarize, colour.posterize)),
        *((function, (4_321,)) for function in (warp.shear_x, warp.shear_y, warp.rotate)),
    ],
)
def test_functions_take_any_layout_by_themselves(
    function: Callable[..., Pixels], arguments: tuple[int, ...]
) -> None:
    pixels = pattern(23, 31, kind=2)
    found = function(np.asfortranarray(pixels), *arguments)
    assert found.flags.c_contiguous
    assert (found == function(pixels, *arguments)).all()


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3)])
def test_the_smallest_images_are_served_and_their_input_is_kept(
    case: tuple[int, ...], size: tuple[int, int]
) -> None:
    pixels = pattern(*size, kind=2)
    before = pixels.copy()
    assert applied(pixels, *step_of(case, *size).tolist()).shape == before.shape
    assert (pixels == before).all()


@settings(deadline=None, max_examples=60)
@given(
    pixels=pictures,
    cases=st.lists(st.sampled_from([case for case in CASES if case[0] != Op.BLUR]), max_size=6),
)
def test_steps_are_applied_one_after_another(pixels: Pixels, cases: list[tuple[int, ...]]) -> None:
    before, (height, width, _) = pixels.copy(), pixels.shape
    wanted = steps(*(tuple(step_of(case, width, height).tolist()) for case in cases))
    expected = pixels
    for step in wanted:
        expected = apply_steps(expected, step[None])
    assert (apply_steps(pixels, wanted) == expected).all()
    assert (pixels == before).all()


def test_every_operation_has_a_function_and_no_other_number_has() -> None:
    pixels = pattern(4, 4)
    assert {case[0] for case in CASES} == set(Op)
    for unknown in (-1, max(Op) + 1):
        with pytest.raises(AssertionError, match=f"operation {unknown}:"):
            apply_steps(pixels, steps((unknown,)))


def test_the_largest_views_do_not_overflow() -> None:
    side = 4096
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[0, 0] = 0
    assert applied(pixels, Op.CONTRAST, 0).min() == 255
    assert (applied(pixels, Op.EQUALIZE)[:2, :2].ravel() == [0] * 3 + [255] * 9).all()
    turned = applied(pixels, Op.ROTATE, 360)
    assert (turned[-1, -1] == 0).all()
    assert int(turned.min(2).sum(dtype=np.int64)) == 255 * (side * side - 1)
    sheared = applied(pixels, Op.SHEAR_X, UNIT)
    assert int((sheared == 255).sum()) == 3 * side * (side - 1) // 2


# --- for ever ---------------------------------------------------------------------------------


def test_every_operation_gives_the_bytes_that_it_always_gave() -> None:
    found = golden_ops.found_digests()
    assert found == golden_ops.EXPECTED
