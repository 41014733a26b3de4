"""A new cache: metadata and sample names, whole or not at all."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.info import CacheInfo, with_extent
from kdcache.cache.layout import Grid, check_views, make_grid
from kdcache.cache.limits import check_limits
from kdcache.cache.metadata import (
    ROOT,
    array_document,
    array_documents,
    root_document,
    to_text,
)
from kdcache.cache.objects import Folder
from kdcache.cache.shard import with_checksum
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import UsageError
from kdcache.files import sync

ROWS = "rows/c/0"
Samples = Sequence[NDArray[np.uint64]]


def create_cache(
    path: Path,
    info: CacheInfo,
    *,
    num_views: int,
    span_views: int | None = None,
    uids: Samples,
    contents: Samples,
) -> Cache:
    """Create an empty cache, whole or not at all.

    uids, contents: of each tar's rows, in order. span_views: views computed at once, a divisor of
    num_views; by default the largest up to 8.

    Raises:
        UsageError: the path holds something else, cannot be written, or the views do not fit spans.
    """
    rows = [len(tar_uids) for tar_uids in uids]
    grid = make_grid(rows, num_views=num_views, span_views=span_views, block=info.recipe.block)
    check_limits(grid, info.specs)
    documents = metadata_objects(info, grid)
    samples = sample_objects(grid, {"uids": uids, "contents": contents})
    return _publish(path, {**documents, **samples})


def create_like(path: Path, like: Cache, *, num_views: int) -> Cache:
    """Create an empty cache of another's id and attributes, whole or not at all.

    Raises:
        UsageError: the path holds something else, cannot be written, or the views do not fit spans.
        CorruptError: the other's sample names are damaged.
    """
    grid, tars = like.grid, range(like.grid.num_tars)
    check_views(num_views, grid.span_views)
    check_limits(grid.with_views(num_views), like.info.specs)
    attributes = with_extent(like.attributes(), views=num_views)
    arrays = like.array_metadata(num_views)
    samples = {"uids": [like.uids(t) for t in tars], "contents": [like.contents(t) for t in tars]}
    return _publish(
        path,
        {ROOT: to_text(root_document(attributes, None))}
        | {array_document(name): to_text(document) for name, document in arrays.items()}
        | sample_objects(grid, samples),
    )


def _publish(path: Path, objects: dict[str, bytes]) -> Cache:
    absent = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            made = Folder(Path(scratch) / "cache")
            made.write(objects)
            os.rename(made.path, path)
        for folder in (path, *absent):
            sync(folder.parent)
    except OSError as error:
        raise UsageError(f"{path}: cannot create the cache: {error.strerror}") from error
    return open_cache(path)


def metadata_objects(info: CacheInfo, grid: Grid) -> dict[str, bytes]:
    """Return the metadata documents of a new cache, by name."""
    root = root_document({"kdcache": info.attributes(grid)}, None)
    arrays = array_documents(info.specs, grid, witnesses=info.witnesses)
    return {ROOT: to_text(root)} | {array_document(n): to_text(d) for n, d in arrays.items()}


def sample_objects(grid: Grid, samples: Mapping[str, Samples]) -> dict[str, bytes]:
    """Return the objects that tell of each tar's rows, by name. samples: uids and contents."""
    objects = {ROWS: rows_object([len(tar) for tar in samples["uids"]])}
    for name, parts in samples.items():
        for tar, part in enumerate(parts):
            objects[f"{name}/c/{tar}/0"] = sample_object(grid, part)
    return objects


def rows_object(rows: Sequence[int] | NDArray[np.int64]) -> bytes:
    """Return the object that holds the number of rows of each tar."""
    return with_checksum(np.array(rows, "<u4").tobytes())


def sample_object(grid: Grid, digests: NDArray[np.uint64]) -> bytes:
    """Return the object that holds the uids, or the contents, of a tar's rows."""
    padded = np.zeros(grid.max_rows, "<u8")
    padded[: len(digests)] = digests
    return with_checksum(padded.tobytes())
