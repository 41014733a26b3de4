"""Images with their views, as the teacher's renderer makes them and as the student's stream does.

Both are made here and now, and compared byte for byte; the witness that the cache keeps says
whether they are what the teacher saw. Pictures are for the eye: smaller, or JPEGs; what is compared
is not.
"""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.layers import explain_difference
from kdcache.cache.layout import Span
from kdcache.data.blocks import BlockSource
from kdcache.errors import DataError, KdcacheError
from kdcache.pixels.decode import decode_image, read_header
from kdcache.pixels.render import RenderedBlock
from kdcache.pixels.witness import witness
from kdcache.recipe.parts import Role
from kdcache.replay.blocks import BlockRenderer, Request
from kdcache.replay.order import Block
from kdcache.replay.targets import join_targets
from kdcache.report.cache_page import Inspection, class_name, class_names
from kdcache.report.page import ENVIRONMENT
from kdcache.report.preview import COLOURS, view_steps
from kdcache.report.sampling import labels_known
from kdcache.report.sheet import likeliest, png_address
from kdcache.texts import printable

TOP = 5
SIDE, SMALL_SIDE = 224, 96  # pixels of pictures of views and images, and of partners
PIXELATED = 64  # sides up to which views are small enough to be shown as they are
QUALITY = 85  # of JPEGs

ROLES: tuple[Role, Role] = ("teacher", "student")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """What a view shows of an image, in pixels of the image."""

    view: int
    colour: str
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Whole:
    """An image with the boxes of views. picture: data address; width, height: of the image."""

    key: str
    label: str
    picture: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class View:
    """A view on both sides. teacher, student: data addresses; sizes: of each in pixels.

    steps: flips and others. difference: the largest of two bytes, expected 0; amplified: picture of
    it, if there is one. unproven: who has other pixels than the cache's witness says. share: of the
    image itself; partner: the other, if any. top: likeliest classes, their probabilities, and whose
    label they are.
    """

    view: int
    colour: str
    teacher: str
    student: str
    sizes: tuple[int, int]
    steps: str
    difference: int
    amplified: str | None
    unproven: tuple[str, ...]
    law: str
    share: float
    partner: Whole | None
    top: tuple[tuple[str, float, str], ...]

    @property
    def is_wrong(self) -> bool:
        """Return whether teacher and student see, or saw, other pixels."""
        return self.difference > 0 or bool(self.unproven)


@dataclass(frozen=True)
class Sheet:
    """An image and its views. problem: why it has none. reason: of the first view that is wrong."""

    tar: int
    row: int
    whole: Whole
    views: tuple[View, ...]
    problem: str = ""
    reason: str = ""

    @property
    def wrong(self) -> list[View]:
        """Return the views that are not alike."""
        return [view for view in self.views if view.is_wrong]


def make_sheets(
    seen: Inspection, *, tar: int, rows: Sequence[int], views: Sequence[int]
) -> list[Sheet]:
    """Return images of one block, each with some of its views, which are all of one span.

    Raises:
        IncompleteError: the span is not computed.
        CorruptError: it is damaged.
        DataError: an image that has targets cannot be read.
    """
    sides = _render(seen, tar, rows[0], views=views)
    found = []
    for row in rows:
        if row in sides.skip:
            found.append(Sheet(tar, row, _whole(seen, tar, row), (), problem="has no targets"))
            continue
        shown = tuple(_view(sides, row, number) for number in range(len(views)))
        boxes = [_box(sides, number, row - sides.block.start) for number in range(len(views))]
        found.append(Sheet(tar, row, _whole(seen, tar, row, boxes=boxes), shown))
    if any(sheet.wrong for sheet in found):
        reason = printable(explain_difference(seen.cache, sides.source, sides.span))
        found = [replace(sheet, reason=reason) if sheet.wrong else sheet for sheet in found]
    return found


@dataclass(frozen=True, eq=False)
class _Sides:
    """A block in some views of a span, as the teacher's renderer makes it and as the stream does.

    alike: the renderer's as the student sees it, where that is not as the teacher does. skip: rows
    without targets.
    """

    seen: Inspection
    source: BlockSource
    span: Span
    block: slice
    views: Sequence[int]
    skip: tuple[int, ...]
    teacher: RenderedBlock
    alike: RenderedBlock
    student_GNHW3: Pixels


def _render(seen: Inspection, tar: int, row: int, *, views: Sequence[int]) -> _Sides:
    cache, source = seen.cache, seen.source
    assert source is not None
    block = next(b for b in source.blocks(tar) if b.start <= row < b.stop)
    span = cache.grid.span_of(tar, views[0])
    skip = cache.commit(span).unusable
    teacher = source.render(tar, block, views=views, role="teacher", skip=skip)
    alike = teacher
    if source.recipe.teacher is not None:
        alike = source.render(tar, block, views=views, skip=skip)
    request = Request(Block(tar, block.start, block.stop), tuple(views), prove=False)
    streamed = BlockRenderer(source, join_targets([cache]))[request]
    if isinstance(streamed, KdcacheError):
        raise streamed
    assert streamed.pixels is not None  # there is no ring
    return _Sides(seen, source, span, block, views, skip, teacher, alike, streamed.pixels)


def _view(sides: _Sides, row: int, number: int) -> View:
    seen, tar, view, inside = (
        sides.seen,
        sides.span.tar,
        sides.views[number],
        row - sides.block.start,
    )
    teacher, student = sides.teacher.pixels_GNHW3[number], sides.student_GNHW3[number]
    alike = sides.alike.pixels_GNHW3[number][inside]
    apart = np.abs(alike.astype(np.int16) - student[inside]).astype(np.uint8)
    place = sides.block.start // sides.source.recipe.block
    unproven = tuple(
        role
        for role, pixels in zip(ROLES, (teacher, student), strict=True)
        if witness(pixels) != int(seen.cache.read_witness(tar, view, role=role)[place])
    )
    params, difference = sides.teacher.params[number], int(apart.max())
    share = float(params.shares(sides.source.recipe.size_for("teacher"))[inside])
    other, partner = int(params.partners_N[inside]), None
    if share < 1:
        box = _box(sides, number, other)
        partner = _whole(seen, tar, sides.block.start + other, side=SMALL_SIDE, boxes=[box])
    return View(
        view=view,
        colour=COLOURS[number % len(COLOURS)],
        teacher=_picture(teacher[inside], side=SIDE),
        student=_picture(student[inside], side=SIDE),
        sizes=(len(teacher[inside]), len(student[inside])),
        steps=view_steps(params, inside),
        difference=difference,
        amplified=png_address(apart * (255 // difference)) if difference else None,
        unproven=unproven,
        law="cutmix" if params.cuts_N4[inside].any() else "mixup",
        share=share,
        partner=partner,
        top=_top(seen, tar, row, view, partner=sides.block.start + other if partner else None),
    )


def _box(sides: _Sides, number: int, inside: int) -> Box:
    box = sides.teacher.params[number].boxes_N4[inside].tolist()
    return Box(sides.views[number], COLOURS[number % len(COLOURS)], *box)


def _top(
    seen: Inspection, tar: int, row: int, view: int, *, partner: int | None
) -> tuple[tuple[str, float, str], ...]:
    assert seen.source is not None
    names, whose = class_names(seen), dict[int, str]()
    if labels_known(seen.cache, seen.source):
        for text, one in (("partner's label", partner), ("label", row)):
            if one is not None and (label := _label(seen, tar, one)) is not None:
                whose[label] = text
    found = likeliest(seen.cache, seen.cache.read_tile(tar, view), row, count=TOP)
    return tuple(
        (class_name(names, number), share, whose.get(number, "")) for number, share in found
    )


def _label(seen: Inspection, tar: int, row: int) -> int | None:
    """Return an image's label, if it has one; it may be no class of the teacher."""
    assert seen.source is not None
    label = int(seen.source.labels(tar, slice(row, row + 1))[0])
    return None if label < 0 else label


def _whole(
    seen: Inspection, tar: int, row: int, *, side: int = SIDE, boxes: Sequence[Box] = ()
) -> Whole:
    """Return an image with boxes; without a picture where it cannot be decoded."""
    assert seen.source is not None
    source, label = seen.source, _label(seen, tar, row)
    (data,) = source.read(tar, slice(row, row + 1))
    picture, width, height = "", 0, 0
    with suppress(DataError):
        header = read_header(data, source.recipe.decode)
        width, height = header.width, header.height
        picture = _picture(decode_image(data, header).pixels, side=side)
    return Whole(
        key=printable(source.key(tar, row)),
        label="" if label is None else class_name(source.dataset.classes, label),
        picture=picture,
        width=width,
        height=height,
        boxes=tuple(boxes),
    )


def _picture(pixels_HW3: Pixels, *, side: int) -> str:
    """Return pixels as a data address, at most so large; of few pixels, each as it is."""
    if max(pixels_HW3.shape) <= PIXELATED:
        return png_address(pixels_HW3)
    image, buffer = Image.fromarray(pixels_HW3), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=None)
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_sheets(sheets: Sequence[Sheet], *, linked: bool = False) -> Markup:
    """Return images and their views as HTML. linked: each to its page, as `--serve` has it."""
    template = ENVIRONMENT.get_template("contact.html")
    return Markup(template.render(sheets=sheets, linked=linked))
