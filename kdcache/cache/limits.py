"""How large a cache may say that it is, and its chunks: what is larger was never written; pure.

Invariant: what attributes or commit records of strangers claim takes no more memory or time than
the largest cache that is ever useful, before it is refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kdcache.cache.layout import Grid
from kdcache.cache.shard import CHECKSUM_BYTES, Place
from kdcache.errors import UsageError
from kdcache.targets.target import FieldSpec

MOST_SPANS = 1 << 22  # four times the ImageNet-21k images in 1,024 rows, 600 views in spans of 8
MOST_SPAN_VIEWS = 1 << 16
MOST_CHUNK_BYTES = 2**31 - 17  # of what Blosc compresses at once
_FRAME_BYTES = 16  # that Blosc needs more for what it cannot compress


def check_limits(grid: Grid, specs: Sequence[FieldSpec]) -> None:
    """Check that a cache of this extent could be written and listed.

    Raises:
        UsageError: it could not.
    """
    spans = grid.num_tars * (grid.num_views // grid.span_views)
    if spans > MOST_SPANS:
        raise UsageError(
            f"{grid.num_tars} tars and {grid.num_views} views in spans of {grid.span_views} are "
            f"{spans} spans, at most {MOST_SPANS}; take larger tars, or more views in each span"
        )
    if grid.span_views > MOST_SPAN_VIEWS:
        raise UsageError(f"spans of {grid.span_views} views, at most {MOST_SPAN_VIEWS}")
    largest = max([*(_tile_bytes(spec, grid) for spec in specs), _witness_bytes(grid)])
    if largest > MOST_CHUNK_BYTES:
        raise UsageError(
            f"{grid.max_rows} rows in a tar make a tile of {largest} bytes, at most "
            f"{MOST_CHUNK_BYTES}; take smaller tars"
        )


def chunks_fit(
    tiles: Mapping[str, Sequence[Place]],
    *,
    grid: Grid,
    specs: Sequence[FieldSpec],
    witnesses: Sequence[str],
) -> bool:
    """Return whether no chunk is longer than what its array could make of a tile."""
    most = {spec.name: _tile_bytes(spec, grid) + _FRAME_BYTES for spec in specs}
    exact = dict.fromkeys(witnesses, _witness_bytes(grid))
    for array, places in tiles.items():
        sizes = [place.size_bytes - CHECKSUM_BYTES for place in places]
        if array in exact and sizes != [exact[array]]:
            return False
        if max(sizes) > most.get(array, MOST_CHUNK_BYTES):
            return False
    return True


def _tile_bytes(spec: FieldSpec, grid: Grid) -> int:
    return grid.max_rows * spec.width * np.dtype(spec.dtype).itemsize


def _witness_bytes(grid: Grid) -> int:
    return grid.span_views * grid.blocks * 8
