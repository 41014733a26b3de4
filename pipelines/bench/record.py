"""What a benchmark found, as a file and as a table.

A record is written to build/bench/NAME.json; copies of real runs are kept in results/.
"""

import os
import platform
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kdcache.doctor.machine import processor
from kdcache.doctor.software import package_versions
from kdcache.files import write_whole
from kdcache.processes import num_cores
from kdcache.student.folder import describe_commit
from pipelines.bench.timing import rounded, tree_cpu_s

OUT = Path("build/bench")
_PROC = Path("/proc")
_WIDTH = 110  # of tables that are not shown on a terminal
_ROOT = Path(__file__).resolve().parents[2]


# --- the record ----------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Part):
    """Where a benchmark ran. cores: that it may use. gpu: None without one."""

    cpu: str
    cores: int
    gpu: str | None


class Bar(_Part):
    """One claim. value: the median of runs. holds: whether it is on the bar's better side."""

    name: str
    value: float
    bar: float
    better: Literal["higher", "lower"]
    unit: str
    holds: bool
    runs: tuple[float, ...]


class Record(_Part):
    """What one benchmark found. commit: None outside a repository. figures: what has no bar."""

    name: str
    date: str
    commit: str | None
    machine: Machine
    versions: dict[str, str]
    bars: tuple[Bar, ...]
    figures: dict[str, Any]


def make_bar(
    name: str,
    runs: Sequence[float],
    *,
    bar: float,
    better: Literal["higher", "lower"] = "higher",
    unit: str = "ratio",
) -> Bar:
    """Return the bar that the median of runs is held against."""
    value = median(runs)
    holds = value >= bar if better == "higher" else value <= bar
    return Bar(
        name=name,
        value=rounded(value),
        bar=bar,
        better=better,
        unit=unit,
        holds=holds,
        runs=tuple(rounded(run) for run in runs),
    )


def make_record(
    name: str, bars: Sequence[Bar], *, figures: Mapping[str, Any], packages: Sequence[str]
) -> Record:
    """Return the record of a benchmark that ran just now. packages: whose versions matter."""
    return Record(
        name=name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=describe_commit(_ROOT),
        machine=Machine(cpu=processor().value["model"], cores=num_cores(), gpu=_gpu_name()),
        versions={"python": platform.python_version(), **package_versions(packages)},
        bars=tuple(bars),
        figures=dict(figures),
    )


def write_record(record: Record, folder: Path) -> Path:
    """Write a record to FOLDER/NAME.json and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    text = record.model_dump_json(indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


# --- the table -----------------------------------------------------------------------------


def show(record: Record) -> None:
    """Print a record's bars, and its figures that are numbers, as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    machine = record.machine
    table = Table(title=f"{record.name}: {machine.cores} cores of {machine.cpu}")
    for column in ("", "found", "bar", "unit", "runs", ""):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for bar in record.bars:
        sign = "≥" if bar.better == "higher" else "≤"
        spread = f"{min(bar.runs):g} to {max(bar.runs):g}" if len(bar.runs) > 1 else ""
        verdict = "[green]holds[/]" if bar.holds else "[red]FAILS[/]"
        table.add_row(bar.name, f"{bar.value:g}", f"{sign} {bar.bar:g}", bar.unit, spread, verdict)
    if record.bars:
        console.print(table)
    for group, values in record.figures.items():
        _show_group(console, group, values)


def _show_group(console: Any, name: str, values: Any) -> None:
    if not isinstance(values, dict):
        console.print(f"{name}: {values}")
        return
    console.print(f"\n[bold]{name}[/]")
    for key, value in values.items():
        if isinstance(value, dict):
            text = ", ".join(f"{k} {v}" for k, v in value.items())
        else:
            text = str(value)
        console.print(f"  {key}: {text}", soft_wrap=True)


# --- running a benchmark -------------------------------------------------------------------


def read_options(name: str, description: str, arguments: Sequence[str] | None) -> Namespace:
    """Return --out and --quick of a benchmark's command; ends where it cannot measure."""
    parser = ArgumentParser(prog=f"python -m pipelines.bench.{name}", description=description)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the record, and of data")
    parser.add_argument("--quick", action="store_true", help="a short trial; its bars mean nothing")
    options = parser.parse_args(arguments)
    require_linux()
    return options


def conclude(record: Record, options: Namespace, *, shown: Record | None = None) -> None:
    """Write and print a record; end with exit code 1 where a bar does not hold.

    shown: what is printed in its place.
    """
    path = write_record(record, options.out)
    show(shown or record)
    print(f"\n{path}")
    failing = [bar.name for bar in record.bars if not bar.holds]
    if failing and not options.quick:
        sys.exit(f"{len(failing)} of {len(record.bars)} bars fail: {', '.join(failing)}")


def load_average() -> float:
    """Return the processes that ran or waited over the last minute."""
    return os.getloadavg()[0]


def require_linux() -> None:
    """End with a message where there is no /proc to read CPU times and memory from."""
    if not (_PROC / "self/smaps_rollup").exists():
        sys.exit("benchmarks read CPU times and memory from Linux's /proc, which is not here")


class Progress:
    """Says what has been done, with the seconds since the start.

    others: cores that other programs used meanwhile, by what was done; above a tenth or two,
    figures in seconds of the clock mean little.
    """

    def __init__(self) -> None:
        self.others: dict[str, float] = {}
        self._started = self._at = time.monotonic()
        self._busy_s, self._own_s = _busy_s(), tree_cpu_s()

    def __call__(self, text: str) -> None:
        now, busy_s, own_s = time.monotonic(), _busy_s(), tree_cpu_s()
        elsewhere_s = (busy_s - self._busy_s) - (own_s - self._own_s)
        self.others[text] = rounded(max(elsewhere_s / (now - self._at), 0.0))
        self._at, self._busy_s, self._own_s = now, busy_s, own_s
        print(f"{now - self._started:6.1f} s  {text}", file=sys.stderr, flush=True)


def _busy_s() -> float:
    """Return the CPU-seconds that all programs of this machine have used."""
    fields = (_PROC / "stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[:8])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
