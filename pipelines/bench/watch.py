"""A cache opened and read in a process of its own: seconds, and resident memory.

    python -m pipelines.bench.watch build/bench/cache/large --tiles 200

prints what it found as JSON. Without --tiles the cache is only opened.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from kdcache.cache.store import Cache, open_cache
from pipelines.bench.timing import Meter

_MB = 1e6


def resident_bytes() -> int:
    """Return what this process holds in memory, shared pages too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch_opening(path: Path) -> dict[str, float]:
    """Return what it takes to open a cache and to see that it is complete."""
    before, meter = resident_bytes(), Meter()
    cache = open_cache(path)
    sealed = cache.valid_seal() is not None
    cost = meter.read(1)
    grown = resident_bytes() - before
    assert sealed, path
    return {"ms": 1e3 * cost.wall_s, "cpu_ms": 1e3 * cost.cpu_s, "grown_mb": grown / _MB}


def watch_reading(path: Path, *, tiles: int) -> dict[str, float]:
    """Return how far memory grows over that many tiles, in bytes and in tiles.

    It is compared with what there was before the first tile, and after it.
    """
    cache = open_cache(path)
    opened = resident_bytes()
    size = _read(cache, 0)
    first = resident_bytes()
    peak = first
    for view in range(1, tiles):
        tile = cache.read_tile(0, view)
        peak = max(peak, resident_bytes())
        del tile
    return {
        "tiles": tiles,
        "tile_mb": size / _MB,
        "grown_mb": (peak - opened) / _MB,
        "grown_tiles": (peak - opened) / size,
        "grown_tiles_after_the_first": (peak - first) / size,
    }


def _read(cache: Cache, view: int) -> int:
    """Read a tile, drop it, and return its size in bytes."""
    return sum(tensor.nbytes for tensor in cache.read_tile(0, view).fields.values())


def main(arguments: list[str] | None = None) -> None:
    """Open a cache, or read tiles of it, and print what that took."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.watch",
        description="Open a cache, or read tiles of it; print seconds and memory as JSON.",
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("--tiles", type=int, default=None, help="read so many tiles of tar 0")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.tiles is None:
        found = watch_opening(options.cache)
    else:
        found = watch_reading(options.cache, tiles=options.tiles)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
