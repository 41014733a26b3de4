"""A block of image files in several views to uint8 pixels, for teacher and student alike.

Each image is decoded once per scale and rendered in every view: scale 1/n from the box, box snapped
to multiples of n, integer crop, resize in uint8, flip, blend. docs/format.md specifies each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from kdcache.errors import DataError
from kdcache.pixels.decode import SCALES, Header, Pixels, decode_image, read_header
from kdcache.pixels.mix import blend
from kdcache.pixels.witness import witness
from kdcache.recipe.plan import FULL_WEIGHT, ViewParams, plan_block
from kdcache.recipe.schema import Recipe


@dataclass(frozen=True, eq=False)
class RenderedBlock:
    """A block of N rows in G views.

    pixels_GNHW3: uint8 RGB; rows that cannot be used are zero.
    params: parameters of each view, as applied.
    problems: why a row cannot be used, by row; rows given as None are not listed.
    usable_N: rows that have pixels.
    """

    pixels_GNHW3: NDArray[np.uint8]
    params: tuple[ViewParams, ...]
    problems: dict[int, str]
    usable_N: NDArray[np.bool_]

    def witnesses(self) -> NDArray[np.uint64]:
        """Return the witness of each view, (G,)."""
        return np.array([witness(pixels) for pixels in self.pixels_GNHW3], np.uint64)


def jpeg_scale(width: int, height: int, *, least: float) -> int:
    """Return the largest n in 8, 4, 2, 1 that leaves a box of width x height at least `least`."""
    return next((n for n in SCALES if min(width, height) >= n * least), 1)


def crop_scaled(pixels: Pixels, box: Sequence[int], *, scale: int, size: tuple[int, int]) -> Pixels:
    """Return the part of an image decoded at 1/scale that a box covers.

    box: left, top, width, height in pixels of the whole image, whose (width, height) is size. Edges
    go to the nearest multiple of scale, never into a last column or row that the image fills in
    part; one column and one row are always left.
    """
    (left, top, wide, tall), half = box, scale // 2
    last_x, last_y = max(size[0] // scale, 1), max(size[1] // scale, 1)
    x0, y0 = min((left + half) // scale, last_x - 1), min((top + half) // scale, last_y - 1)
    x1 = min((left + wide + half) // scale, last_x)
    y1 = min((top + tall + half) // scale, last_y)
    return pixels[y0:y1, x0:x1]


def resize_torch(pixels: Pixels, size: int) -> Pixels:
    """Return pixels as (size, size, 3) by torch's bilinear antialiased resize in uint8."""
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def resize_pillow(pixels: Pixels, size: int) -> Pixels:
    """Return pixels as (size, size, 3) by two one-dimensional Pillow resizes, horizontal first."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    wide = image.resize((size, image.height), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((size, size), Image.Resampling.BILINEAR))


_RESIZE = {"torch": resize_torch, "pillow": resize_pillow}


def render_image(
    data: bytes,
    header: Header,
    *,
    recipe: Recipe,
    boxes_G4: NDArray[np.int64],
    flips_G: NDArray[np.bool_],
    out_GHW3: NDArray[np.uint8],
) -> None:
    """Render an image's views, before blending, into out_GHW3.

    Raises:
        DataError: the image cannot be decoded.
    """
    resize, size = _RESIZE[recipe.resize], (header.width, header.height)
    decoded: dict[int, Pixels] = {}
    for out, box, flip in zip(out_GHW3, boxes_G4.tolist(), flips_G, strict=True):
        least = recipe.decode.guard * recipe.size
        scale = jpeg_scale(box[2], box[3], least=least) if header.scalable else 1
        if scale not in decoded:
            decoded[scale] = decode_image(data, header, scale=scale)
        view = resize(crop_scaled(decoded[scale], box, scale=scale, size=size), recipe.size)
        out[:] = view[:, ::-1] if flip else view


def render_block(
    recipe: Recipe,
    images: Sequence[bytes | None],
    *,
    uids_N: NDArray[np.uint64],
    views: Sequence[int],
) -> RenderedBlock:
    """Return a block's pixels in the given views.

    images: file bytes of the block's N rows in order; None for a row known to be unusable.
    An image that cannot be decoded becomes a problem of its row; the caller decides what follows.
    """
    count, side = len(images), recipe.size
    problems: dict[int, str] = {}
    headers: dict[int, Header] = {}
    sizes_N2 = np.ones((count, 2), np.int64)
    for row, data in enumerate(images):
        if data is not None:
            try:
                headers[row] = read_header(data, recipe.decode)
                sizes_N2[row] = headers[row].width, headers[row].height
            except DataError as error:
                problems[row] = str(error)
    plans = [plan_block(recipe, uids_N, view=view, sizes_N2=sizes_N2) for view in views]
    boxes_GN4 = np.stack([plan.boxes_N4 for plan in plans])
    flips_GN = np.stack([plan.flips_N for plan in plans])
    pixels_GNHW3 = np.zeros((len(views), count, side, side, 3), np.uint8)
    for row, header in headers.items():
        data = images[row]
        assert data is not None
        try:
            render_image(
                data,
                header,
                recipe=recipe,
                boxes_G4=boxes_GN4[:, row],
                flips_G=flips_GN[:, row],
                out_GHW3=pixels_GNHW3[:, row],
            )
        except DataError as error:
            problems[row] = str(error)
            pixels_GNHW3[:, row] = 0
    usable_N = np.array([row in headers and row not in problems for row in range(count)])
    applied = tuple(_without_bad_partners(plan, usable_N) for plan in plans)
    if recipe.mix is not None:
        for pixels, plan in zip(pixels_GNHW3, applied, strict=True):
            pixels[:] = blend(pixels, partners_N=plan.partners_N, weights_N=plan.weights_N)
    return RenderedBlock(pixels_GNHW3, applied, problems, usable_N)


def _without_bad_partners(plan: ViewParams, usable_N: NDArray[np.bool_]) -> ViewParams:
    """Return the plan in which rows without a usable partner, or without pixels, blend nothing."""
    alone_N = ~(usable_N & usable_N[plan.partners_N])
    weights_N = np.where(alone_N, np.uint16(FULL_WEIGHT), plan.weights_N)
    return ViewParams(plan.boxes_N4, plan.flips_N, plan.partners_N, weights_N)
