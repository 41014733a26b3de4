"""A block of image files in several views to uint8 pixels, for teacher and student alike.

Each image is decoded once per scale and rendered in every view: scale 1/n from the box, box snapped
to multiples of n, integer crop, resize in uint8, flips, steps, mixing; see docs/format.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.errors import DataError
from kdcache.pixels.decode import SCALES, Header, Pixels, Window, decode_image, read_header
from kdcache.pixels.image import scratch
from kdcache.pixels.mix import mix, mix_row
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.selftest import check_pixels
from kdcache.pixels.steps import apply_steps
from kdcache.pixels.witness import Layer, LayerDigests, witness
from kdcache.recipe.parts import Resize, Role
from kdcache.recipe.plan import Drawn, ViewParams, draw_view, plan_drawn
from kdcache.recipe.schema import Recipe

MAX_SCRATCH_BYTES = 1 << 28


@dataclass(frozen=True, eq=False)
class RenderedBlock:
    """A block of N rows in G views.

    pixels_GNHW3: uint8 RGB; rows that cannot be used are zero.
    params: parameters of each view, as applied.
    problems: why a row cannot be used, by row; rows given as None are not listed.
    usable_N: rows that have pixels.
    """

    pixels_GNHW3: Pixels
    params: tuple[ViewParams, ...]
    problems: dict[int, str]
    usable_N: NDArray[np.bool_]

    def witnesses(self) -> NDArray[np.uint64]:
        """Return the witness of each view, (G,)."""
        return np.array([witness(pixels) for pixels in self.pixels_GNHW3], np.uint64)


class _Row(NamedTuple):
    """Parameters of a row in a view, as plain values: cheaper to ask for than elements of arrays.

    stepped: whether any step does anything.
    """

    box: list[int]
    mirrored: bool
    upside_down: bool
    stepped: bool
    steps_K6: NDArray[np.int64]


def _plain_rows(plan: ViewParams) -> list[_Row]:
    mirrored, upside_down = plan.flips_N2.T.tolist()
    stepped = np.logical_or.reduce(plan.steps_NK6[..., 0], axis=1).tolist()
    boxes, steps = plan.boxes_N4.tolist(), plan.steps_NK6
    return list(map(_Row, boxes, mirrored, upside_down, stepped, steps))


def jpeg_scale(width: int, height: int, *, least: float) -> int:
    """Return the largest n in 8, 4, 2, 1 that leaves a box of width x height at least `least`."""
    return next((n for n in SCALES if min(width, height) >= n * least), 1)


def scaled_window(box: Sequence[int], *, scale: int, size: tuple[int, int]) -> Window:
    """Return the part of an image decoded at 1/scale that a box covers.

    box: left, top, width, height in pixels of the whole image, whose (width, height) is size. Edges
    go to the nearest multiple of scale, never into a last column or row that the image fills in
    part; one column and one row are always left.
    """
    (left, top, wide, tall), half = box, scale // 2
    last_x, last_y = max(size[0] // scale, 1), max(size[1] // scale, 1)
    return Window(
        min((left + half) // scale, last_x - 1),
        min((top + half) // scale, last_y - 1),
        min((left + wide + half) // scale, last_x),
        min((top + tall + half) // scale, last_y),
    )


def _around(windows: Iterable[Window]) -> Window:
    """Return the smallest window that holds all of them."""
    lefts, tops, rights, bottoms = zip(*windows, strict=True)
    return Window(min(lefts), min(tops), max(rights), max(bottoms))


def _crops(
    data: bytes, header: Header, boxes: Sequence[list[int]], *, least: float, whole: bool
) -> list[Pixels]:
    """Return the pixels that each box covers, contiguous; each scale is decoded once.

    least: sides, in pixels, that decoding at a smaller scale must leave.

    Raises:
        DataError: the image cannot be decoded.
    """
    size = (header.width, header.height)
    scales = [jpeg_scale(w, h, least=least) if header.scalable else 1 for _, _, w, h in boxes]
    windows = [scaled_window(b, scale=n, size=size) for b, n in zip(boxes, scales, strict=True)]
    decoded = {}
    for scale in set(scales):
        needed = _around(w for w, n in zip(windows, scales, strict=True) if n == scale)
        decoded[scale] = decode_image(data, header, scale=scale, window=None if whole else needed)
    crops = []
    for (left, top, right, bottom), scale in zip(windows, scales, strict=True):
        pixels, x, y = decoded[scale]
        crops.append(np.ascontiguousarray(pixels[top - y : bottom - y, left - x : right - x]))
    return crops


def _render_row(
    row: _Row, crop: Pixels, *, resize: Resize, out: Pixels, layers: LayerDigests | None
) -> None:
    """Write a row's view, before mixing, to out; layers takes the digest of each layer."""
    view = resized = RESIZE[resize](crop, len(out))
    if row.mirrored:
        view = torch.from_numpy(view).flip(1).numpy()  # NumPy takes ten times as long
    if row.upside_down:
        view = view[::-1]
    if row.stepped:
        view = apply_steps(np.ascontiguousarray(view), row.steps_K6)
    out[:] = view
    if layers is not None:
        layers.add(Layer.DRAW, np.array([*row.box, row.mirrored, row.upside_down], np.int64))
        layers.add(Layer.DRAW, row.steps_K6)
        layers.add(Layer.DECODE, crop)
        layers.add(Layer.RESIZE, resized)
        layers.add(Layer.STEPS, out)


def render_drawn(
    recipe: Recipe,
    images: Sequence[bytes | None],
    drawn: Sequence[Drawn],
    *,
    role: Role = "student",
    whole: bool = True,
    out_GNHW3: Pixels | None = None,
    layers: LayerDigests | None = None,
) -> RenderedBlock:
    """Return a block's pixels in the G views that are drawn for it and the role that sees them.

    images: file bytes of the block's N rows in order; None for a row known to be unusable.
    whole: decode all of each image, and so notice any damage; else what the views need, of images
    that were decoded in whole before. out_GNHW3: where pixels are written, by default fresh memory.
    layers: takes the digests of the first view.

    An image that cannot be decoded becomes a problem of its row; the caller decides what follows.

    Raises:
        MismatchError: a library makes other pixels than the pixel function states.
    """
    size, resize = recipe.size_for(role), recipe.resize_for(role)
    check_pixels(resize)
    shape = (len(drawn), len(images), size, size, 3)
    out_GNHW3 = np.empty(shape, np.uint8) if out_GNHW3 is None else out_GNHW3
    problems: dict[int, str] = {}
    headers = _headers(images, recipe, whole=whole, problems=problems)
    sizes_N2 = np.ones((len(images), 2), np.int64)
    for row, header in headers.items():
        sizes_N2[row] = header.width, header.height
    plans = [plan_drawn(recipe, view, sizes_N2=sizes_N2) for view in drawn]
    rows_GN = [_plain_rows(plan) for plan in plans]
    usable_N, least = np.zeros(len(images), bool), recipe.decode.guard * size

    def render(row: int, outs: Sequence[Pixels]) -> bool:
        """Write a row's views, before mixing, to outs; return whether it is usable."""
        data, header = images[row], headers.get(row)
        if data is None or header is None:
            return False
        views = [rows_N[row] for rows_N in rows_GN]
        try:
            crops = _crops(data, header, [v.box for v in views], least=least, whole=whole)
        except DataError as error:
            problems[row] = str(error)
            return False
        for number, (view, crop, out) in enumerate(zip(views, crops, outs, strict=True)):
            digests = layers if number == 0 else None
            _render_row(view, crop, resize=resize, out=out, layers=digests)
        usable_N[row] = True
        return True

    along = recipe.mix is not None and len(drawn) == 1 and layers is None
    if along:
        _mix_along(plans[0], render, out_GNHW3[0])
    else:
        plain_GNHW3 = out_GNHW3
        if recipe.mix is not None:
            plain_GNHW3 = scratch("block", shape, most_bytes=MAX_SCRATCH_BYTES)
        for row in range(len(images)):
            render(row, list(plain_GNHW3[:, row]))
        plain_GNHW3[:, ~usable_N] = 0
    # Rows without pixels, and rows whose partner has none, are mixed with nothing.
    applied = tuple(p.unmixed(~(usable_N & usable_N[p.partners_N])) for p in plans)
    if recipe.mix is not None and not along:
        for plain, plan, out in zip(plain_GNHW3, applied, out_GNHW3, strict=True):
            mix(plain, plan, out_NHW3=out)
    return RenderedBlock(out_GNHW3, applied, problems, usable_N)


def _headers(
    images: Sequence[bytes | None], recipe: Recipe, *, whole: bool, problems: dict[int, str]
) -> dict[int, Header]:
    """Return the headers of the rows that have one; problems takes why others have not."""
    headers = {}
    for row, data in enumerate(images):
        if data is not None:
            try:
                headers[row] = read_header(data, recipe.decode, whole=whole)
            except DataError as error:
                problems[row] = str(error)
    return headers


def _mix_along(
    plan: ViewParams, render: Callable[[int, Sequence[Pixels]], bool], out_NHW3: Pixels
) -> None:
    """Render the rows of one view along the cycle of partners, and mix each with the next one.

    Both are in the CPU's cache then, which halves the time that mixing takes after the whole block.
    """
    partners, weights = plan.partners_N.tolist(), plan.weights_N.tolist()
    cuts = plan.cuts_N4.tolist()
    memory = scratch("rows", (3, *out_NHW3.shape[1:]))
    first = own = memory[0]
    first_usable = own_usable = render(0, [first])
    row = 0
    for step in range(len(partners)):
        following = partners[row]
        partner, usable = first, first_usable
        if following != 0:
            partner = memory[1 + step % 2]
            usable = render(following, [partner])
        if not own_usable:
            out_NHW3[row] = 0
        elif usable:
            mix_row(own, partner, weight=weights[row], cut=cuts[row], out=out_NHW3[row])
        else:
            out_NHW3[row] = own
        row, own, own_usable = following, partner, usable


def render_block(
    recipe: Recipe,
    images: Sequence[bytes | None],
    *,
    uids_N: NDArray[np.uint64],
    views: Sequence[int],
    role: Role = "student",
    whole: bool = True,
) -> RenderedBlock:
    """Return a block's pixels in the given views; as render_drawn. uids_N: of the block's rows."""
    one = recipe.model_copy(update={"block": max(len(uids_N), 1)})
    drawn = [draw_view(one, uids_N, view=view, role=role) for view in views]
    return render_drawn(recipe, images, drawn, role=role, whole=whole)
