"""Reading tiles: ours against np.load, zarr-python and the stores of others, page cache warm.

A tile is read whole into arrays, by one process; "entries" also turns ours into what the stores of
single rows hold, so that both sides end with the same arrays. Blosc uses one thread: zarr-python,
imported here, turns its threads off, as they are in a student's workers.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.store import Cache, open_cache
from kdcache.cache.zarr_path import read_by_zarr
from pipelines.bench.filled import (
    DEFAULT,
    SPAN_VIEWS,
    CacheSizes,
    Found,
    Targets,
    encode,
    filled_cache,
)
from pipelines.bench.record import make_bar
from pipelines.bench.stores import NpyFiles, Pickles, Records, TorchFiles, ZarrArrays, entries
from pipelines.bench.timing import Cost, Meter, Work, alternate, rounded, speedups, timed

OTHER_ENCODINGS = ("topk:32", "adaptive:0.0025", "dense:f2")
# By what is compared: who reads for us, and the bar at 1,024 rows.
BARS = {
    "np_load": ("kdcache", 0.70),
    "zarr_arrays": ("kdcache", 10.0),
    "pickles": ("kdcache_entries", 50.0),
    "records": ("kdcache_entries", 10.0),
}
LARGE_BAR = 0.30  # against np.load

_VIEWS = range(SPAN_VIEWS)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads a tile of tar 0. tiles: read in one round."""

    read: Callable[[int], Any]
    tiles: int

    def work(self, num_rows: int) -> Work:
        """Return work of one round, in rows."""

        def read_tiles(_: int) -> int:
            for number in range(self.tiles):
                self.read(number % SPAN_VIEWS)
            return self.tiles * num_rows

        return timed(read_tiles)


def first_reading(cache: Cache, *, passes: int) -> Work:
    """Return work that reads each tile once, commit records and shards' indices not known yet."""
    num_rows = int(cache.rows[0])

    def work(_: int) -> Cost:
        costs = []
        for _ in range(passes):
            fresh = open_cache(cache.path)
            meter = Meter()
            for view in _VIEWS:
                fresh.read_tile(0, view)
            costs.append(meter.read(SPAN_VIEWS * num_rows))
        return Cost(median(c.wall_s for c in costs), median(c.cpu_s for c in costs))

    return work


# --- tiles of 1,024 rows -------------------------------------------------------------------


def tile_bars(folder: Path, logits_NC: NDArray[np.float32], sizes: CacheSizes) -> Found:
    """Return the bars of tiles of 1,024 rows in the default encoding, and the costs of all."""
    targets = encode(DEFAULT, logits_NC, measured=False)
    cache = filled_cache(folder / "tiles", targets, num_rows=sizes.rows, num_views=SPAN_VIEWS)
    held = [entries(cache.read_tile(0, view)) for view in _VIEWS]
    arrays = NpyFiles(folder / "npy", cache, views=_VIEWS)
    kept_open, pickles = ZarrArrays(cache), Pickles(folder / "pickles", held)
    files = TorchFiles(folder / "torch", held)
    quick = SPAN_VIEWS * sizes.passes
    with closing(Records(folder / "records", held)) as records:
        readers = {
            "kdcache": Reader(lambda view: cache.read_tile(0, view), quick),
            "kdcache_entries": Reader(lambda view: entries(cache.read_tile(0, view)), quick),
            "np_load": Reader(arrays.read, quick),
            "zarr_arrays": Reader(kept_open.read, SPAN_VIEWS),
            "zarr_opening_each_time": Reader(lambda view: read_by_zarr(cache, 0, view), SPAN_VIEWS),
            "pickles": Reader(pickles.read, SPAN_VIEWS),
            "torch_files": Reader(files.read, 1),
            "records": Reader(records.read, SPAN_VIEWS),
        }
        check_readers(readers, cache)
        readers |= {
            f"kdcache_{name.replace(':', '_')}": _other(folder, logits_NC, name, sizes)
            for name in OTHER_ENCODINGS
        }
        works = {name: reader.work(sizes.rows) for name, reader in readers.items()}
        works["kdcache_first_reading"] = first_reading(cache, passes=sizes.passes)
        costs = alternate(works, rounds=sizes.rounds)
    bars = [
        make_bar(
            f"tile_read_vs_{name}_1024", speedups(costs[ours], costs[name], clock="wall"), bar=bar
        )
        for name, (ours, bar) in BARS.items()
    ]
    return bars, {"a_tile_of_1024": tile_figures(costs, sizes.rows)}


def _other(folder: Path, logits_NC: NDArray[np.float32], name: str, sizes: CacheSizes) -> Reader:
    targets = encode(name, logits_NC, measured=False)
    path = folder / f"tiles-{name.replace(':', '-')}"
    cache = filled_cache(path, targets, num_rows=sizes.rows, num_views=SPAN_VIEWS)
    tiles = SPAN_VIEWS * max(sizes.passes // 8, 1)
    return Reader(lambda view: cache.read_tile(0, view), tiles)


def check_readers(readers: dict[str, Reader], cache: Cache) -> None:
    """Check that all readers return the same arrays: tiles as stored, or entries."""
    for view in _VIEWS:
        tile = cache.read_tile(0, view)
        expected = {name: tensor.numpy() for name, tensor in tile.fields.items()}
        for name, reader in readers.items():
            found = reader.read(view)
            if isinstance(found, tuple):
                for ours, theirs in zip(entries(tile), found, strict=True):
                    _check_same(ours, theirs, name)
            elif isinstance(found, dict):
                assert found.keys() == expected.keys(), name
                for field, array in expected.items():
                    _check_same(array, found[field], name)


def _check_same(ours: NDArray[Any], theirs: NDArray[Any], name: str) -> None:
    assert ours.dtype == theirs.dtype, name
    np.testing.assert_array_equal(ours, theirs, name)


# --- tiles of 8,192 rows -------------------------------------------------------------------


def large_cache(path: Path, targets: Targets, sizes: CacheSizes) -> Cache:
    """Return a cache of as many large tiles as are read."""
    return filled_cache(path, targets, num_rows=sizes.large_rows, num_views=sizes.read_tiles)


def large_tile_bars(folder: Path, cache: Cache, sizes: CacheSizes) -> Found:
    """Return the bar of tiles of 8,192 rows, and their costs."""
    arrays = NpyFiles(folder / "npy-large", cache, views=_VIEWS)
    tiles = SPAN_VIEWS * max(sizes.passes // 8, 1)
    readers = {
        "kdcache": Reader(lambda view: cache.read_tile(0, view), tiles),
        "np_load": Reader(arrays.read, tiles),
        "zarr_arrays": Reader(ZarrArrays(cache).read, SPAN_VIEWS),
    }
    check_readers(readers, cache)
    works = {name: reader.work(sizes.large_rows) for name, reader in readers.items()}
    costs = alternate(works, rounds=sizes.rounds)
    ratios = speedups(costs["kdcache"], costs["np_load"], clock="wall")
    bars = [make_bar("tile_read_vs_np_load_8192", ratios, bar=LARGE_BAR)]
    return bars, {"a_tile_of_8192": tile_figures(costs, sizes.large_rows)}


def tile_figures(
    costs: dict[str, Sequence[Cost]] | dict[str, list[Cost]], num_rows: int
) -> dict[str, dict[str, float]]:
    """Return a row of the table for each reader. times: how many times slower than kdcache."""
    ours = costs["kdcache"]
    return {
        name: {
            "wall_us": rounded(1e6 * num_rows * median(cost.wall_s for cost in found)),
            "cpu_us": rounded(1e6 * num_rows * median(cost.cpu_s for cost in found)),
            "rows_per_s": rounded(median(cost.rate for cost in found)),
            "times_kdcache": rounded(median(speedups(ours, found, clock="wall"))),
            "in_cpu": rounded(median(speedups(ours, found, clock="cpu"))),
        }
        for name, found in costs.items()
    }
