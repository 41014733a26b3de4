"""The Zarr v3 metadata of a cache, written and compared as whole documents.

Invariant: what a cache's attributes say decides every byte of its arrays' metadata, so that any
change of them is seen when the cache is opened.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numcodecs import blosc

from kdcache.cache.layout import Grid
from kdcache.cache.shard import CODECS, LEVEL
from kdcache.targets.target import FieldSpec

ROOT = "zarr.json"
_SHUFFLES = {blosc.NOSHUFFLE: "noshuffle", blosc.SHUFFLE: "shuffle", blosc.BITSHUFFLE: "bitshuffle"}

Document = dict[str, Any]


def array_document(name: str) -> str:
    """Return the name of an array's metadata document."""
    return f"{name}/{ROOT}"


def array_documents(
    specs: Sequence[FieldSpec], grid: Grid, *, witnesses: Sequence[str]
) -> dict[str, Document]:
    """Return the metadata of each array of a cache, by array."""
    tars, views, rows = grid.num_tars, grid.num_views, grid.max_rows
    documents = {spec.name: _field(spec, grid) for spec in specs}
    for name in witnesses:
        documents[name] = _array(
            (tars, views, grid.blocks),
            (1, grid.span_views, grid.blocks),
            dtype="u8",
            dimensions=("tar", "view", "block"),
        )
    for name in ("uids", "contents"):
        documents[name] = _array((tars, rows), (1, rows), dtype="u8", dimensions=("tar", "row"))
    documents["rows"] = _array((tars,), (tars,), dtype="u4", dimensions=("tar",))
    return documents


def root_document(attributes: Document, consolidated: dict[str, Document] | None) -> Document:
    """Return the root group's metadata. consolidated: that of the arrays, in a sealed cache."""
    document: Document = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    if consolidated is not None:
        document["consolidated_metadata"] = consolidation(consolidated)
    return document


def consolidation(documents: dict[str, Document]) -> Document:
    """Return the arrays' metadata as the root group repeats them."""
    return {"kind": "inline", "must_understand": False, "metadata": documents}


def to_text(document: Document) -> bytes:
    """Return a metadata document's bytes."""
    return json.dumps(document, indent=2).encode()


def _field(spec: FieldSpec, grid: Grid) -> Document:
    tars, views, rows = grid.num_tars, grid.num_views, grid.max_rows
    flat = spec.layout == "ragged"
    inner = (rows * spec.width,) if flat else (rows, spec.width)
    width = "entry" if flat else spec.name
    document = _array(
        (tars, views, *inner),
        (1, grid.span_views, *inner),
        dtype=spec.dtype,
        dimensions=("tar", "view", "entry") if flat else ("tar", "view", "row", width),
        fill="NaN" if np.isnan(spec.fill) else spec.fill,
    )
    name, shuffle, block_bytes = CODECS[spec.compression]
    frame = {
        "typesize": np.dtype(spec.dtype).itemsize,
        "cname": name,
        "clevel": LEVEL,
        "shuffle": _SHUFFLES[shuffle],
        "blocksize": block_bytes,
    }
    checksum = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1, 1, *inner],
        "codecs": [_bytes(spec.dtype), {"name": "blosc", "configuration": frame}, checksum],
        "index_codecs": [_bytes("u8"), checksum],
        "index_location": "end",
    }
    document["codecs"] = [{"name": "sharding_indexed", "configuration": sharding}]
    return document


def _array(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    *,
    dtype: str,
    dimensions: tuple[str, ...],
    fill: float | str = 0,
) -> Document:
    return {
        "shape": list(shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [_bytes(dtype), {"name": "crc32c"}],
        "attributes": {},
        "dimension_names": list(dimensions),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _bytes(dtype: str) -> Document:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
