"""Writing spans: rows per second, bytes written for each byte kept, zarr-python beside it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from kdcache.cache.layout import Span
from kdcache.cache.store import Cache
from kdcache.targets.packed import Arrays
from pipelines.bench.filled import (
    DEFAULT,
    SPAN_VIEWS,
    CacheSizes,
    Found,
    empty_cache,
    encode,
    fill_span,
)
from pipelines.bench.record import make_bar
from pipelines.bench.timing import Cost, Work, alternate, rounded, speedups, timed

ENCODINGS = ("packed:32", "packed:10", "topk:32", "adaptive:0.0025", "dense:u1", "dense:f2")
ROWS_BAR = 150_000.0
AMPLIFICATION_BAR = 1.05


def written_bytes() -> int:
    """Return what this process has handed to the system to write."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


class Writer:
    """Writes spans of eight views, another in each round. written: bytes a byte of objects."""

    def __init__(self, cache: Cache, tiles: Arrays, *, spans: int) -> None:
        self._cache, self._tiles, self._spans = cache, tiles, spans
        self.written: list[float] = []

    def ours(self, number: int) -> int:
        """Write the spans of a round as precompute does."""
        before, kept = written_bytes(), 0
        for span in self._round(number):
            kept += fill_span(self._cache, span, self._tiles).size_bytes
        self.written.append((written_bytes() - before) / kept)
        return self._rows

    def zarr(self, number: int) -> int:
        """Write the same shards through zarr-python, which neither syncs nor commits."""
        group: Any = zarr.open_group(str(self._cache.path), mode="r+", use_consolidated=False)
        arrays = {name: group[name] for name in self._tiles}
        before = written_bytes()
        for span in self._round(number):
            first, last = self._cache.grid.views(span)[0], self._cache.grid.views(span)[-1]
            for name, array in arrays.items():
                array[0, first : last + 1] = self._tiles[name]
        kept = sum(
            path.stat().st_size
            for span in self._round(number)
            for name in self._tiles
            for path in [self._cache.path / name / "c/0" / str(span.run) / "0/0"]
        )
        self.written.append((written_bytes() - before) / kept)
        return self._rows

    def _round(self, number: int) -> list[Span]:
        return [Span(0, number * self._spans + run) for run in range(self._spans)]

    @property
    def _rows(self) -> int:
        return self._spans * SPAN_VIEWS * int(self._cache.rows[0])


def writing_bars(folder: Path, logits_NC: NDArray[np.float32], sizes: CacheSizes) -> Found:
    """Return the bars of writing in the default encoding."""
    tiles = encode(DEFAULT, logits_NC, measured=False).tiles(sizes.rows)
    writers = {}
    for name in ("kdcache", "zarr"):
        views = SPAN_VIEWS * sizes.written_spans * (sizes.rounds + 1)
        cache = empty_cache(
            folder / f"write-{name}",
            DEFAULT,
            rows=[sizes.rows],
            num_views=views,
            span_views=SPAN_VIEWS,
        )
        writers[name] = Writer(cache, tiles, spans=sizes.written_spans)
    works = {"kdcache": timed(writers["kdcache"].ours), "zarr": timed(writers["zarr"].zarr)}
    costs = alternate(works, rounds=sizes.rounds)
    written = {name: writer.written[1:] for name, writer in writers.items()}
    bars = [
        make_bar("write_per_core", _rates(costs["kdcache"]), bar=ROWS_BAR, unit="rows/s"),
        make_bar("write_amplification", written["kdcache"], bar=AMPLIFICATION_BAR, better="lower"),
    ]
    figures = {
        name: {
            "rows_per_s_of_wall": rounded(median(cost.rate for cost in found)),
            "rows_per_s_of_cpu": rounded(median(_rates(found))),
            "times_kdcache": rounded(median(speedups(costs["kdcache"], found, clock="wall"))),
            "in_cpu": rounded(median(speedups(costs["kdcache"], found, clock="cpu"))),
            "bytes_written_per_byte": rounded(median(written[name])),
        }
        for name, found in costs.items()
    }
    return bars, {"writing_spans": figures}


def _rates(costs: Sequence[Cost]) -> list[float]:
    return [1 / cost.cpu_s for cost in costs]


def encoding_figures(logits_NC: NDArray[np.float32], sizes: CacheSizes) -> dict[str, Any]:
    """Return what it costs to encode logits on the CPU, and to measure what is lost as well."""
    logits_NC = logits_NC[: sizes.rows]

    def work(name: str, *, measured: bool) -> Work:
        def encode_rows(_: int) -> int:
            encode(name, logits_NC, measured=measured)
            return len(logits_NC)

        return timed(encode_rows)

    works = {name: work(name, measured=False) for name in ENCODINGS}
    works |= {f"{name}, measured": work(name, measured=True) for name in ENCODINGS}
    costs = alternate(works, rounds=sizes.rounds)
    return {
        "encoding_a_view": {
            name: {
                "cpu_us": rounded(1e6 * median(cost.cpu_s for cost in costs[name])),
                "with_its_measure_us": rounded(
                    1e6 * median(cost.cpu_s for cost in costs[f"{name}, measured"])
                ),
            }
            for name in ENCODINGS
        }
    }
