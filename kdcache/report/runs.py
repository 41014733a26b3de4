"""What training runs wrote down: their settings, and what was measured as they went.

Reads config.json and metrics.jsonl of a run's folder and nothing else, so that runs may be looked
at while they train, and without torch.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from kdcache.errors import CorruptError, UsageError
from kdcache.files import read_small
from kdcache.identity import int_of, read_strict_json

CONFIG, METRICS = "config.json", "metrics.jsonl"  # as in kdcache.student, which imports torch
NEEDED = {"student": str, "learn": str, "epochs": int, "batch_size": int}
MOST_BYTES = 1 << 24  # of settings
MOST = 2**53  # of steps and epochs, which are drawn as floats
VAST, TINY = 1e60, 1e-60  # beyond which, and nearer to 0 than which, numbers tell nothing


@dataclass(frozen=True)
class Line:
    """Numbers by their names, after a step. epoch: the one that it closes; None: within one."""

    step: int
    epoch: int | None
    numbers: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class RunLog:
    """A run's folder, the settings of its config.json, and its metrics in order of steps."""

    folder: Path
    settings: Mapping[str, Any]
    lines: tuple[Line, ...]

    @property
    def epochs(self) -> int:
        """Return the epochs that the run is to have."""
        return int(self.settings["epochs"])

    @property
    def closing(self) -> tuple[Line, ...]:
        """Return the lines that close epochs."""
        return tuple(line for line in self.lines if line.epoch is not None)

    @property
    def epochs_done(self) -> int:
        """Return the number of the last epoch that was closed, 0 before."""
        return next((line.epoch for line in reversed(self.lines) if line.epoch is not None), 0)

    def epoch_values(self, name: str) -> list[float]:
        """Return a metric's finite values at the ends of epochs."""
        found = [line.numbers[name] for line in self.closing if name in line.numbers]
        return [value for value in found if math.isfinite(value)]


def read_run(folder: Path) -> RunLog:
    """Return what a run wrote down; metrics that are not there yet are none.

    Raises:
        UsageError: the folder is no run's.
        CorruptError: a file is damaged; names the line.
    """
    path = folder / CONFIG
    try:
        settings = read_strict_json(read_small(path, most_bytes=MOST_BYTES), most_bytes=MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder}: no run here; kdcache train --out makes one") from None
    except ValueError as error:
        raise CorruptError(f"{path}: no readable settings: {error}; train again") from error
    known = settings if isinstance(settings, dict) else {}
    absent = [name for name, kind in NEEDED.items() if type(known.get(name)) is not kind]
    if absent:
        raise UsageError(f"{folder}: no run here; its {CONFIG} says no {', '.join(absent)}")
    if odd := [name for name in ("epochs", "batch_size") if not is_count(settings[name])]:
        raise CorruptError(f"{path}: {' and '.join(odd)} out of 1 to {MOST}; train again")
    metrics = folder / METRICS
    return RunLog(folder, settings, read_metrics(metrics) if metrics.is_file() else ())


def read_metrics(path: Path) -> tuple[Line, ...]:
    """Return the lines of a metrics.jsonl; one without its end, killed or being written, is none.

    Raises:
        CorruptError: another line is damaged, or steps or epochs do not rise.
    """
    lines: list[Line] = []
    place = (0, 0)
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = parse_line(json.loads(text, parse_int=int_of))
        except (ValueError, OverflowError, RecursionError) as error:
            raise CorruptError(
                f"{path}: line {number} is damaged ({error}); train again, or go on from a "
                "checkpoint before it"
            ) from error
        epoch = place[1] if line.epoch is None else line.epoch
        if line.step < place[0] or (line.epoch is not None and epoch <= place[1]):
            raise CorruptError(
                f"{path}: line {number} has step {line.step} and epoch {epoch}, after step "
                f"{place[0]} and epoch {place[1]}; two runs wrote there: train again"
            )
        place = (line.step, epoch)
        lines.append(line)
    return tuple(lines)


def parse_line(value: Any) -> Line:
    """Return a line of metrics as a record, without what is no number; vast ones are infinite.

    Raises:
        ValueError: value is no object, or has no step.
    """
    if not isinstance(value, Mapping):
        raise ValueError("no object")
    step, epoch = value.get("step"), value.get("epoch")
    if not is_count(step):
        raise ValueError(f"step {step!r:.40}")
    if epoch is not None and not is_count(epoch):
        raise ValueError(f"epoch {epoch!r:.40}")
    numbers = {
        name: _told(float(number))
        for name, number in value.items()
        if name not in ("step", "epoch") and type(number) in (int, float)
    }
    return Line(step, epoch, numbers)


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is a number of steps, epochs, images or views, one or more."""
    return type(value) is int and 1 <= value <= MOST


def _told(number: float) -> float:
    if abs(number) > VAST:
        return math.copysign(math.inf, number)
    return 0.0 if abs(number) < TINY else number


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, with as many before it as tell it from the others.

    Raises:
        UsageError: two are one folder.
    """
    found = Counter(folder.resolve() for folder in folders)
    for folder in folders:
        if found[folder.resolve()] > 1:
            raise UsageError(f"{folder}: given twice; give each run once")
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    depths = [1] * len(folders)
    while True:
        names = [str(Path(*p[-depth:])) for p, depth in zip(parts, depths, strict=True)]
        count = Counter(names)
        if len(count) == len(names):
            return names
        depths = [d + (count[name] > 1) for d, name in zip(depths, names, strict=True)]


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all, each with its values in order.

    Settings in settings have names with dots. One that is absent counts as None.
    """
    tables = [flat(one) for one in settings]
    names = sorted({name for one in tables for name in one})
    values = {name: [one.get(name) for one in tables] for name in names}
    return {name: found for name, found in values.items() if any(v != found[0] for v in found)}


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return settings without tables in them: their names have dots, and before, in front."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found
