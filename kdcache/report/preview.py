"""A contact sheet of a recipe: each image with its crop boxes, then its views."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdcache.data.blocks import BlockSource
from kdcache.pixels.decode import decode_image, read_header
from kdcache.recipe.ops import Op
from kdcache.recipe.plan import ViewParams

CELL = 224  # pixels; smaller views are enlarged by a whole factor
GAP = 8
LINE = 15
FONT_SIZE = 12
COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#000000",
)  # fmt: skip
SHORT = {Op.ERASE_NOISE: "erase", Op.TRANSLATE_X: "move x", Op.TRANSLATE_Y: "move y"}


def draw_preview(
    source: BlockSource, *, tar: int, rows: Sequence[int], views: Sequence[int]
) -> Image.Image:
    """Return the sheet of some rows of a tar, a line each: the whole image, then its views."""
    factor = max(CELL // source.recipe.size, 1)
    cell = max(factor * source.recipe.size, CELL // 2)
    wide, tall = cell + GAP, cell + 3 * LINE + GAP
    sheet = Image.new("RGB", (GAP + wide * (len(views) + 1), GAP + tall * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for line, row in enumerate(rows):
        y = GAP + line * tall
        block = next(b for b in source.blocks(tar) if b.start <= row < b.stop)
        rendered = source.render(tar, block, views=views)
        inside = row - block.start
        if inside in rendered.problems:
            text = f"tar {tar}, row {row}: {rendered.problems[inside]}"
            pen.text((GAP, y), text, fill="#cc0000", font=font)
            continue
        boxes = [params.boxes_N4[inside] for params in rendered.params]
        whole = _whole_image(source, tar, row, boxes, side=cell)
        sheet.paste(whole, (GAP, y))
        pen.text((GAP, y + cell), f"tar {tar}, row {row}", fill="black", font=font)
        for column, (view, params) in enumerate(zip(views, rendered.params, strict=True)):
            x = GAP + (column + 1) * wide
            picture = Image.fromarray(rendered.pixels_GNHW3[column, inside])
            size = factor * source.recipe.size
            sheet.paste(picture.resize((size, size), Image.Resampling.NEAREST), (x, y))
            colour = COLOURS[column % len(COLOURS)]
            lines = _caption(params, inside, start=block.start, size=source.recipe.size)
            pen.text((x, y + cell), f"view {view}", fill=colour, font=font)
            for number, text in enumerate(lines):
                pen.text((x, y + cell + (number + 1) * LINE), text, fill="black", font=font)
    return sheet


def _whole_image(
    source: BlockSource, tar: int, row: int, boxes: Sequence[NDArray[np.int64]], *, side: int
) -> Image.Image:
    """Return an image, at most side x side, with the crop boxes of its views drawn in."""
    (data,) = source.read(tar, slice(row, row + 1))
    header = read_header(data, source.recipe.decode)
    image = Image.fromarray(decode_image(data, header).pixels)
    scale = side / max(header.width, header.height)
    size = max(round(header.width * scale), 1), max(round(header.height * scale), 1)
    image = image.resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for number, box in enumerate(boxes):
        left, top, wide, tall = (box * scale).tolist()
        right, bottom = max(left + wide - 1, left), max(top + tall - 1, top)
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
    return image


def _caption(params: ViewParams, row: int, *, start: int, size: int) -> list[str]:
    """Return what was done to a view besides its crop, in at most two lines."""
    done = [
        name for name, on in zip(("flip", "upside down"), params.flips_N2[row], strict=True) if on
    ]
    ops = [Op(code) for code in params.steps_NK6[row, :, 0].tolist() if code]
    done += [SHORT.get(op, op.name.lower().replace("_", " ")) for op in ops]
    lines = [", ".join(done)] if done else []
    share = float(params.shares(size)[row])
    if share < 1:
        law = "cutmix" if params.cuts_N4[row].any() else "mixup"
        lines.append(f"{law}: {1 - share:.0%} of row {start + int(params.partners_N[row])}")
    return lines
