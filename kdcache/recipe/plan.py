"""A block of samples in one view to its parameters: boxes, flips, mixing partners and weights.

Invariant: a row's box, flip and weight depend on (seed, uid, view) alone; its partner on
(seed, uids of its block, view). Words of a sample, fixed for ever; new draws take words after 23:

    0, 1   area and ratio of the first try     4   horizontal flip
    2, 3   left and top                        5   mixing weight
    6..23  area and ratio of tries 2 to 10
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.draws import Stream, permutation, uniforms
from kdcache.recipe.geometry import NUM_TRIES, crop_boxes
from kdcache.recipe.schema import Recipe

NUM_WORDS = 24
FULL_WEIGHT = 256


@dataclass(frozen=True, eq=False)
class ViewParams:
    """Parameters of a block of N rows in one view.

    boxes_N4: int64 left, top, width, height in pixels of the decoded image.
    flips_N: bool, mirrored left to right.
    partners_N: intp, row of the block that is blended in.
    weights_N: uint16, share of the row itself in 256ths; 256 blends nothing.
    """

    boxes_N4: NDArray[np.int64]
    flips_N: NDArray[np.bool_]
    partners_N: NDArray[np.intp]
    weights_N: NDArray[np.uint16]


def block_slices(num_rows: int, block: int) -> list[slice]:
    """Return the rows of each block of a tar; the last block may be shorter."""
    return [slice(start, min(start + block, num_rows)) for start in range(0, num_rows, block)]


def mixing_partners(seed: int, uids_N: NDArray[np.uint64], *, view: int) -> NDArray[np.intp]:
    """Return each row's partner: the next row along one random cycle through the block.

    A block of one row is its own partner. The block is named by the uid of its first row.
    """
    cycle = permutation(seed, int(uids_N[0]), view=view, count=len(uids_N), stream=Stream.BLOCK)
    partners = np.empty(len(uids_N), np.intp)
    partners[cycle] = np.roll(cycle, -1)
    return partners


def plan_block(
    recipe: Recipe,
    uids_N: NDArray[np.uint64],
    *,
    view: int,
    sizes_N2: NDArray[np.int64],
) -> ViewParams:
    """Return the parameters of a block of N rows in one view.

    uids_N: uids of the block's rows in order. sizes_N2: width and height of each image, at least 1.
    """
    count = len(uids_N)
    numbers = uniforms(recipe.seed, uids_N, view=view, count=NUM_WORDS)
    tries = np.concatenate((numbers[:, :2], numbers[:, 6:]), axis=1).reshape(count, NUM_TRIES, 2)
    boxes = crop_boxes(
        recipe.crop, sizes_N2, size=recipe.size, tries_NT2=tries, position_N2=numbers[:, 2:4]
    )
    flip = 0.0 if recipe.flip is None else recipe.flip.horizontal
    partners = np.arange(count)
    weights = np.full(count, FULL_WEIGHT, np.uint16)
    if recipe.mix is not None and count > 1:
        partners = mixing_partners(recipe.seed, uids_N, view=view)
        weights = (numbers[:, 5] * (FULL_WEIGHT + 1)).astype(np.uint16)
    return ViewParams(boxes, numbers[:, 4] < flip, partners, weights)
