"""Claims about crop boxes: torchvision's law, inside every image, the same bits everywhere."""

import hashlib
import math
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from kdcache.recipe.draws import uniforms
from kdcache.recipe.geometry import NUM_TRIES, crop_boxes, ratio_table
from kdcache.recipe.parts import CentreCrop, Crop, FullCrop, InceptionCrop, MildCrop

NUM_DRAWS = 20_000
LEAST_P = 0.001
RATIO = (3 / 4, 4 / 3)
ALMOST_ONE = 1 - 2.0**-53

sides = st.integers(1, 12) | st.integers(1, 100_000)
numbers = st.sampled_from((0.0, 0.5, ALMOST_ONE)) | st.floats(0, ALMOST_ONE)
areas = st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(lambda pair: tuple(sorted(pair)))
ratios = st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(lambda pair: tuple(sorted(pair)))
inception = st.builds(InceptionCrop, law=st.just("inception"), area=areas, ratio=ratios)
default = InceptionCrop(law="inception")

Boxes = NDArray[np.int64]


def boxes_of(
    crop: Crop,
    sizes_N2: NDArray[np.int64],
    *,
    size: int,
    tries_NT2: NDArray[np.float64],
    position_N2: NDArray[np.float64],
    num_first: int = 4,
) -> Boxes:
    """Return the boxes, given all tries; those after the first few only when asked for."""
    return crop_boxes(
        crop,
        sizes_N2,
        size=size,
        position_N2=position_N2,
        tries_NT2=tries_NT2[:, :num_first],
        later=lambda rows: tries_NT2[rows, num_first:],
    )


def tries_and_position(uids: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
    drawn = uniforms(0, uids, view=0, count=2 * NUM_TRIES + 2)
    return drawn[:, 2:].reshape(len(uids), NUM_TRIES, 2), drawn[:, :2]


def our_boxes(size: tuple[int, int], *, area: tuple[float, float]) -> Boxes:
    tries, position = tries_and_position(np.arange(NUM_DRAWS, dtype=np.uint64))
    crop = InceptionCrop(law="inception", area=area, ratio=RATIO)
    sizes = np.tile(np.array([size], np.int64), (NUM_DRAWS, 1))
    return boxes_of(crop, sizes, size=224, tries_NT2=tries, position_N2=position)


def torchvision_boxes(
    size: tuple[int, int],
    *,
    area: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
    count: int = NUM_DRAWS,
) -> Boxes:
    image = torch.empty(1).expand(1, size[1], size[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(image, list(area), list(ratio)) for _ in range(count)]
    return np.array(drawn)[:, [1, 0, 3, 2]]


def agreement(a: Boxes, b: Boxes) -> dict[str, float]:
    """Return the p value of a two-sample KS test on each measure of the boxes."""
    pairs = {
        "area": (a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]),
        "ratio": (a[:, 2] / a[:, 3], b[:, 2] / b[:, 3]),
        "left": (a[:, 0], b[:, 0]),
        "top": (a[:, 1], b[:, 1]),
    }
    return {name: float(stats.ks_2samp(*pair).pvalue) for name, pair in pairs.items()}


@pytest.mark.parametrize(
    ("size", "area"),
    [
        ((500, 375), (0.05, 1.0)),
        ((375, 500), (0.08, 1.0)),
        ((32, 32), (0.35, 1.0)),
        ((9, 7), (0.05, 1.0)),
        ((640, 128), (0.05, 1.0)),  # a sixth falls back to the central box
        ((60, 400), (0.05, 1.0)),  # a third does
    ],
)
def test_boxes_are_distributed_as_torchvisions(
    size: tuple[int, int], area: tuple[float, float]
) -> None:
    p = agreement(our_boxes(size, area=area), torchvision_boxes(size, area=area))
    assert min(p.values()) > LEAST_P, p


def test_the_distribution_test_sees_another_law() -> None:
    ours = our_boxes((500, 375), area=(0.05, 1.0))
    other_area = agreement(ours, our_boxes((500, 375), area=(0.08, 1.0)))
    assert other_area["area"] < LEAST_P
    transposed = agreement(ours, our_boxes((375, 500), area=(0.05, 1.0)))
    assert transposed["left"] < LEAST_P
    assert transposed["top"] < LEAST_P
    taller = ours[:, [0, 1, 3, 2]]
    taller[:, 3] += 4
    assert agreement(ours, taller)["ratio"] < LEAST_P


@settings(deadline=None, max_examples=60)
@given(
    short=st.integers(1, 60),
    long=st.integers(1_000, 100_000),
    wide=st.booleans(),
    ratio=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
)
@example(short=3, long=1_000, wide=True, ratio=(0.5, 1.5))  # 4.5 rounds to 4
@example(short=5, long=1_000, wide=False, ratio=(0.4, 1.5))  # 12.5 rounds to 12
def test_when_no_try_fits_the_box_is_torchvisions_central_one(
    short: int, long: int, wide: bool, ratio: tuple[float, float]
) -> None:
    size = (long, short) if wide else (short, long)
    # Half of the area fits only where the long side is below seven short ones.
    theirs = torchvision_boxes(size, area=(0.5, 1.0), ratio=ratio, count=1)
    crop = InceptionCrop(law="inception", area=(0.5, 1.0), ratio=ratio)
    tries, position = tries_and_position(np.array([1], np.uint64))
    ours = boxes_of(crop, np.array([size]), size=8, tries_NT2=tries, position_N2=position)
    assert ours.tolist() == theirs.tolist()


@settings(deadline=None, max_examples=300)
@given(
    crop=inception | st.just(FullCrop(law="full")),
    size=st.tuples(sides, sides),
    tries=st.lists(st.tuples(numbers, numbers), min_size=NUM_TRIES, max_size=NUM_TRIES),
    position=st.tuples(numbers, numbers),
)
@example(crop=default, size=(1, 1), tries=[(0.0, 0.0)] * 10, position=(ALMOST_ONE, ALMOST_ONE))
def test_boxes_lie_inside_any_image(
    crop: InceptionCrop | FullCrop,
    size: tuple[int, int],
    tries: list[tuple[float, float]],
    position: tuple[float, float],
) -> None:
    box = boxes_of(
        crop,
        np.array([size]),
        size=224,
        tries_NT2=np.array([tries]),
        position_N2=np.array([position]),
    )
    assert box.shape == (1, 4)
    assert box.dtype == np.int64
    left, top, wide, tall = box[0].tolist()
    assert wide >= 1
    assert tall >= 1
    assert 0 <= left <= size[0] - wide
    assert 0 <= top <= size[1] - tall
    if isinstance(crop, FullCrop):
        assert (wide, tall) == size


@settings(deadline=None, max_examples=300)
@given(
    size=st.tuples(sides, sides),
    view=st.integers(1, 4096),
    more=st.integers(0, 4096),
    position=st.tuples(numbers, numbers),
    law=st.sampled_from((MildCrop, CentreCrop)),
)
def test_square_boxes_lie_inside_any_image_and_centre_is_central(
    size: tuple[int, int],
    view: int,
    more: int,
    position: tuple[float, float],
    law: type[MildCrop | CentreCrop],
) -> None:
    name = "mild" if law is MildCrop else "centre"
    crop = law.model_validate({"law": name, "resize": view + more})
    box = boxes_of(
        crop,
        np.array([size]),
        size=view,
        tries_NT2=np.zeros((1, NUM_TRIES, 2)),
        position_N2=np.array([position]),
    )
    left, top, wide, tall = box[0].tolist()
    exact = min(size) * view / (view + more)
    assert wide == tall
    assert wide == 1 or abs(wide - exact) <= 0.5
    assert 0 <= left <= size[0] - wide
    assert 0 <= top <= size[1] - tall
    if law is CentreCrop:
        assert size[0] - wide - 2 * left in (0, 1)
        assert size[1] - tall - 2 * top in (0, 1)


def test_mild_positions_are_uniform_to_both_edges() -> None:
    crop = MildCrop(law="mild", resize=10)
    count = 11 * 500
    steps = np.tile(((np.arange(count) + 0.5) / count)[:, None], 2)
    sizes = np.tile(np.array([[18, 10]]), (count, 1))
    boxes = boxes_of(crop, sizes, size=8, tries_NT2=np.zeros((count, 10, 2)), position_N2=steps)
    assert np.bincount(boxes[:, 0]).tolist() == [500] * 11  # 18 - 8 and the zero
    assert set(boxes[:, 1].tolist()) == {0, 1, 2}


@settings(deadline=None)
@given(good=st.integers(0, NUM_TRIES - 1), data=st.data())
def test_the_first_try_that_fits_is_taken(good: int, data: st.DataObject) -> None:
    """On 100 x 50, area 0.9 at ratio 1 does not fit and area 0.1 does."""
    crop = InceptionCrop(law="inception", area=(0.1, 0.9), ratio=(1.0, 1.0))
    tries = np.full((1, NUM_TRIES, 2), ALMOST_ONE)
    tries[0, good, 0] = 0.0
    tries[0, good + 1 :, 0] = [
        data.draw(st.sampled_from((0.01, ALMOST_ONE))) for _ in range(NUM_TRIES - good - 1)
    ]
    box = boxes_of(
        crop, np.array([[100, 50]]), size=8, tries_NT2=tries, position_N2=np.zeros((1, 2))
    )
    assert box.tolist() == [[0, 0, 22, 22]]  # the root of 500 is 22.4


@settings(deadline=None, max_examples=200)
@given(
    crop=inception,
    rows=st.lists(
        st.tuples(
            st.tuples(sides, sides),
            st.lists(st.tuples(numbers, numbers), min_size=NUM_TRIES, max_size=NUM_TRIES),
        ),
        min_size=1,
        max_size=6,
    ),
    num_first=st.integers(2, NUM_TRIES - 1),
)
def test_later_tries_are_asked_for_where_none_of_the_first_fits_and_nowhere_else(
    crop: InceptionCrop,
    rows: list[tuple[tuple[int, int], list[tuple[float, float]]]],
    num_first: int,
) -> None:
    sizes, tries = np.array([size for size, _ in rows]), np.array([drawn for _, drawn in rows])
    asked: list[int] = []

    def later(needed: NDArray[np.intp]) -> NDArray[np.float64]:
        asked.extend(needed.tolist())
        return np.asarray(tries[needed, num_first:])

    boxes = crop_boxes(
        crop,
        sizes,
        size=8,
        position_N2=np.zeros((len(rows), 2)),
        tries_NT2=tries[:, :num_first],
        later=later,
    )
    fits = [_fits(crop, size, drawn) for size, drawn in rows]
    assert asked == [row for row, fit in enumerate(fits) if not any(fit[:num_first])]
    for (size, drawn), fit, box in zip(rows, fits, boxes.tolist(), strict=True):
        if any(fit):
            assert box == [0, 0, *_sides(crop, size, *drawn[fit.index(True)])]


def _sides(crop: InceptionCrop, size: tuple[int, int], u: float, v: float) -> tuple[int, int]:
    """Return the width and height of a try, one number after the other."""
    area = size[0] * size[1] * (crop.area[0] + (crop.area[1] - crop.area[0]) * u)
    ratio = float(ratio_table(*crop.ratio)[int(v * 4096)])
    return round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))


def _fits(
    crop: InceptionCrop, size: tuple[int, int], tries: list[tuple[float, float]]
) -> list[bool]:
    sides_of_tries = [_sides(crop, size, u, v) for u, v in tries]
    return [0 < w <= size[0] and 0 < h <= size[1] for w, h in sides_of_tries]


@pytest.mark.parametrize("bounds", [RATIO, (0.01, 100.0), (0.5, 1.0), (1.0, 1.0)])
def test_ratios_are_evenly_spaced_in_the_exact_logarithm(bounds: tuple[float, float]) -> None:
    exact = Context(prec=30)
    low, high = (exact.ln(Decimal(bound)) for bound in bounds)
    table = ratio_table(*bounds)
    assert len(table) == 4096
    assert table[0] == bounds[0]
    for i, ratio in enumerate(table.tolist()):
        expected = low + (high - low) * i / 4096
        assert abs(exact.ln(Decimal(ratio)) - expected) < 1e-12


@settings(deadline=None)
@given(bounds=ratios)
def test_ratios_rise_and_stay_within_their_bounds(bounds: tuple[float, float]) -> None:
    low, high = bounds
    table = ratio_table(low, high)
    slack = 4e-15 * high  # twelve products, each half a unit off
    assert (np.diff(table) >= -slack).all()
    assert table[0] == low
    assert table[-1] <= high + slack
    if high > 1.001 * low:
        assert (np.diff(table) > 0).all()
        assert table[-1] < high


def test_the_default_ratios_never_change_by_a_bit() -> None:
    table = ratio_table(*RATIO).astype("<f8")
    assert hashlib.sha256(table.tobytes()).hexdigest() == (
        "9802276ca9073adf8572ae4c31d00ef4ca2b8a9391fe792c23bb0890802ccfc5"
    )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_box_does_not_depend_on_the_other_rows(count: int) -> None:
    tries, position = tries_and_position(np.arange(40, dtype=np.uint64))
    sizes = np.array([[3 + 17 * i % 90, 2 + 31 * i % 70] for i in range(40)])
    whole = boxes_of(default, sizes, size=8, tries_NT2=tries, position_N2=position)
    for start in range(0, 40, count):
        part = slice(start, start + count)
        boxes = boxes_of(
            default, sizes[part], size=8, tries_NT2=tries[part], position_N2=position[part]
        )
        assert boxes.tolist() == whole[part].tolist()
