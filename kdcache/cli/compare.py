"""kdcache compare."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdcache.cli.data import Json
from kdcache.cli.fidelity import check_picture
from kdcache.cli.output import give, say, table
from kdcache.cli.pages import check_page, write_page
from kdcache.errors import UsageError
from kdcache.report.runs import RunLog, differing, read_run, run_names
from kdcache.texts import printable

WIDTH = 100  # of the table where there is no terminal
ID_LETTERS = 12
Best = Callable[[list[float]], float]
Show = Callable[[float], str]
Values = dict[str, float]  # of a run in a column, as "best" and "last", or "median"
Found = dict[str, Values]  # of a run, by metric; without those that it did not measure


@dataclass(frozen=True)
class Column:
    """A metric of runs. best: min or max. take: what is shown of its values.

    alike: pattern of the settings that must be the same for values to be set against each other.
    """

    heading: str
    metric: str
    best: Best
    show: Show
    take: Callable[[list[float]], Values]
    alike: str = ""


@dataclass(frozen=True)
class Comparison:
    """Runs with their names, what the columns show of each, and the settings that differ."""

    names: Sequence[str]
    logs: Sequence[RunLog]
    found: Sequence[Found]
    others: dict[str, list[Any]]

    def has(self, column: Column) -> bool:
        """Return whether a run has values in a column."""
        return any(column.metric in one for one in self.found)

    def unlike(self, column: Column) -> list[str]:
        """Return the settings in which runs differ whose values in a column are not comparable."""
        have = [
            log.settings
            for log, one in zip(self.logs, self.found, strict=True)
            if column.metric in one
        ]
        return [name for name in differing(have) if re.fullmatch(column.alike, name)]

    def bests(self, column: Column) -> Values:
        """Return the best of each kind of value, where some run has a worse one to compare."""
        those = [one[column.metric] for one in self.found if column.metric in one]
        if not those or self.unlike(column):
            return {}
        kinds = {name: [one[name] for one in those] for name in those[0]}
        return {name: column.best(values) for name, values in kinds.items() if len({*values}) > 1}


def _share(value: float) -> str:
    return f"{value:.1%}"


def _short(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _measured(heading: str, name: str, best: Best, show: Show) -> Column:
    """Return a column of a metric of validation: its best value above its last one."""

    def take(values: list[float]) -> Values:
        return {"best": best(values), "last": values[-1]}

    return Column(heading, f"val_{name}", best, show, take, alike="val_.*")


def _last(values: list[float]) -> Values:
    return {"last": values[-1]}


def _median(values: list[float]) -> Values:
    return {"median": median(values)}


SAME_LOSS = "learn|temperature|direction|label_weight"
PLAIN = (
    Column("loss", "loss", min, _short, _last, alike=SAME_LOSS),
    Column("images/s", "images_per_s", max, lambda value: f"{value:,.0f}", _median),
    Column("wait", "wait_share", min, _share, _median),
)
MEASURED = (
    _measured("top-1", "top1", max, _share),
    _measured("KL", "kl_nats", min, _short),
    _measured("agree", "agreement", max, _share),
    _measured("calib", "calibration_error", min, _share),
)
TAUGHT = Column("teacher", "val_teacher_top1", max, _share, _last, alike="val_.*")
ALL = (*PLAIN, *MEASURED, TAUGHT)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="PNG to draw their curves into.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page to write of all of this.")] = None,
    as_json: Json = False,
) -> None:
    """Compare training runs: what they reached, how fast, and in which settings they differ.

    Shown are the last training loss; the best and the last top-1, KL to the teacher in nats,
    agreement with it and calibration error; the teacher's own top-1; images a second and the share
    of time that was waited for data, as medians of the epochs. The best of each column is bold, or
    has a star.

    Example:

      kdcache compare build/run build/run-2 --out curves.png
    """
    check_picture(out)
    if page is not None:
        check_page(page)
    names = run_names(runs)
    logs = [read_run(folder) for folder in runs]
    for log in logs:
        if not log.epochs_done:
            raise UsageError(f"{log.folder}: no epoch is done yet; compare it when one is")
    others = differing([log.settings for log in logs])
    seen = Comparison(names, logs, [_taken(log) for log in logs], others)
    if as_json:
        give(_value(seen), as_json=True, lines={})
    else:
        _print_table(seen)
        _print_notes(seen)
    if out is not None:
        from kdcache.files import write_whole
        from kdcache.report.curves import draw_curves

        write_whole(out, lambda path: draw_curves(logs, path))
    if page is not None:
        from kdcache.report.run_page import compared_sections

        sections = compared_sections(logs, names, table=_page_table(seen))
        write_page(page, f"{len(logs)} runs", sections)


def _page_table(seen: Comparison) -> list[list[str]]:
    """Return what the columns show of each run: its best value, then its last one."""
    columns = [column for column in ALL if seen.has(column)]
    rows = []
    for name, log, one in zip(seen.names, seen.logs, seen.found, strict=True):
        cells = [", ".join(map(c.show, one.get(c.metric, {}).values())) or "–" for c in columns]
        rows.append([printable(name), f"{log.epochs_done}/{log.epochs}", *cells])
    heads = [c.heading + (" (best, last)" if c in MEASURED else "") for c in columns]
    return [["run", "epochs", *heads], *rows]


def _taken(log: RunLog) -> Found:
    values = {column: log.epoch_values(column.metric) for column in ALL}
    return {column.metric: column.take(found) for column, found in values.items() if found}


def _print_table(seen: Comparison) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    star = "" if console.color_system else "*"  # where nothing is bold
    plain, measured = (
        {column: seen.bests(column) for column in columns if seen.has(column)}
        for columns in (PLAIN, (*MEASURED, TAUGHT))
    )
    drawn = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("run", "student", "learn"):
        drawn.add_column(heading, overflow="fold")
    for heading in ("epochs", *(c.heading for c in plain), "", *(c.heading for c in measured)):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for name, log, one in zip(seen.names, seen.logs, seen.found, strict=True):
        epochs = f"{log.epochs_done}/{log.epochs}"
        drawn.add_row(
            printable(name),
            printable(log.settings["student"].rpartition(":")[2]),
            printable(log.settings["learn"]),
            epochs if log.epochs_done == log.epochs else f"{epochs}\nunfinished",
            *(
                _cell(c, one.get(c.metric, {}), bests=bests, star=star)
                for c, bests in plain.items()
            ),
            "best\nlast" if _is_measured(one) else "",
            *(
                _cell(c, one.get(c.metric, {}), bests=bests, star=star)
                for c, bests in measured.items()
            ),
        )
    console.print(drawn)


def _is_measured(one: Found) -> bool:
    return any(column.metric in one for column in MEASURED)


def _cell(column: Column, values: Values, *, bests: Values, star: str) -> Text:
    """Return a run's values in a column, one below the other, those marked that are best."""
    lines = []
    for name, value in values.items():
        is_best = value == bests.get(name)
        mark = star if is_best else " " * len(star)
        lines.append(Text(column.show(value) + mark, style="bold" if is_best else ""))
    return Text("\n").join(lines or [Text("–" + " " * len(star))])


def _print_notes(seen: Comparison) -> None:
    """Print who was not validated, what is not marked, and the settings that differ."""
    pairs = zip(seen.names, seen.found, strict=True)
    blind = [name for name, one in pairs if not _is_measured(one)]
    if blind:
        say(f"without validation: {', '.join(blind)}", as_json=False)
    unlike = {column.heading: seen.unlike(column) for column in ALL}
    for why in sorted({", ".join(names) for names in unlike.values() if names}):
        which = ", ".join(name for name, names in unlike.items() if ", ".join(names) == why)
        say(f"{which}: no best is marked, since runs differ in {why}", as_json=False)
    if seen.others:
        lines = {
            name: _spread(seen.names, [_text(value, name) for value in values])
            for name, values in seen.others.items()
        }
        say(f"differing settings\n{table(lines)}", as_json=False)
    elif len(seen.logs) > 1:
        say("no setting differs", as_json=False)


def _spread(names: Sequence[str], texts: Sequence[str]) -> str:
    """Return each value of a setting, as text, with the runs that have it."""
    owners: dict[str, list[str]] = {}
    for name, text in zip(names, texts, strict=True):
        owners.setdefault(text, []).append(name)
    return "; ".join(f"{text}: {', '.join(those)}" for text, those in owners.items())


def _text(value: Any, setting: str) -> str:
    """Return a setting's value for people: ids short, and other texts as they are."""
    if setting == "labels":  # the digest of all that are learned
        return f"learned, of digest {value:016x}" if isinstance(value, int) else "not learned"
    if value is None:
        return "none"
    if not isinstance(value, str):
        return json.dumps(value)
    is_id = len(value) == 64 and not value.strip("0123456789abcdef")
    return value[:ID_LETTERS] if is_id else value


def _value(seen: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON has it."""
    return {
        "runs": [
            {
                "name": name,
                "path": str(log.folder),
                "student": log.settings["student"],
                "learn": log.settings["learn"],
                "epochs_done": log.epochs_done,
                "epochs": log.epochs,
                **{column.metric: one.get(column.metric) for column in ALL},
            }
            for name, log, one in zip(seen.names, seen.logs, seen.found, strict=True)
        ],
        "differing": {
            setting: dict(zip(seen.names, values, strict=True))
            for setting, values in seen.others.items()
        },
    }
