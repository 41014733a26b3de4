"""A contact sheet of a recipe: each image with its crop boxes, then its views."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdcache.data.blocks import BlockSource
from kdcache.pixels.decode import decode_image, read_header
from kdcache.recipe.ops import Op
from kdcache.recipe.plan import ViewParams
from kdcache.texts import printable

CELL = 224  # pixels; smaller views are enlarged by a whole factor
GAP = 8
LINE = 15
FONT_SIZE = 12
KEY_LETTERS = 16  # of a key, which fit the narrowest cell
COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#000000",
)  # fmt: skip
BAD = "#cc0000"
NEAREST = Image.Resampling.NEAREST
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SHORT = {Op.ERASE_NOISE: "erase", Op.TRANSLATE_X: "move x", Op.TRANSLATE_Y: "move y"}


def draw_preview(
    source: BlockSource, *, tar: int, rows: Sequence[int], views: Sequence[int]
) -> Image.Image:
    """Return the sheet of some rows of a tar, a line each: the whole image, then its views."""
    size = source.recipe.size
    factor = max(CELL // size, 1)
    cell = max(factor * size, CELL // 2)
    font = ImageFont.load_default(FONT_SIZE)
    pictures, texts = [], []
    for row in rows:
        block = next(b for b in source.blocks(tar) if b.start <= row < b.stop)
        rendered = source.render(tar, block, views=views)
        inside = row - block.start
        name = _named(source, tar, row)
        if inside in rendered.problems:
            pictures.append([Image.new("RGB", (1, 1), "white")])
            texts.append([_wrapped(f"{name}: {rendered.problems[inside]}", font, width=cell)])
            continue
        boxes = [params.boxes_N4[inside] for params in rendered.params]
        shown = [Image.fromarray(pixels) for pixels in rendered.pixels_GNHW3[:, inside]]
        enlarged = [p.resize((factor * size, factor * size), NEAREST) for p in shown]
        pictures.append([_whole_image(source, tar, row, boxes, side=cell), *enlarged])
        captions = [
            [f"view {view}", *_wrapped(view_steps(params, inside), font, width=cell),
             *_wrapped(mixed, font, width=cell)]
            for view, params in zip(views, rendered.params, strict=True)
            for mixed in [_mixed(source, tar, block.start, params=params, row=inside)]
        ]  # fmt: skip
        texts.append([[name], *captions])
    return _laid_out(pictures, texts, cell=cell, columns=len(views) + 1, font=font)


def _laid_out(
    pictures: list[list[Image.Image]],
    texts: list[list[list[str]]],
    *,
    cell: int,
    columns: int,
    font: Font,
) -> Image.Image:
    """Return pictures in lines and columns, the lines of their texts below each."""
    heights = [cell + LINE * max(len(text) for text in line) + GAP for line in texts]
    wide = cell + GAP
    sheet = Image.new("RGB", (GAP + wide * columns, GAP + sum(heights)), "white")
    pen, y = ImageDraw.Draw(sheet), GAP
    for line, height in enumerate(heights):
        failed = len(pictures[line]) == 1 and columns > 1
        for column, (picture, text) in enumerate(zip(pictures[line], texts[line], strict=True)):
            x = GAP + column * wide
            sheet.paste(picture, (x, y))
            top = y if failed else y + cell
            for number, words in enumerate(text):
                colour = COLOURS[(column - 1) % len(COLOURS)] if column and not number else "black"
                pen.text((x, top + number * LINE), words, fill=BAD if failed else colour, font=font)
        y += height
    return sheet


def _wrapped(text: str, font: Font, *, width: int) -> list[str]:
    """Return a text in lines that are no wider than a cell, where its words allow."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


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


def view_steps(params: ViewParams, row: int) -> str:
    """Return the flips and steps of a view."""
    flips = zip(("flip", "upside down"), params.flips_N2[row], strict=True)
    ops = [Op(code) for code in params.steps_NK6[row, :, 0].tolist() if code]
    named = [SHORT.get(op, op.name.lower().replace("_", " ")) for op in ops]
    return ", ".join([name for name, on in flips if on] + named)


def _named(source: BlockSource, tar: int, row: int) -> str:
    """Return the key of a row, its end where it is long."""
    key = printable(source.key(tar, row))
    return key if len(key) <= KEY_LETTERS else f"…{key[1 - KEY_LETTERS :]}"


def _mixed(source: BlockSource, tar: int, start: int, *, params: ViewParams, row: int) -> str:
    """Return how a view is mixed, and with which image. row: of the block that starts there."""
    share = 1 - float(params.shares(source.recipe.size)[row])
    if share == 0:
        return ""
    law = "cutmix" if params.cuts_N4[row].any() else "mixup"
    percent = f"{share:.0%}" if share >= 0.005 else "under 1%"
    return f"{law}: {percent} of {_named(source, tar, start + int(params.partners_N[row]))}"
