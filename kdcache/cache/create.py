"""A new cache: metadata and sample names, whole or not at all."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCname, BloscCodec, BloscShuffle, Crc32cCodec

from kdcache.cache.info import CacheInfo
from kdcache.cache.layout import Grid, make_grid
from kdcache.cache.objects import Folder
from kdcache.cache.store import Arrays, Cache, check_pipeline, open_cache
from kdcache.errors import UsageError
from kdcache.targets.encoding import Compression, FieldSpec

_BLOSC: dict[Compression, tuple[BloscCname, BloscShuffle]] = {
    "lz4-bitshuffle": (BloscCname.lz4, BloscShuffle.bitshuffle),
    "zstd-bitshuffle": (BloscCname.zstd, BloscShuffle.bitshuffle),
    "zstd-shuffle": (BloscCname.zstd, BloscShuffle.shuffle),
}


def _codecs(spec: FieldSpec) -> list[Any]:
    name, shuffle = _BLOSC[spec.compression]
    typesize = np.dtype(spec.dtype).itemsize
    return [BloscCodec(cname=name, clevel=5, shuffle=shuffle, typesize=typesize), Crc32cCodec()]


def _create_arrays(group: zarr.Group, info: CacheInfo, grid: Grid) -> None:
    views, rows, span = grid.num_views, grid.max_rows, grid.span_views
    for spec in info.specs:
        group.create_array(
            spec.name,
            shape=(grid.num_tars, views, rows, spec.width),
            chunks=(1, 1, rows, spec.width),
            shards=(1, span, rows, spec.width),
            dtype=spec.dtype,
            fill_value=spec.fill,
            compressors=_codecs(spec),
            dimension_names=("tar", "view", "row", spec.name),
        )
    blocks = grid.blocks
    group.create_array(
        "witness",
        shape=(grid.num_tars, views, blocks),
        chunks=(1, span, blocks),
        dtype="u8",
        fill_value=0,
        compressors=[Crc32cCodec()],
        dimension_names=("tar", "view", "block"),
    )


def _create_samples(group: zarr.Group, samples: Arrays | None, grid: Grid) -> None:
    for name in ("uids", "contents"):
        array = group.create_array(
            name,
            shape=(grid.num_tars, grid.max_rows),
            chunks=(1, grid.max_rows),
            dtype="u8",
            fill_value=0,
            compressors=[Crc32cCodec()],
            dimension_names=("tar", "row"),
        )
        if samples is not None:
            array[:] = samples[name]
    rows = group.create_array(
        "rows",
        shape=(grid.num_tars,),
        chunks=(grid.num_tars,),
        dtype="u4",
        compressors=[Crc32cCodec()],
        dimension_names=("tar",),
    )
    if samples is not None:
        rows[:] = samples["rows"]


def expected_metadata(info: CacheInfo, grid: Grid) -> dict[str, dict[str, Any]]:
    """Return the metadata of each array that such a cache has, as in its zarr.json."""
    with tempfile.TemporaryDirectory() as scratch:
        group = zarr.create_group(scratch)
        _create_arrays(group, info, grid)
        _create_samples(group, None, grid)
        paths = Path(scratch).glob("*/zarr.json")
        return {path.parent.name: json.loads(path.read_bytes()) for path in paths}


def create_cache(
    path: Path,
    info: CacheInfo,
    *,
    num_views: int,
    span_views: int | None = None,
    uids: Sequence[NDArray[np.uint64]],
    contents: Sequence[NDArray[np.uint64]],
) -> Cache:
    """Create an empty cache, whole or not at all.

    uids, contents: of each tar's rows, in order. span_views: views computed at once, a divisor of
    num_views; by default the largest up to 8.

    Raises:
        UsageError: the path holds something else, cannot be written, the views do not fit spans, or
            zarr runs a codec pipeline that skips checksums.
    """
    check_pipeline()
    rows = [len(tar_uids) for tar_uids in uids]
    grid = make_grid(rows, num_views=num_views, span_views=span_views, block=info.recipe.block)
    samples = {"rows": np.array(rows, np.uint32)}
    for name, parts in (("uids", uids), ("contents", contents)):
        samples[name] = np.zeros((grid.num_tars, grid.max_rows), np.uint64)
        for tar, part in enumerate(parts):
            samples[name][tar, : len(part)] = part
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            group = zarr.create_group(os.path.join(scratch, "cache"))
            group.attrs["kdcache"] = info.attributes()
            _create_arrays(group, info, grid)
            _create_samples(group, samples, grid)
            made = Folder(Path(scratch) / "cache")
            files = (file for file in made.path.rglob("*") if file.is_file())
            made.sync(tuple(str(file.relative_to(made.path)) for file in files))
            os.rename(made.path, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot create the cache: {error.strerror}") from error
    return open_cache(path)
