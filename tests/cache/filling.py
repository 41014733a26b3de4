"""Caches filled with encoded random logits, without teacher or images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.cache.create import create_cache
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit
from kdcache.cache.store import Cache
from kdcache.targets.encoding import to_arrays
from kdcache.targets.fidelity import NO_ROWS
from tests import tiny

Tiles = dict[tuple[int, int], dict[str, NDArray[Any]]]


@dataclass(eq=False)
class Filled:
    """A cache, and what was written to it by (tar, view): fields, and witness."""

    cache: Cache
    unusable: dict[int, tuple[int, ...]]
    fields: Tiles = field(default_factory=dict)
    witness: dict[tuple[int, int], NDArray[np.uint64]] = field(default_factory=dict)

    def write(self, span: Span, *, seed: int = 0) -> Commit:
        """Write a span of random targets."""
        cache, rng = self.cache, np.random.default_rng([seed, *span])
        views, rows = cache.grid.views(span), int(cache.rows[span.tar])
        shape = (len(views) * rows, cache.info.num_classes)
        logits = torch.from_numpy(rng.normal(0, 4, shape).astype(np.float32))
        encoded = to_arrays(cache.info.encoding.encode(logits), cache.info.specs)
        arrays = {}
        for spec in cache.info.specs:
            if spec.layout == "counts":
                continue
            arrays[spec.name] = encoded[spec.name].reshape(len(views), rows, spec.width)
            arrays[spec.name][:, list(self.unusable.get(span.tar, ()))] = spec.fill
        blocks = -(-rows // cache.grid.block)
        witness = rng.integers(1, 2**64, (len(views), blocks), dtype=np.uint64)
        for number, view in enumerate(views):
            self.fields[span.tar, view] = {name: a[number] for name, a in arrays.items()}
            self.witness[span.tar, view] = witness[number]
        return cache.write_span(
            span,
            arrays,
            witnesses=[witness],
            layers={},
            fidelity=NO_ROWS,
            versions={"kdcache": "0"},
            started=time.monotonic(),
        )

    def check(self, cache: Cache, tar: int, view: int) -> None:
        """Read a tile and its witness and compare them with what was written."""
        tile = cache.read_tile(tar, view)
        usable = np.ones(len(tile.usable), bool)
        usable[list(self.unusable.get(tar, ()))] = False
        np.testing.assert_array_equal(tile.usable, usable)
        assert tile.fields.keys() == self.fields[tar, view].keys()
        for name, written in self.fields[tar, view].items():
            found = tile.fields[name].numpy()
            assert found.shape == written.shape
            np.testing.assert_array_equal(found[usable], written[usable])
        np.testing.assert_array_equal(cache.read_witness(tar, view), self.witness[tar, view])

    def check_all(self, cache: Cache) -> None:
        """Check all tiles that were written."""
        for tar, view in self.fields:
            self.check(cache, tar, view)


def empty(
    path: Path,
    *,
    encoding: str = "topk:3",
    num_classes: int = 5,
    rows: Sequence[int] = (6, 1, 9),
    unusable: dict[int, tuple[int, ...]] | None = None,
    num_views: int = 4,
    span_views: int | None = 2,
    teacher: str = "t",
) -> Filled:
    """Return a cache without spans."""
    first = np.cumsum([1, *rows])
    names = [np.arange(f, f + n, dtype=np.uint64) for f, n in zip(first, rows, strict=False)]
    contents = [~part for part in names]
    cache = create_cache(
        path,
        tiny.make_info(num_classes, encoding, teacher=teacher, uids=names, contents=contents),
        num_views=num_views,
        span_views=span_views,
        uids=names,
        contents=contents,
    )
    return Filled(cache, unusable or {})


def full(path: Path, *, seed: int = 0, **options: Any) -> Filled:
    """Return a cache with all spans; options as empty."""
    filled = empty(path, **options)
    for span in filled.cache.grid.spans():
        filled.write(span, seed=seed)
    return filled
