"""Caches of simulated targets, of any size, without teacher or images."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.cache.create import create_cache
from kdcache.cache.info import CacheInfo
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, Seal, write_seal
from kdcache.cache.metadata import ROOT, root_document, to_text
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache
from kdcache.data.dataset import tar_digest
from kdcache.identity import digest
from kdcache.targets.encoding import Encoding, parse_encoding, to_arrays
from kdcache.targets.fidelity import NO_ROWS, Fidelity, measure
from kdcache.targets.packed import Arrays
from pipelines.bench.material import mixed_recipe
from pipelines.bench.record import Bar

Found = tuple[list[Bar], dict[str, Any]]  # bars and figures of one part

SPAN_VIEWS = 8
DEFAULT = "packed:32"
_CHUNK_ENTRIES = 2**18  # logits encoded at once, which the processor's cache holds


@dataclass(frozen=True)
class CacheSizes:
    """How much is measured.

    seeds: of the logits whose bytes and errors have bars. rows: of tiles, large_rows: of large
    ones. kind_rows: logits of each other kind. rounds: of each comparison. passes: over the eight
    tiles in one round, of quick readers. written_spans: of one round. tars, opened_views: of the
    caches that are opened. read_tiles: large ones that are read while memory is watched.
    """

    seeds: int
    rows: int
    large_rows: int
    kind_rows: dict[str, int]
    rounds: int
    passes: int
    written_spans: int
    tars: int
    opened_views: tuple[int, int]
    read_tiles: int


FULL = CacheSizes(
    seeds=3,
    rows=1024,
    large_rows=8192,
    kind_rows={"smoothed": 8192, "flat": 8192, "ce21k": 1024},
    rounds=7,
    passes=40,
    written_spans=4,
    tars=1281,
    opened_views=(300, 30),
    read_tiles=200,
)
QUICK = CacheSizes(
    seeds=1,
    rows=16,
    large_rows=64,
    kind_rows={"smoothed": 32, "flat": 32, "ce21k": 16},
    rounds=1,
    passes=1,
    written_spans=1,
    tars=12,
    opened_views=(30, 6),
    read_tiles=16,
)


# --- targets -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Targets:
    """Encoded logits. fields: arrays (N, width). fidelity: what the encoding lost."""

    encoding: Encoding
    num_classes: int
    fields: Arrays
    fidelity: Fidelity

    def tiles(self, num_rows: int) -> Arrays:
        """Return the rows as eight tiles of num_rows, (8, num_rows, width), each unlike the others.

        Where there are too few, they are used again, from other rows on.
        """
        step = num_rows if SPAN_VIEWS * num_rows <= self.fidelity.rows else num_rows // SPAN_VIEWS
        rows_VR = step * np.arange(SPAN_VIEWS)[:, None] + np.arange(num_rows)
        return {name: array[rows_VR % len(array)] for name, array in self.fields.items()}


def encode(name: str, logits_NC: NDArray[np.float32], *, measured: bool = True) -> Targets:
    """Return logits in an encoding. measured: say what it loses, which takes longer."""
    num_rows, num_classes = logits_NC.shape
    encoding = parse_encoding(name, num_classes)
    parts: list[Arrays] = []
    fidelity = NO_ROWS
    step = max(_CHUNK_ENTRIES // num_classes, 1)
    for start in range(0, num_rows, step):
        logits = torch.from_numpy(logits_NC[start : start + step])
        fields = encoding.encode(logits)
        parts.append(to_arrays(fields, encoding.specs(num_classes)))
        if measured:
            fidelity += measure(logits, fields, encoding)
    joined = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
    return Targets(encoding, num_classes, joined, fidelity)


# --- caches --------------------------------------------------------------------------------


def empty_cache(
    path: Path,
    encoding: str,
    *,
    rows: Sequence[int],
    num_views: int,
    span_views: int | None = None,
    num_classes: int = 1000,
) -> Cache:
    """Return a new cache without targets, in place of what is there. rows: of each tar."""
    shutil.rmtree(path, ignore_errors=True)
    rng = np.random.default_rng(0)
    uids, contents = ([rng.integers(0, 2**64, n, np.uint64) for n in rows] for _ in range(2))
    tars = [
        {"name": f"{number:06d}.tar", "num_rows": len(names), "digest": tar_digest(names, data)}
        for number, (names, data) in enumerate(zip(uids, contents, strict=True))
    ]
    info = CacheInfo(
        dataset={
            "id": digest({"tars": [tar["digest"] for tar in tars]}),
            "num_samples": sum(rows),
            "tars": tars,
        },
        recipe=mixed_recipe(),
        teacher={"id": "simulated", "spec": "none"},
        encoding=parse_encoding(encoding, num_classes),
        num_classes=num_classes,
        classes=None,
        licences={"data": None, "weights": None, "output": None},
        versions={},
    )
    return create_cache(
        path, info, num_views=num_views, span_views=span_views, uids=uids, contents=contents
    )


def fill_span(cache: Cache, span: Span, tiles: Arrays, *, fidelity: Fidelity = NO_ROWS) -> Commit:
    """Write a span of tiles (G, rows, width) as precompute does."""
    rng = np.random.default_rng(span.run)
    witness = rng.integers(0, 2**64, (cache.grid.span_views, cache.grid.blocks), np.uint64)
    return cache.write_span(
        span,
        tiles,
        witnesses=[witness],
        layers={},
        fidelity=fidelity,
        versions={},
        started=time.monotonic(),
    )


def filled_cache(path: Path, targets: Targets, *, num_rows: int, num_views: int) -> Cache:
    """Return a new cache of one tar, full of the targets; num_views: a multiple of eight."""
    cache = empty_cache(
        path,
        str(targets.encoding),
        rows=[num_rows],
        num_views=num_views,
        span_views=SPAN_VIEWS,
        num_classes=targets.num_classes,
    )
    tiles = targets.tiles(num_rows)
    for span in cache.grid.spans():
        fill_span(cache, span, {name: np.roll(a, 5 * span.run, 1) for name, a in tiles.items()})
    seal(cache)
    return cache


def sealed_empty(path: Path, *, num_tars: int, num_views: int) -> Cache:
    """Return a cache of ImageNet's extent that says it is complete, though it holds no tile."""
    rows = [1000 + number % 2 for number in range(num_tars)]
    cache = empty_cache(path, DEFAULT, rows=rows, num_views=num_views)
    root = root_document({"kdcache": cache.info.attributes(cache.grid)}, cache.array_metadata())
    cache.folder.publish(ROOT, to_text(root), replace=True)
    size_bytes = 57 * num_views * sum(rows)
    write_seal(cache.folder, Seal(cache.info.id, num_views, size_bytes, {}, NO_ROWS))
    return cache
