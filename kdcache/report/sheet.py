"""A contact sheet: views as the teacher saw them, with what it said."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.recipe.plan import FULL_WEIGHT

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
    classes = cache.info.classes
    for view in views:
        tile = cache.read_tile(tar, view)
        skip = set(np.flatnonzero(~tile.usable).tolist())
        target = cache.info.encoding.decode(
            tile.fields, num_classes=cache.info.num_classes, temperature=1.0
        )
        probabilities_NC = target.dense(cache.info.num_classes).exp()
        for block in source.blocks(tar):
            wanted = [r for r in rows if block.start <= r < block.stop and r not in skip]
            if not wanted:
                continue
            rendered = source.render(tar, block, views=[view], skip=skip)
            params = rendered.params[0]
            for row in wanted:
                inside = row - block.start
                best = probabilities_NC[row].topk(min(TOP, cache.info.num_classes))
                top = tuple(
                    (classes[c] if classes else str(c), float(p))
                    for p, c in zip(best.values, best.indices.tolist(), strict=True)
                )
                share = int(params.weights_N[inside]) / FULL_WEIGHT
                partner = block.start + int(params.partners_N[inside])
                mixed = f", {1 - share:.0%} of row {partner}" if share < 1 else ""
                picture = png_address(rendered.pixels_GNHW3[0][inside])
                cards[row].append(Card(picture, f"row {row}, view {view}{mixed}", top))
    return [cards[row] for row in rows if cards[row]]
