"""Views made one row at a time from sound images, each step in the open."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdcache.pixels.decode import decode_image, read_header
from kdcache.pixels.render import scaled_window
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.steps import apply_steps
from kdcache.recipe.plan import ViewParams, plan_block
from kdcache.recipe.schema import Recipe
from tests.photos import Pixels

MAX = 2**64 - 1


def uids(count: int) -> NDArray[np.uint64]:
    return np.array([MAX - 7 * row for row in range(count)], np.uint64)


def plan_of(
    recipe: Recipe, images: list[bytes], view: int, *, uids_N: NDArray[np.uint64]
) -> ViewParams:
    """Return the parameters of a block of images."""
    headers = [read_header(data, recipe.decode) for data in images]
    sizes = np.array([(header.width, header.height) for header in headers])
    return plan_block(recipe, uids_N, view=view, sizes_N2=sizes)


def crop(recipe: Recipe, data: bytes, box: list[int]) -> Pixels:
    """Return what a box covers of an image that is decoded in whole."""
    header = read_header(data, recipe.decode)
    least, scale = recipe.decode.guard * recipe.size, 1
    while header.scalable and scale < 8 and min(box[2:]) >= 2 * scale * least:
        scale *= 2
    left, top, right, bottom = scaled_window(box, scale=scale, size=(header.width, header.height))
    whole = decode_image(data, header, scale=scale)
    assert (whole.left, whole.top) == (0, 0)
    return np.array(whole.pixels[top:bottom, left:right])


def flip(pixels: Pixels, flips: list[bool]) -> Pixels:
    pixels = np.fliplr(pixels) if flips[0] else pixels
    return np.ascontiguousarray(np.flipud(pixels) if flips[1] else pixels)


def mix(plain: list[Pixels], plan: ViewParams) -> list[Pixels]:
    mixed = []
    for row, partner in enumerate(plan.partners_N.tolist()):
        own, other = plain[row].astype(int), plain[partner].astype(int)
        weight = int(plan.weights_N[row])
        out = (weight * own + (256 - weight) * other + 128) // 256
        left, top, wide, tall = plan.cuts_N4[row].tolist()
        for y in range(top, top + tall):
            for x in range(left, left + wide):
                out[y, x] = other[y, x]
        mixed.append(out.astype(np.uint8))
    return mixed


def stepped(resized: list[Pixels], plan: ViewParams) -> list[Pixels]:
    """Return the rows flipped, then changed by their steps."""
    flipped = [flip(*pair) for pair in zip(resized, plan.flips_N2.tolist(), strict=True)]
    return [apply_steps(*pair) for pair in zip(flipped, plan.steps_NK6, strict=True)]


Order = Callable[[list[Pixels], ViewParams], list[Pixels]]


def flip_step_mix(resized: list[Pixels], plan: ViewParams) -> list[Pixels]:
    return mix(stepped(resized, plan), plan)


def reference(
    recipe: Recipe, images: list[bytes], view: int, *, order: Order = flip_step_mix
) -> Pixels:
    """Return the pixels (N, H, W, 3) of a block of images in a view."""
    plan = plan_of(recipe, images, view, uids_N=uids(len(images)))
    boxes = plan.boxes_N4.tolist()
    crops = [crop(recipe, *pair) for pair in zip(images, boxes, strict=True)]
    resized = [RESIZE[recipe.resize](pixels, recipe.size) for pixels in crops]
    return np.stack(order(resized, plan))
