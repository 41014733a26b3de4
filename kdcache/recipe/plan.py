"""A block of samples in one view to its parameters: boxes, flips, steps, mixing.

Invariant: a row's box, flips, steps and weight depend on (seed, uid, view) alone; its partner on
(seed, uids of its block, view). Words of a sample, fixed for ever; new draws take words after 88:

    0, 1   area and ratio of the first try     24       vertical flip
    2, 3   left and top                        25       law of mixing, where it switches
    4      horizontal flip                     26, 27   centre of the rectangle of cutmix
    5      mixing weight                       28..88   augment.py's
    6..23  area and ratio of tries 2 to 10

Words are drawn only where they are needed: the generator is counter-based, so that what is not
drawn changes nothing.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe.augment import NUM_WORDS, draw_steps
from kdcache.recipe.draws import Stream, permutations, uniforms
from kdcache.recipe.geometry import crop_boxes
from kdcache.recipe.parts import Cutmix, Mixup, Role, Switch
from kdcache.recipe.schema import Recipe

FULL_WEIGHT = 256
_BASE_WORDS = 16  # all that most views need: the first six tries fail once in ten thousand
_FIRST_TRIES = [0, 1, *range(6, _BASE_WORDS)]
_TRY_WORDS = 24

F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is drawn for N rows in one view, sizes of images apart.

    uids_N: uint64. numbers_NB: the first words. flips_N2: bool, left to right and top to bottom.
    steps_NK6: see recipe.ops. partners_N: intp, row of the block that is mixed in, counted from its
    first. weights_N: uint16, share of the row itself in 256ths; 256 mixes nothing.
    cuts_N4: int64, left, top, width and height of what cutmix takes from the partner.
    """

    view: int
    uids_N: U64
    numbers_NB: F64
    flips_N2: NDArray[np.bool_]
    steps_NK6: NDArray[np.int64]
    partners_N: NDArray[np.intp]
    weights_N: NDArray[np.uint16]
    cuts_N4: NDArray[np.int64]

    def rows(self, rows: slice) -> Self:
        """Return what is drawn for some of the rows, whole blocks."""
        return type(self)(
            self.view,
            self.uids_N[rows],
            self.numbers_NB[rows],
            self.flips_N2[rows],
            self.steps_NK6[rows],
            self.partners_N[rows],
            self.weights_N[rows],
            self.cuts_N4[rows],
        )

    def shares(self, size: int) -> F64:
        """Return the share of each row itself, as ViewParams.shares."""
        return _shares(self, size)


@dataclass(frozen=True, eq=False)
class ViewParams:
    """Parameters of a block of N rows in one view.

    boxes_N4: int64 left, top, width, height in pixels of the decoded image. The rest: as Drawn; a
    row is blended with weight, or has a rectangle of its partner pasted in, never both.
    """

    boxes_N4: NDArray[np.int64]
    flips_N2: NDArray[np.bool_]
    steps_NK6: NDArray[np.int64]
    partners_N: NDArray[np.intp]
    weights_N: NDArray[np.uint16]
    cuts_N4: NDArray[np.int64]

    def shares(self, size: int) -> NDArray[np.float64]:
        """Return the share of each row itself in its view, (N,), 0 to 1. size: side of a view."""
        return _shares(self, size)

    def unmixed(self, rows_N: NDArray[np.bool_]) -> Self:
        """Return the parameters with some rows mixed with nothing."""
        return replace(
            self,
            weights_N=np.where(rows_N, np.uint16(FULL_WEIGHT), self.weights_N),
            cuts_N4=np.where(rows_N[:, None], 0, self.cuts_N4),
        )


def _shares(drawn: Drawn | ViewParams, size: int) -> F64:
    kept_N = 1.0 - drawn.cuts_N4[:, 2] * drawn.cuts_N4[:, 3] / (size * size)
    return kept_N * (drawn.weights_N / FULL_WEIGHT)


def block_slices(num_rows: int, block: int) -> list[slice]:
    """Return the rows of each block of a tar; the last block may be shorter."""
    return [slice(start, min(start + block, num_rows)) for start in range(0, num_rows, block)]


def mixing_partners(seed: int, uids_N: U64, *, view: int, block: int) -> NDArray[np.intp]:
    """Return each row's partner: the next row along one random cycle through its block.

    Rows are counted from the first of the block, whose uid names the block; the last block may be
    shorter. A block of one row is its own partner.
    """
    whole = len(uids_N) // block * block
    parts = []
    for rows, size in ((slice(whole), block), (slice(whole, None), len(uids_N) - whole)):
        names = uids_N[rows][:: size or 1]
        if len(names):
            cycles = permutations(seed, names, view=view, count=size, stream=Stream.BLOCK)
            partners = np.empty_like(cycles)
            np.put_along_axis(partners, cycles, np.roll(cycles, -1, axis=1), axis=1)
            parts.append(partners.ravel())
    return np.concatenate(parts)


def draw_view(recipe: Recipe, uids_N: U64, *, view: int, role: Role = "student") -> Drawn:
    """Return what is drawn for the rows of whole blocks, in order, in one view, as a role sees it.

    Roles differ in lengths alone, which are of their sizes.
    """
    seed, count = recipe.seed, len(uids_N)
    needed = NUM_WORDS if _augmented(recipe) else _BASE_WORDS
    u = uniforms(seed, uids_N, view=view, count=needed)
    flips_N2 = np.zeros((count, 2), bool)
    if recipe.flip is not None:
        for axis, (word, chance) in enumerate(
            ((4, recipe.flip.horizontal), (24, recipe.flip.vertical))
        ):
            if chance is not None:
                flips_N2[:, axis] = u[:, word] < chance
    partners = np.arange(count) % recipe.block
    if recipe.mix is not None:
        partners = mixing_partners(seed, uids_N, view=view, block=recipe.block)
    weights, cuts = _mixing(recipe, u, size=recipe.size_for(role))
    steps = draw_steps(recipe, u, role=role)
    base = np.ascontiguousarray(u[:, :_BASE_WORDS])  # a part of u would keep all of it
    return Drawn(view, uids_N, base, flips_N2, steps, partners, weights, cuts)


def _augmented(recipe: Recipe) -> bool:
    """Return whether a recipe needs words after the first 24."""
    plain = {"flip", "teacher"} | ({"mix"} if isinstance(recipe.mix, Mixup | None) else set())
    vertical = recipe.flip is not None and recipe.flip.vertical is not None
    steps = {
        name for name, field in type(recipe).model_fields.items()
        if field.default is None and getattr(recipe, name) is not None
    }  # fmt: skip
    return vertical or bool(steps - plain)


def _mixing(recipe: Recipe, u: F64, *, size: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return the weights of mixup and the rectangles of cutmix, which neither mixes both ways."""
    mix, count = recipe.mix, len(u)
    drawn = (u[:, 5] * (FULL_WEIGHT + 1)).astype(np.uint16)
    blended, cut = np.zeros(count, bool), np.zeros(count, bool)
    if isinstance(mix, Mixup):
        blended[:] = True
    elif isinstance(mix, Cutmix):
        cut[:] = True
    elif isinstance(mix, Switch):
        blended = u[:, 25] < mix.mixup
        cut = ~blended & (u[:, 25] < mix.mixup + mix.cutmix)
    cuts = np.zeros((count, 4), np.int64)
    if cut.any():
        half_N1 = (0.5 * np.sqrt(1.0 - drawn / FULL_WEIGHT) * size).astype(np.int64)[:, None]
        centre_N2 = (u[:, 26:28] * size).astype(np.int64)
        start_N2 = np.maximum(centre_N2 - half_N1, 0)
        sides_N2 = np.minimum(centre_N2 + half_N1, size) - start_N2
        cuts = np.where(cut[:, None], np.concatenate((start_N2, sides_N2), axis=1), 0)
    return np.where(blended, drawn, np.uint16(FULL_WEIGHT)), cuts


def plan_drawn(recipe: Recipe, drawn: Drawn, *, sizes_N2: NDArray[np.int64]) -> ViewParams:
    """Return the parameters of a block of N rows. sizes_N2: width and height of each image."""

    def later(rows: NDArray[np.intp]) -> F64:
        uids, count = drawn.uids_N[rows], _TRY_WORDS - _BASE_WORDS
        u = uniforms(recipe.seed, uids, view=drawn.view, first=_BASE_WORDS, count=count)
        return u.reshape(len(rows), -1, 2)

    u = drawn.numbers_NB
    boxes = crop_boxes(
        recipe.crop,
        sizes_N2,
        size=recipe.size,
        position_N2=u[:, 2:4],
        tries_NT2=u[:, _FIRST_TRIES].reshape(len(u), -1, 2),
        later=later,
    )
    params = ViewParams(
        boxes, drawn.flips_N2, drawn.steps_NK6, drawn.partners_N, drawn.weights_N, drawn.cuts_N4
    )
    return params if len(boxes) > 1 else params.unmixed(np.ones(1, bool))


def plan_block(
    recipe: Recipe, uids_N: U64, *, view: int, sizes_N2: NDArray[np.int64]
) -> ViewParams:
    """Return the parameters of a block of N rows in one view.

    uids_N: uids of the block's rows in order. sizes_N2: width and height of each image, at least 1.
    """
    whole = recipe.model_copy(update={"block": max(len(uids_N), 1)})
    return plan_drawn(recipe, draw_view(whole, uids_N, view=view), sizes_N2=sizes_N2)
