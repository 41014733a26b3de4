"""Opening caches and reading them: seconds, and memory, found by processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from kdcache.cache.store import Cache
from pipelines.bench.filled import CacheSizes, Found, sealed_empty
from pipelines.bench.record import make_bar
from pipelines.bench.timing import rounded

OPEN_MS_BAR = 100.0
OPEN_MB_BAR = 50.0
TILES_BAR = 4.0  # tiles' decoded size


def watched(path: Path, *, tiles: int | None = None) -> dict[str, float]:
    """Return what a process of its own found."""
    command = [sys.executable, "-m", "pipelines.bench.watch", str(path)]
    command += [] if tiles is None else ["--tiles", str(tiles)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def opening_bars(folder: Path, sizes: CacheSizes) -> Found:
    """Return the bars of opening a cache with many tars and views, and one with fewer views."""
    many, few = sizes.opened_views
    paths = {views: folder / f"open-{views}" for views in (many, few)}
    for views, path in paths.items():
        sealed_empty(path, num_tars=sizes.tars, num_views=views)
    runs: dict[int, list[dict[str, float]]] = {many: [], few: []}
    for _ in range(sizes.rounds):
        for views, path in paths.items():
            runs[views].append(watched(path))
    bars = [
        make_bar("open_ms", _all(runs[many], "ms"), bar=OPEN_MS_BAR, better="lower", unit="ms"),
        make_bar(
            "open_memory", _all(runs[many], "grown_mb"), bar=OPEN_MB_BAR, better="lower", unit="MB"
        ),
    ]
    pairs = zip(_all(runs[many], "ms"), _all(runs[few], "ms"), strict=True)
    figures: dict[str, Any] = {
        f"{views}_views": {name: rounded(median(_all(found, name))) for name in found[0]}
        for views, found in runs.items()
    }
    figures["times_as_long"] = rounded(median(own / other for own, other in pairs))
    return bars, {"opening": figures}


def _all(runs: list[dict[str, float]], name: str) -> list[float]:
    return [run[name] for run in runs]


def reading_bars(cache: Cache, sizes: CacheSizes) -> Found:
    """Return the bar of memory while many large tiles are read, each once."""
    runs = [watched(cache.path, tiles=sizes.read_tiles) for _ in range(min(sizes.rounds, 3))]
    bar = make_bar(
        "memory_growth_while_reading",
        _all(runs, "grown_tiles"),
        bar=TILES_BAR,
        better="lower",
        unit="tiles",
    )
    figures = {name: rounded(median(_all(runs, name))) for name in runs[0]}
    return [bar], {"memory_while_reading": figures}
