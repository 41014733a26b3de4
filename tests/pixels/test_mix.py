"""Claims about blending: one integer formula, exact at both ends."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.pixels.mix import blend

rows = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        st.permutations(range(count)),
        st.lists(st.integers(0, 256), min_size=count, max_size=count),
    )
)


def mixed(pixels: NDArray[np.uint8], partners: list[int], weights: list[int]) -> NDArray[np.uint8]:
    return blend(
        pixels, partners_N=np.array(partners, np.intp), weights_N=np.array(weights, np.uint16)
    )


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
