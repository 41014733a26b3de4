"""Tiles read by zarr-python, as any Zarr reader would: what the direct reader is compared with."""

from typing import Any

import numpy as np
import zarr

from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, UsageError
from kdcache.targets.packed import Arrays, from_stored


def read_by_zarr(cache: Cache, tar: int, view: int) -> Arrays:
    """Return the arrays (rows, width) of a tile.

    A missing object reads as fill values here, without a word: see that the span is committed.

    Raises:
        CorruptError: zarr cannot read it.
        UsageError: zarr runs a codec pipeline that skips checksums.
    """
    pipeline = str(zarr.config.get("codec_pipeline.path"))
    if "zarrs" in pipeline:
        raise UsageError(
            f"zarr's codec pipeline is {pipeline}, which skips checksums on partial reads; "
            "unset codec_pipeline.path"
        )
    try:
        group: Any = zarr.open_group(str(cache.path), mode="r", use_consolidated=False)
        stored = {s.name: np.asarray(group[s.name][tar, view]) for s in cache.info.specs}
    except Exception as error:  # zarr and its codecs raise many kinds
        raise CorruptError(f"{cache.path}: zarr cannot read tar {tar}, view {view}: {error}") from (
            error
        )
    return from_stored(stored, cache.info.specs, num_rows=int(cache.rows[tar]))
