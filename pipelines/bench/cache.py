"""The cache benchmark: bytes and errors of targets, reading, opening and writing them, memory.

    make bench-cache
    python -m pipelines.bench.cache --quick

Takes about 3 minutes on two quiet cores and writes build/bench/cache.json; everything is made
afresh, from simulated logits. Exit code 1: a bar does not hold.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.bench.encodings import encoding_bars
from pipelines.bench.filled import DEFAULT, FULL, QUICK, Found, encode
from pipelines.bench.logits import simulate_logits
from pipelines.bench.opening import opening_bars, reading_bars
from pipelines.bench.record import (
    Bar,
    Progress,
    conclude,
    load_average,
    make_record,
    read_options,
)
from pipelines.bench.tiles import large_cache, large_tile_bars, tile_bars
from pipelines.bench.writing import encoding_figures, writing_bars

PACKAGES = ("google-crc32c", "numcodecs", "numpy", "torch", "zarr")
_WIDTH = 110  # of tables that are not shown on a terminal


def run(folder: Path, *, quick: bool) -> Found:
    """Return all bars and figures. folder: what is made afresh."""
    say, sizes = Progress(), QUICK if quick else FULL
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "quick": quick,
        "load_average_at_start": round(load_average(), 2),
    }
    bars: list[Bar] = []

    def add(found: Found, text: str) -> None:
        bars.extend(found[0])
        figures.update(found[1])
        say(text)

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    add(encoding_bars(folder, sizes), "bytes and errors")
    logits_NC = simulate_logits("ce", num_rows=8 * sizes.rows)
    add(tile_bars(folder, logits_NC, sizes), "tiles")
    large = large_cache(folder / "large", encode(DEFAULT, logits_NC), sizes)
    add(large_tile_bars(folder, large, sizes), "large tiles")
    add(reading_bars(large, sizes), "memory")
    add(opening_bars(folder, sizes), "opening")
    add(writing_bars(folder, logits_NC, sizes), "writing")
    add(([], encoding_figures(logits_NC, sizes)), "encoding")
    figures["cores_used_by_others"] = say.others
    return bars, figures


def show_tables(figures: dict[str, Any]) -> dict[str, Any]:
    """Print groups whose entries have the same figures as tables; return all others."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    others = {}
    for group, entries in figures.items():
        rows = entries.values() if isinstance(entries, dict) else ()
        columns = {tuple(row) if isinstance(row, dict) else None for row in rows}
        if len(columns) != 1 or None in columns:
            others[group] = entries
            continue
        table = Table("", title=group, title_justify="left")
        for column in columns.pop() or ():
            table.add_column(column, justify="right")
        for name, row in entries.items():
            table.add_row(name, *(f"{value:g}" for value in row.values()))
        console.print(table)
    return others


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, write its record, and print it."""
    options = read_options(
        "cache", "Measure the bytes, errors, reading, opening and writing of a cache.", arguments
    )
    bars, figures = run(options.out / "cache", quick=options.quick)
    record = make_record("cache", bars, figures=figures, packages=PACKAGES)
    conclude(
        record, options, shown=record.model_copy(update={"figures": show_tables(record.figures)})
    )


if __name__ == "__main__":
    main()
