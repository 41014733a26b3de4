"""The objects of a span, as bytes; pure."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.layout import Grid
from kdcache.cache.shard import Place, checksum, encode_tile, join_chunks, with_checksum
from kdcache.targets.packed import Arrays
from kdcache.targets.target import FieldSpec


def encode_span(
    fields: Arrays,
    witnesses: Mapping[str, NDArray[np.uint64]],
    *,
    specs: Sequence[FieldSpec],
    grid: Grid,
) -> tuple[dict[str, bytes], dict[str, tuple[Place, ...]]]:
    """Return a span's objects, and where their chunks stand, by array.

    fields: arrays (G, rows, width) of the encoding's dtypes. witnesses: (G, blocks of the tar), by
    array.
    """
    tiles = [
        encode_tile(
            {name: array[view] for name, array in fields.items()}, specs, num_rows=grid.max_rows
        )
        for view in range(grid.span_views)
    ]
    objects: dict[str, bytes] = {}
    places: dict[str, tuple[Place, ...]] = {}
    for spec in specs:
        objects[spec.name], places[spec.name] = join_chunks([tile[spec.name] for tile in tiles])
    for name, witness in witnesses.items():
        blocks = np.zeros((grid.span_views, grid.blocks), "<u8")
        blocks[:, : witness.shape[1]] = witness
        objects[name] = with_checksum(blocks.tobytes())
        places[name] = (Place(0, len(objects[name]), checksum(blocks.tobytes())),)
    return objects, places
