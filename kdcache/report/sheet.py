"""A contact sheet: views as the teacher saw them, with what it said."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.store import Cache, Tile
from kdcache.data.blocks import BlockSource

TOP = 3


@dataclass(frozen=True)
class Card:
    """One view. picture: PNG as a data address. top: classes and probabilities, largest first."""

    picture: str
    caption: str
    top: tuple[tuple[str, float], ...]


def png_address(pixels_HW3: NDArray[np.uint8]) -> str:
    """Return uint8 RGB pixels as a data address of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(
    cache: Cache, source: BlockSource, *, tar: int, rows: Sequence[int], views: Sequence[int]
) -> list[list[Card]]:
    """Return the cards of each row of a tar, in the given views; unusable rows are left out."""
    cards: dict[int, list[Card]] = {row: [] for row in rows}
    for view in views:
        tile = cache.read_tile(tar, view)
        skip = set(np.flatnonzero(~tile.usable).tolist())
        for block in source.blocks(tar):
            wanted = [r for r in rows if block.start <= r < block.stop and r not in skip]
            if not wanted:
                continue
            rendered = source.render(tar, block, views=[view], skip=skip)
            params = rendered.params[0]
            for row in wanted:
                inside = row - block.start
                share = float(params.shares(source.recipe.size)[inside])
                partner = block.start + int(params.partners_N[inside])
                mixed = f", mixed with {1 - share:.0%} of row {partner}" if share < 1 else ""
                picture = png_address(rendered.pixels_GNHW3[0][inside])
                cards[row].append(
                    Card(picture, f"row {row}, view {view}{mixed}", _top(cache, tile, row))
                )
    return [cards[row] for row in rows if cards[row]]


def likeliest(cache: Cache, tile: Tile, row: int, *, count: int) -> list[tuple[int, float]]:
    """Return the likeliest classes of a row and their probabilities, largest first."""
    num_classes = cache.info.num_classes
    fields = {name: field[row : row + 1] for name, field in tile.fields.items()}
    target = cache.info.encoding.decode(fields, num_classes=num_classes, temperature=1.0)
    best = target.dense(num_classes)[0].exp().topk(min(count, num_classes))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _top(cache: Cache, tile: Tile, row: int) -> tuple[tuple[str, float], ...]:
    names = cache.info.classes
    found = likeliest(cache, tile, row, count=TOP)
    return tuple((names[c] if names else str(c), share) for c, share in found)
