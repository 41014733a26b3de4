"""What is asked of a seed, and the files that its rows are kept in. Imports no torch.

A run that was killed goes on after the last file. A file is made anew where its digest differs,
where it has other settings, or where its rows are not those of its students.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.files import read_small, write_whole
from kdcache.identity import digest, finite, read_strict_json
from pipelines.study.cases import Unit, columns
from pipelines.study.design import Part

Row = dict[str, Any]
_MOST_BYTES = 1 << 20
_MEASURES = ("kl", "agreement", "accuracy")


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
    """A row of each teacher, the rows of each unit, in the order of their task, and their origins.

    made: of each file, as made_here() has it.
    """

    teachers: list[Row]
    units: list[list[Row]]
    made: list[Row]


class File(NamedTuple):
    """A file of rows. named: what names each row; measures: its other columns."""

    path: Path
    settings: Row
    named: Sequence[Row]
    measures: tuple[str, ...]


class Kept(NamedTuple):
    """Rows of a file, a KL that is none being NaN, and where they were made."""

    rows: list[Row]
    made: Row


def unit_file(folder: Path, unit: Unit) -> File:
    """Return the file that a unit's rows are kept in."""
    size = ("bytes_per_view",) if unit.section == "encodings" else ()
    named = [columns(unit, case) for case in unit.cases]
    path = folder / "units" / f"{unit.name}.json"
    return File(path, asdict(unit), named, (*size, *_MEASURES))


def teacher_file(folder: Path, seed: int, *, part: Part, small: bool) -> File:
    """Return the file that a teacher's row is kept in."""
    path = folder / "units" / f"seed-{seed}-{'small-' if small else ''}teacher.json"
    settings = {"seed": seed, "part": part, "small": small}
    return File(path, settings, [{"seed": seed}], ("accuracy",))


def files(folder: Path, task: Task) -> list[File]:
    """Return the files of a task: of its teachers, then of its units."""
    teachers = [
        teacher_file(folder, task.seed, part=task.part, small=small) for small in task.teachers
    ]
    return teachers + [unit_file(folder, unit) for unit in task.units]


def is_whole(path: Path) -> bool:
    """Return whether a file is there and undamaged, whatever its settings."""
    with suppress(OSError, ValueError):
        return bool(_content(path))
    return False


def _content(path: Path) -> Row:
    """Return what a file holds.

    Raises:
        OSError, ValueError: it is absent or damaged.
    """
    content = read_strict_json(read_small(path, most_bytes=_MOST_BYTES), most_bytes=_MOST_BYTES)
    if not isinstance(content, dict) or content.keys() != {"settings", "rows", "made", "digest"}:
        raise ValueError("not settings, rows, made and digest")
    if content.pop("digest") != digest(content):
        raise ValueError("its digest is not that of its contents")
    return content


def _read(file: File) -> Kept:
    content = _content(file.path)
    if content["settings"] != json.loads(json.dumps(file.settings)):
        raise ValueError("of other settings")
    rows = content["rows"]
    if not isinstance(rows, list) or len(rows) != len(file.named):
        raise ValueError(f"expected {len(file.named)} rows")
    for row, named in zip(rows, file.named, strict=True):
        _check(row, named, measures=file.measures)
    return Kept([_numbers(row) for row in rows], content["made"])


def _check(row: Any, named: Row, *, measures: Sequence[str]) -> None:
    """Raise ValueError where a row is not that of its student."""
    if not isinstance(row, dict) or row.keys() != {*named, *measures}:
        raise ValueError(f"a row has other columns than {', '.join([*named, *measures])}")
    if any(row[name] != value for name, value in named.items()):
        raise ValueError(f"a row is not that of {named}")
    for name in measures:
        most = 1.0 if name in ("agreement", "accuracy") else float("inf")
        value = row[name]
        diverged = name == "kl" and value is None
        if not diverged and (type(value) not in (int, float) or not 0 <= value <= most):
            raise ValueError(f"a row has the {name} {value!r}")


def _numbers(row: Row) -> Row:
    """Return a row in which a KL that is none, of a student that diverged, is NaN."""
    return {**row, "kl": nan} if row.get("kl", 0) is None else row


def read_rows(file: File) -> Kept | None:
    """Return the rows in a file; None where it is absent, damaged or of other settings."""
    with suppress(OSError, ValueError):
        return _read(file)
    return None


def keep_rows(file: File, make: Callable[[], list[Row]], *, made: Row) -> Kept:
    """Return the rows in a file; made, and written whole, where it has not these rows.

    made: where this process makes rows.
    """
    try:
        return _read(file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as problem:
        print(f"{file.path}: {problem}; made anew", flush=True)
    content = finite({"settings": file.settings, "rows": make(), "made": made})
    content = json.loads(json.dumps(content))
    text = json.dumps({**content, "digest": digest(content)}, indent=1)
    if file.path.is_dir():
        shutil.rmtree(file.path)
    write_whole(file.path, lambda path: path.write_text(text, encoding="utf-8"))
    return Kept([_numbers(row) for row in content["rows"]], made)


def read_seed(folder: Path, task: Task) -> SeedRows | None:
    """Return the rows of a task if all are kept."""
    found = [read_rows(file) for file in files(folder, task)]
    kept = [one for one in found if one is not None]
    return seed_rows(task, kept) if len(kept) == len(found) else None


def seed_rows(task: Task, kept: Sequence[Kept]) -> SeedRows:
    """Return what the files of a task hold, in the order of files()."""
    count = len(task.teachers)
    teachers = [row for one in kept[:count] for row in one.rows]
    return SeedRows(teachers, [one.rows for one in kept[count:]], [one.made for one in kept])
