"""What is asked of a seed, and the files that its rows are kept in. Imports no torch.

A run that was killed goes on after the last file; a file of other settings is made anew.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.files import write_whole
from pipelines.study.cases import Unit
from pipelines.study.design import Part

Row = dict[str, Any]


class Task(NamedTuple):
    """The units of a seed. part: what their students are measured on."""

    seed: int
    units: tuple[Unit, ...]
    part: Part

    @property
    def teachers(self) -> list[bool]:
        """Return for each teacher that is measured whether it is the small one."""
        small = any(unit.section == "small_teacher" for unit in self.units)
        return [False, True] if small else [False]


class SeedRows(NamedTuple):
    """A row of each teacher, and the rows of each unit, in the order of their task."""

    teachers: list[Row]
    units: list[list[Row]]


def unit_path(folder: Path, unit: Unit) -> Path:
    """Return the file that a unit's rows are kept in."""
    return folder / "units" / f"{unit.name}.json"


def teacher_path(folder: Path, seed: int, *, small: bool) -> Path:
    """Return the file that a teacher's row is kept in."""
    return folder / "units" / f"seed-{seed}-{'small-' if small else ''}teacher.json"


def read_rows(path: Path, settings: Any) -> list[Row] | None:
    """Return the rows in a file; None where it is absent, damaged or of other settings."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == json.loads(json.dumps(settings)):
            rows: list[Row] = kept["rows"]
            return rows
    return None


def keep_rows(path: Path, settings: Any, make: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows in a file; made, and written whole, where none of these settings is there."""
    rows = read_rows(path, settings)
    if rows is None:
        rows = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": settings, "rows": rows}, indent=1)
        write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
    return rows


def read_seed(folder: Path, task: Task) -> SeedRows | None:
    """Return the rows of a task if all are kept."""
    kept = {teacher_path(folder, task.seed, small=small): None for small in task.teachers}
    teachers = _read_all(kept)
    units = _read_all({unit_path(folder, unit): asdict(unit) for unit in task.units})
    if teachers is None or units is None:
        return None
    return SeedRows([row for (row,) in teachers], units)


def _read_all(settings: Mapping[Path, Any]) -> list[list[Row]] | None:
    found = [read_rows(path, own) for path, own in settings.items()]
    kept = [rows for rows in found if rows is not None]
    return kept if len(kept) == len(found) else None
