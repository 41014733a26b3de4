"""Claims about rendering: a view is fixed by its name, whoever renders it and with what else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from kdcache.errors import DataError, UsageError
from kdcache.pixels.decode import (
    SCALES,
    Decoded,
    Header,
    Window,
    decode_image,
    decode_pillow,
    read_header,
)
from kdcache.pixels.render import RenderedBlock, jpeg_scale, render_block, scaled_window
from kdcache.pixels.resize import resize_pillow, resize_torch
from kdcache.pixels.witness import witness
from kdcache.recipe.parts import Decode
from kdcache.recipe.plan import FULL_WEIGHT, plan_block
from kdcache.recipe.schema import Recipe, parse_recipe
from tests import photos
from tests.photos import Pixels, encoded, pattern_png, smooth_photo

MIX = {"law": "mixup"}
MAX = 2**64 - 1


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "seed": 11,
        "size": 9,
        "crop": {"law": "inception"},
        "flip": {"horizontal": 0.5},
        "mix": MIX,
        **changes,
    }
    return parse_recipe({k: v for k, v in fields.items() if v is not None}, source="test")


def uids(count: int) -> NDArray[np.uint64]:
    return np.array([MAX - 7 * row for row in range(count)], np.uint64)


def render(
    chosen: Recipe, images: list[bytes | None], views: list[int] | None = None
) -> RenderedBlock:
    return render_block(chosen, images, uids_N=uids(len(images)), views=views or [0, 1, 2])


def some_images() -> list[bytes]:
    """Return six images of all kinds and sizes; the first is large enough for every scale."""
    return [
        encoded(smooth_photo(200, 170, seed=1), quality=85),
        pattern_png(61, 47),
        encoded(smooth_photo(90, 33, seed=2), subsampling=0, progressive=True),
        encoded(smooth_photo(1, 1, seed=3)),
        encoded(smooth_photo(40, 50, seed=4).convert("CMYK")),
        encoded(smooth_photo(33, 77, seed=5), "WEBP"),
    ]


IMAGES = some_images()

# --- the backends, box by box --------------------------------------------------------------


def conformance_files() -> dict[str, bytes]:
    image, odd = smooth_photo(161, 130, falloff=1.1), smooth_photo(17, 13, falloff=1.0)
    files = {
        f"{name}{suffix}": encoded(image, quality=88, subsampling=subsampling, **options)
        for name, subsampling in (("444", 0), ("422", 1), ("420", 2))
        for suffix, options in (
            ("", {}),
            (" progressive", {"progressive": True}),
            (" restart", {"restart_marker_rows": 1}),
        )
    }
    return files | {
        "grey": encoded(image.convert("L"), quality=88),
        "grey progressive": encoded(image.convert("L"), progressive=True),
        "rgb": encoded(image, keep_rgb=True),
        "coarse": encoded(image, quality=5),
        "sharp": encoded(smooth_photo(163, 131, falloff=0.3), quality=100),
        "odd": encoded(odd, quality=90),
        "one pixel": encoded(odd.resize((1, 1))),
        "one pixel wide": encoded(odd.resize((1, 130))),
        "one pixel high": encoded(odd.resize((161, 1))),
        "real": photos.real_photos()[0],
    }


def cut(decoded: Decoded, window: Window) -> Pixels:
    """Return a copy of the pixels of a window: the next image is decoded to the same memory."""
    pixels, x, y = decoded
    left, top, right, bottom = window
    return pixels[top - y : bottom - y, left - x : right - x].copy()


SIZES = (1, 2, 3, 5, 8, 13, 32)
BOXES_A_SIZE = 20


@pytest.mark.parametrize("kind", conformance_files())
def test_backends_agree_on_random_boxes(kind: str) -> None:
    """20 kinds x 7 sizes x 20 boxes = 2,800 boxes, at the scales that they lead to."""
    data = conformance_files()[kind]
    header = read_header(data, Decode())
    assert header.clean
    rng = np.random.default_rng(0)
    scales = set()
    for size in SIZES:
        least = float(rng.choice((1.0, 1.25, 2.0)))
        corners = rng.random((BOXES_A_SIZE, 2, 2)) ** 0.5
        spans = np.array([header.width, header.height])
        wide_tall = np.maximum((corners[:, 0] * spans).astype(np.int64), 1)
        left_top = (rng.random((BOXES_A_SIZE, 2)) * (spans - wide_tall + 1)).astype(np.int64)
        boxes = np.concatenate((left_top, wide_tall), axis=1)
        for box in boxes.tolist():
            scale = jpeg_scale(*box[2:], least=least * size)
            window = scaled_window(box, scale=scale, size=(header.width, header.height))
            by_fast = cut(decode_image(data, header, scale=scale, window=window), window)
            by_reference = cut(Decoded(decode_pillow(data, header, scale=scale), 0, 0), window)
            assert np.array_equal(by_fast, by_reference)
            assert np.array_equal(resize_torch(by_fast, size), resize_torch(by_reference, size))
            scales.add(scale)
    assert min(header.width, header.height) < 100 or scales == set(SCALES)


# --- boxes and scales ----------------------------------------------------------------------


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    sides = st.integers(1, 40) | st.integers(1, 3000)
    width, height = draw(sides), draw(sides)
    wide, tall = draw(st.integers(1, width)), draw(st.integers(1, height))
    left, top = draw(st.integers(0, width - wide)), draw(st.integers(0, height - tall))
    return (width, height), (left, top, wide, tall)


@settings(deadline=None, max_examples=500)
@given(drawn=boxes_in_images(), size=st.integers(1, 300), guard=st.floats(1, 3))
@example(drawn=((15, 15), (5, 5, 10, 10)), size=1, guard=1.25)  # 5 / 8 is nearest to 1, the edge
def test_the_box_is_snapped_to_the_nearest_multiples_within_the_image(
    drawn: tuple[tuple[int, int], tuple[int, int, int, int]], size: int, guard: float
) -> None:
    (width, height), box = drawn
    scale = jpeg_scale(box[2], box[3], least=guard * size)
    window = scaled_window(box, scale=scale, size=(width, height))
    assert window.right > window.left
    assert window.bottom > window.top
    low = np.array((window.left, window.top)) * scale
    high = np.array((window.right, window.bottom)) * scale
    if scale == 1:
        assert (*low, *(high - low)) == box
    for axis, whole in enumerate((width, height)):
        assert high[axis] <= whole
        start, end = box[axis], box[axis] + box[axis + 2]
        assert 2 * abs(low[axis] - start) <= scale or start > whole - scale - whole % scale
        assert 2 * abs(high[axis] - end) <= scale or end > whole - whole % scale
        assert high[axis] - low[axis] > box[axis + 2] - 2 * scale


@settings(deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000), least=st.floats(1, 5000))
def test_the_scale_is_the_largest_that_keeps_enough_pixels(
    width: int, height: int, least: float
) -> None:
    scale = jpeg_scale(width, height, least=least)
    assert scale == 1 or min(width, height) >= scale * least
    assert scale == 8 or min(width, height) < 2 * scale * least


def psnr(a: Pixels, b: Pixels) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def scaled_against_full(data: bytes, *, size: int, num_boxes: int) -> list[float]:
    """Return the PSNR of scaled decodes against full ones, of random boxes with guard 1.25."""
    header = read_header(data, Decode())
    full = decode_image(data, header).pixels
    whole, least = (header.width, header.height), 1.25 * size
    sources = {scale: decode_image(data, header, scale=scale) for scale in SCALES}
    rng, found = np.random.default_rng(size), []
    for _ in range(num_boxes):
        wide, tall = (int(rng.integers(2 * least, side + 1)) for side in whole)
        left, top = int(rng.integers(whole[0] - wide + 1)), int(rng.integers(whole[1] - tall + 1))
        n = jpeg_scale(wide, tall, least=least)
        assert n > 1
        window = scaled_window((left, top, wide, tall), scale=n, size=whole)
        part = cut(sources[n], window)
        x, y = (left + n // 2) // n * n, (top + n // 2) // n * n
        snapped = full[y : y + part.shape[0] * n, x : x + part.shape[1] * n]
        found.append(psnr(resize_torch(part, size), resize_torch(snapped, size)))
    return found


@pytest.mark.parametrize("size", [16, 64, 128])
def test_scaled_decoding_of_smooth_photos_is_within_42_db_of_full(size: int) -> None:
    for seed in range(3):
        data = encoded(smooth_photo(500, 375, seed=seed), quality=90)
        assert min(scaled_against_full(data, size=size, num_boxes=60)) > 42


@pytest.mark.parametrize("size", [32, 64, 128])
def test_scaled_decoding_of_sharp_photos_is_within_42_db_on_the_median(size: int) -> None:
    """The worst of the boxes, close to the guard on the sharpest photograph, has 36.8 dB."""
    found = [scaled_against_full(data, size=size, num_boxes=80) for data in photos.real_photos()]
    assert np.median(found) > 42
    assert np.min(found) > 36


# --- resizing ------------------------------------------------------------------------------


def triangle(inside: int, outside: int) -> NDArray[np.float64]:
    """Return the matrix (outside, inside) of the antialiased bilinear filter."""
    step = inside / outside
    centre = (np.arange(outside)[:, None] + 0.5) * step
    distance = np.abs(np.arange(inside)[None] + 0.5 - centre) / max(step, 1.0)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    out=st.integers(1, 64),
    seed=st.integers(0, 2**32 - 1),
    extreme=st.booleans(),
)
def test_both_resizes_are_the_bilinear_filter_to_a_level(
    size: tuple[int, int], out: int, seed: int, extreme: bool
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    if extreme:
        pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
    by_torch, by_pillow = resize_torch(pixels, out), resize_pillow(pixels, out)
    assert by_torch.shape == by_pillow.shape == (out, out, 3)
    assert by_torch.dtype == by_pillow.dtype == np.uint8
    exact = np.einsum(
        "yi,xj,ijc->yxc", triangle(size[0], out), triangle(size[1], out), pixels, optimize=True
    )
    for resized in (by_torch, by_pillow):
        # Two roundings by half a level each, and those of the weights: 1.002 was measured.
        assert np.abs(resized - exact).max() < 1.01


def test_the_resizes_differ_by_one_level_and_hardly_ever_by_two() -> None:
    """Two in 8 of 75 million values, where the exact value is whole and both round away."""
    rng, differences = np.random.default_rng(0), np.zeros(256, np.int64)
    for seed in range(300):
        height, width, out = rng.integers((1, 1, 32), (91, 91, 65)).tolist()
        pixels = np.array(smooth_photo(width, height, seed=seed, falloff=1.0))
        levels = np.abs(resize_torch(pixels, out).astype(int) - resize_pillow(pixels, out))
        differences += np.bincount(levels.ravel(), minlength=256)
    assert differences.sum() > 2_000_000
    assert differences[1] < 0.01 * differences.sum()
    assert differences[2] < 1e-6 * differences.sum()
    assert not differences[3:].any()
    known = photos.pattern(52, 32, kind=2)
    assert np.abs(resize_torch(known, 31).astype(int) - resize_pillow(known, 31)).max() == 2


@settings(deadline=None, max_examples=60)
@given(drawn=boxes_in_images(), out=st.integers(1, 40))
def test_a_crop_resizes_as_its_copy_does(
    drawn: tuple[tuple[int, int], tuple[int, int, int, int]], out: int
) -> None:
    (width, height), (left, top, wide, tall) = drawn
    width, height = min(width, 200), min(height, 200)
    image = photos.pattern(width, height, kind=2)
    part = image[top % height :, left % width :][:tall, :wide]
    for resize in (resize_torch, resize_pillow):
        assert np.array_equal(resize(part, out), resize(part.copy(), out))


@pytest.mark.parametrize("resize", [resize_torch, resize_pillow])
@given(level=st.integers(0, 255), side=st.integers(1, 30), out=st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_a_flat_image_stays_flat_and_the_same_size_changes_nothing(
    resize: Any, level: int, side: int, out: int
) -> None:
    assert (resize(np.full((side, 7, 3), level, np.uint8), out) == level).all()
    image = photos.pattern(side, side, kind=2)
    assert np.array_equal(resize(image, side), image)


# --- blocks and views ----------------------------------------------------------------------

laws = st.sampled_from(
    (
        {"law": "inception"},
        {"law": "mild", "resize": 12},
        {"law": "centre", "resize": 10},
        {"law": "full"},
    )
)
recipes = st.builds(
    recipe,
    crop=laws,
    size=st.integers(1, 10),
    mix=st.sampled_from((None, MIX, {"law": "cutmix"}, {"law": "switch"})),
    flip=st.sampled_from((None, {"horizontal": 0.5}, {"horizontal": 0.5, "vertical": 0.5})),
    resize=st.sampled_from(("torch", "pillow")),
    seed=st.integers(0, 2**63 - 1),
)
views = st.lists(st.integers(0, 5) | st.sampled_from((2**63, MAX)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(chosen=recipes, asked=views)
def test_views_rendered_together_are_those_rendered_alone(chosen: Recipe, asked: list[int]) -> None:
    together = render(chosen, list(IMAGES), asked)
    assert together.pixels_GNHW3.shape == (len(asked), 6, chosen.size, chosen.size, 3)
    assert together.usable_N.all()
    assert together.problems == {}
    for place, view in enumerate(asked):
        alone = render(chosen, list(IMAGES), [view])
        assert np.array_equal(together.pixels_GNHW3[place], alone.pixels_GNHW3[0])
        assert together.witnesses()[place] == alone.witnesses()[0] == witness(alone.pixels_GNHW3[0])


@settings(deadline=None, max_examples=30)
@given(chosen=recipes, view=st.integers(0, MAX), rows=st.permutations(range(6)))
def test_without_mixing_a_row_does_not_depend_on_its_block(
    chosen: Recipe, view: int, rows: list[int]
) -> None:
    alone = chosen.model_copy(update={"mix": None})
    names = uids(6)
    whole = render_block(alone, IMAGES, uids_N=names, views=[view]).pixels_GNHW3[0]
    picked = rows[:3]
    part = render_block(
        alone, [IMAGES[row] for row in picked], uids_N=names[picked], views=[view]
    ).pixels_GNHW3[0]
    assert np.array_equal(part, whole[picked])


@settings(deadline=None, max_examples=30)
@given(chosen=recipes, view=st.integers(0, MAX))
def test_a_view_is_its_plan_carried_out_step_by_step(chosen: Recipe, view: int) -> None:
    """The reference: decode by Pillow alone, crop, resize, flip, then mix, each in the open."""
    images = [pattern_png(61, 47), pattern_png(30, 80, kind=1), pattern_png(5, 5, kind=2)]
    sources = [photos.pattern(61, 47), photos.pattern(30, 80, kind=1), photos.pattern(5, 5, kind=2)]
    sizes = np.array([(61, 47), (30, 80), (5, 5)])
    plan = plan_block(chosen, uids(3), view=view, sizes_N2=sizes)
    resize = {"torch": resize_torch, "pillow": resize_pillow}[chosen.resize]
    parts = []
    for source, (left, top, wide, tall), (mirrored, upside_down) in zip(
        sources, plan.boxes_N4.tolist(), plan.flips_N2, strict=True
    ):
        part = resize(source[top : top + tall, left : left + wide], chosen.size)
        part = part[:, ::-1] if mirrored else part
        parts.append(part[::-1] if upside_down else part)
    own = np.stack(parts).astype(np.int64)
    weights = plan.weights_N.astype(np.int64)[:, None, None, None]
    expected = (weights * own + (256 - weights) * own[plan.partners_N] + 128) >> 8
    for row, (left, top, wide, tall) in enumerate(plan.cuts_N4.tolist()):
        cut_out = np.s_[top : top + tall, left : left + wide]
        expected[row][cut_out] = own[plan.partners_N[row]][cut_out]
    found = render(chosen, list(images), [view])
    assert np.array_equal(found.pixels_GNHW3[0], expected)
    assert np.array_equal(found.params[0].boxes_N4, plan.boxes_N4)
    assert np.array_equal(found.params[0].weights_N, plan.weights_N)
    assert np.array_equal(found.params[0].cuts_N4, plan.cuts_N4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_applied_orientation_renders_as_the_image_turned_by_pillow(
    orientation: int, kind: str
) -> None:
    image = smooth_photo(50, 35)
    data = encoded(image, kind, exif=photos.exif(orientation))
    pixels = Image.fromarray(decode_image(data, read_header(data, Decode())).pixels)
    pixels.getexif()[photos.ORIENTATION] = orientation
    turned = encoded(ImageOps.exif_transpose(pixels), "PNG")
    # A guard of 16 keeps upright JPEGs, too, at full scale as PNG is.
    applied = recipe(decode={"guard": 16.0, "exif": "apply"})
    ignored = recipe(decode={"guard": 16.0})
    found = render(applied, [data]).pixels_GNHW3
    assert np.array_equal(found, render(ignored, [turned]).pixels_GNHW3)
    upright = render(ignored, [data]).pixels_GNHW3
    assert np.array_equal(found, upright) == (orientation == 1)


# --- rows that cannot be used --------------------------------------------------------------

BROKEN = (
    b"",
    b"not an image\n",
    photos.png(60_000, 60_000),  # refused by its header
    encoded(smooth_photo(200, 170, seed=1), quality=85)[:2000],  # only decoding finds out
    pattern_png(61, 47)[:100],
)


@settings(deadline=None, max_examples=60)
@given(
    chosen=recipes,
    bad=st.dictionaries(st.integers(0, 5), st.sampled_from(BROKEN), min_size=1),
    view=st.integers(0, 1000),
)
def test_bad_rows_are_zero_and_their_neighbours_unmixed_whether_known_or_found(
    chosen: Recipe, bad: dict[int, bytes], view: int
) -> None:
    found = render(chosen, [bad.get(row, data) for row, data in enumerate(IMAGES)], [view])
    known = render(
        chosen, [None if row in bad else data for row, data in enumerate(IMAGES)], [view]
    )
    assert np.array_equal(found.pixels_GNHW3, known.pixels_GNHW3)
    assert found.witnesses() == known.witnesses()
    assert np.array_equal(found.params[0].weights_N, known.params[0].weights_N)
    assert np.array_equal(found.params[0].cuts_N4, known.params[0].cuts_N4)
    assert np.array_equal(found.params[0].partners_N, known.params[0].partners_N)
    assert (
        found.usable_N.tolist() == known.usable_N.tolist() == [row not in bad for row in range(6)]
    )
    assert set(found.problems) == set(bad)
    assert all(found.problems.values())
    assert known.problems == {}

    whole = render(chosen, list(IMAGES), [view])
    unmixed = render(chosen.model_copy(update={"mix": None}), list(IMAGES), [view])
    for row in range(6):
        pixels = found.pixels_GNHW3[0, row]
        if row in bad:
            assert not pixels.any()
            assert found.params[0].weights_N[row] == FULL_WEIGHT
            assert found.params[0].shares(chosen.size)[row] == 1
        elif whole.params[0].partners_N[row] in bad:
            assert np.array_equal(pixels, unmixed.pixels_GNHW3[0, row])
            assert found.params[0].weights_N[row] == FULL_WEIGHT
            assert found.params[0].shares(chosen.size)[row] == 1
        else:
            assert np.array_equal(pixels, whole.pixels_GNHW3[0, row])
            assert found.params[0].weights_N[row] == whole.params[0].weights_N[row]
            assert np.array_equal(found.params[0].cuts_N4[row], whole.params[0].cuts_N4[row])


def test_a_bad_row_is_bad_in_every_view_and_named_with_its_reason() -> None:
    whole = encoded(smooth_photo(200, 170, seed=1), quality=85)
    images: list[bytes | None] = [whole[: len(whole) // 2], IMAGES[1]]
    block = render(recipe(size=4), images, list(range(6)))
    assert not block.pixels_GNHW3[:, 0].any()
    assert block.usable_N.tolist() == [False, True]
    assert "truncated" in block.problems[0]


def test_pixels_of_earlier_views_are_taken_back_when_a_later_view_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails_whole(data: bytes, header: Header, *, scale: int, window: Window | None) -> Decoded:
        if scale == 1:
            raise DataError("cannot be decoded: on purpose")
        return decode_image(data, header, scale=scale, window=window)

    chosen = recipe(size=40, seed=1)
    whole = render(chosen, IMAGES[:1], list(range(8)))
    scales = [jpeg_scale(*params.boxes_N4[0, 2:].tolist(), least=50) for params in whole.params]
    assert scales[0] > 1
    assert 1 in scales
    monkeypatch.setattr("kdcache.pixels.render.decode_image", fails_whole)
    block = render(chosen, IMAGES[:1], list(range(8)))
    assert block.problems == {0: "cannot be decoded: on purpose"}
    assert not block.pixels_GNHW3.any()
    assert not block.usable_N.any()


def test_a_block_of_bad_rows_only_is_all_zero() -> None:
    block = render(recipe(), [None, b"", None])
    assert not block.pixels_GNHW3.any()
    assert not block.usable_N.any()
    assert set(block.problems) == {1}


def test_a_setting_that_invents_pixels_stops_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        render(recipe(), list(IMAGES))
