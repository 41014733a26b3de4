"""Claims about mixing: one integer formula, exact at both ends, and rectangles to the pixel."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.pixels.mix import mix
from kdcache.recipe.plan import ViewParams

rows = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        st.permutations(range(count)),
        st.lists(st.integers(0, 256), min_size=count, max_size=count),
    )
)


def params_of(partners: list[int], weights: list[int], cuts: list[list[int]]) -> ViewParams:
    count = len(partners)
    return ViewParams(
        boxes_N4=np.ones((count, 4), np.int64),
        flips_N2=np.zeros((count, 2), bool),
        steps_NK6=np.zeros((count, 0, 6), np.int64),
        partners_N=np.array(partners, np.intp),
        weights_N=np.array(weights, np.uint16),
        cuts_N4=np.array(cuts, np.int64),
    )


def mixed(
    pixels: NDArray[np.uint8],
    partners: list[int],
    weights: list[int],
    cuts: list[list[int]] | None = None,
) -> NDArray[np.uint8]:
    """Return the rows mixed; the memory they are written to holds other pixels before."""
    out = ~pixels
    none = [[0, 0, 0, 0]] * len(partners)
    mix(pixels, params_of(partners, weights, cuts or none), out_NHW3=out)
    return out


@settings(deadline=None, max_examples=200)
@given(drawn=rows, seed=st.integers(0, 2**32 - 1), extreme=st.booleans())
@example(drawn=([1, 0], [1, 255]), seed=0, extreme=True)
def test_blending_is_the_rounded_weighted_mean(
    drawn: tuple[list[int], list[int]], seed: int, extreme: bool
) -> None:
    partners, weights = drawn
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (len(partners), 3, 5, 3), np.uint8)
    if extreme:
        pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
    before = pixels.copy()
    found = mixed(pixels, partners, weights)
    for row, (partner, weight) in enumerate(zip(partners, weights, strict=True)):
        own, other = before[row].astype(object), before[partner].astype(object)
        assert (found[row] == (weight * own + (256 - weight) * other + 128) // 256).all()
    assert found.dtype == np.uint8
    assert (pixels == before).all()


def test_every_pair_of_levels_is_right_at_every_weight() -> None:
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.stack(np.meshgrid(levels, levels))[..., None].repeat(3, 3)
    own, other = pixels[..., 0].astype(np.int64)
    for weight in range(257):
        expected = (weight * own + (256 - weight) * other + 128) >> 8
        assert (mixed(pixels, [1, 0], [weight, 256])[0, ..., 0] == expected).all()


def test_weight_256_keeps_the_row_and_weight_0_gives_its_partner() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    found = mixed(pixels, [1, 2, 0], [256, 0, 0])
    assert (found == pixels[[0, 2, 0]]).all()


def test_partners_are_taken_before_they_are_blended_themselves() -> None:
    pixels = np.array([0, 100, 200], np.uint8)[:, None, None, None].repeat(3, 3)
    found = mixed(pixels, [1, 2, 0], [128, 128, 128])
    assert found[:, 0, 0, 0].tolist() == [50, 150, 100]


# --- rectangles --------------------------------------------------------------------------------

boxes = st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 6), st.integers(0, 4)).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), abs(b[0] - b[2]), abs(b[1] - b[3])]
)


@settings(deadline=None, max_examples=200)
@given(
    drawn=st.integers(1, 6).flatmap(
        lambda count: st.tuples(
            st.permutations(range(count)), st.lists(boxes, min_size=count, max_size=count)
        )
    ),
    seed=st.integers(0, 2**32 - 1),
)
@example(drawn=([1, 0], [[0, 0, 6, 4], [5, 3, 1, 1]]), seed=0)  # all, and the last pixel
@example(drawn=([1, 0], [[2, 1, 0, 3], [2, 1, 3, 0]]), seed=0)  # no area
def test_a_rectangle_is_the_partners_and_the_rest_ones_own(
    drawn: tuple[list[int], list[list[int]]], seed: int
) -> None:
    partners, cuts = drawn
    pixels = np.random.default_rng(seed).integers(0, 256, (len(partners), 4, 6, 3), np.uint8)
    before = pixels.copy()
    found = mixed(pixels, partners, [256] * len(partners), cuts)
    for row, (partner, (left, top, wide, tall)) in enumerate(zip(partners, cuts, strict=True)):
        for y in range(4):
            for x in range(6):
                inside = left <= x < left + wide and top <= y < top + tall
                source = partner if inside else row
                assert found[row, y, x].tolist() == before[source, y, x].tolist()
    assert (pixels == before).all()


def test_rows_may_be_blended_cut_or_neither_side_by_side() -> None:
    pixels = np.array([0, 100, 200], np.uint8)[:, None, None, None].repeat(2, 2).repeat(3, 3)
    found = mixed(pixels, [1, 2, 0], [256, 64, 256], [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]])
    assert found[:, 0, :, 0].tolist() == [[0, 0], [175, 175], [200, 0]]


def test_mixing_writes_all_of_its_memory_and_nothing_else() -> None:
    """Rows are written into the middle of larger memory, whose rims stay as they were."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    partners, weights = [1, 2, 0], [256, 100, 256]
    cuts = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 3, 2]]
    memory = np.full((5, 4, 6, 3), 7, np.uint8)
    mix(pixels, params_of(partners, weights, cuts), out_NHW3=memory[1:4])
    assert (memory[1:4] == mixed(pixels, partners, weights, cuts)).all()
    assert (memory[[0, 4]] == 7).all()
