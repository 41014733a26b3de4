"""The page of a student's run, or of several: settings, curves, measures, sessions, files.

Reads the files of runs' folders and nothing else, so that runs may be looked at while they train.
"""

import csv
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.report.curves import PANELS, Panel
from kdcache.report.figures import COLOURS, Dash, Picture, Scale, lines_svg
from kdcache.report.figures import Line as Drawn
from kdcache.report.page import Section
from kdcache.report.runs import Line, RunLog, differing, flat, is_count
from kdcache.texts import human_bytes, printable

SESSIONS, CLASSES, CHECKPOINTS = "sessions.jsonl", "classes.csv", "checkpoints"
MOST_POINTS, MOST_CLASSES, MOST_SESSIONS = 400, 1000, 100
NAME_LETTERS = 14  # of a run, beside its line
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
Z = 1.959964  # of a normal distribution, for an interval of 95%
SHARES = {"val_top1": "top-1", "val_top5": "top-5", "val_agreement": "agreement with the teacher"}
CLASS_SHARES = ("top1", "agreement")  # columns of classes.csv
OTHERS = {
    "val_kl_nats": "KL to the teacher, nats", "val_calibration_error": "calibration error",
    "loss": "training loss",
}  # fmt: skip


def run_title(log: RunLog) -> str:
    """Return the title of a run's page."""
    name = log.folder.resolve().name
    shown = "Run" if name.casefold() == "run" else f"Run {name}"
    return printable(f"{shown}: {log.settings['student']}")


def run_sections(log: RunLog) -> list[Section]:
    """Return the sections of a run's page.

    Raises:
        CorruptError: its metrics are damaged.
    """
    sessions, unread = _sessions(log.folder / SESSIONS)
    sections = [
        _progress(log, sessions),
        Section("Curves", figures=curves([log], [""])),
        _classes(log.folder / CLASSES),
        _started(sessions, unread),
        Section("Files", table=[["file", "size"], *_files(log.folder)]),
        Section("Settings", table=[["setting", "value"], *_settings(log.settings)]),
    ]
    return [s for s in sections if s.figures or len(s.table) > 1 or s.paragraphs]


def curves(logs: Sequence[RunLog], names: Sequence[str]) -> list[Picture]:
    """Return a picture of each metric that a run has, against epochs.

    names: of the runs, written beside their lines; of one run, its last value is.
    """
    pictures = []
    for panel in PANELS:
        found = [[(line.epoch or 0, v) for line, v in _values(log, panel.name)] for log in logs]
        if any(found):
            pictures.append(_curve(panel, found, names))
    return pictures


def _curve(panel: Panel, found: Sequence[list[tuple[int, float]]], names: Sequence[str]) -> Picture:
    """Return a picture of a metric's values by epoch, of each run that has some."""
    values = [value for points in found for _, value in points]
    is_log = panel.may_be_log and min(values) > 0
    unit = 0.01 if panel.is_share else _unit(min(values) if is_log else max(map(abs, values)))
    lines, ends = [], []
    for number, (points, name) in enumerate(zip(found, names, strict=True)):
        if not points:
            continue
        turn, place = divmod(number, len(COLOURS))
        x, y = zip(*_thinned(points), strict=True)
        last = f"{y[-1] / unit:.3g}{'%' if panel.is_share else ''}"
        ends.append(f"{name} {last}".strip())
        lines.append(
            Drawn(
                _short(name) or last,
                x,
                [value / unit for value in y],
                colour=COLOURS[place],
                dash=DASHES[turn % len(DASHES)],
                mark="o" if len(y) == 1 else "",
            )
        )
    title = panel.title.partition(" (")[0]
    scale = "%" if panel.is_share else "" if unit == 1 else f"{unit:.0e}"
    shown = f"{title}, in {scale}" if scale else title
    svg = lines_svg(lines, panel.name, x=Scale("epoch"), y=Scale(shown, is_log=is_log))
    return Picture(panel.name, svg, printable(f"{shown} by epoch, at the end: {', '.join(ends)}"))


def _unit(value: float) -> float:
    """Return the power of a thousand in which a value is short; there is room for few digits."""
    if value == 0 or 0.01 <= value < 1000:
        return 1.0
    return 1000.0 ** math.floor(math.log10(value) / 3)


def _values(log: RunLog, name: str) -> Iterator[tuple[Line, float]]:
    """Yield the lines that close epochs and have a finite value of a metric."""
    for line in log.closing:
        value = line.numbers.get(name, math.nan)
        if math.isfinite(value):
            yield line, value


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most so many points, the last among them."""
    step = -(-len(points) // MOST_POINTS) or 1
    return points[::-1][::step][::-1]


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= NAME_LETTERS else f"…{shown[1 - NAME_LETTERS :]}"


def _progress(log: RunLog, sessions: Sequence[Mapping[str, Any]]) -> Section:
    """Return how far a run came, and what it measured at its best and last epoch."""
    source = printable(log.settings["learn"])
    words = [f"{log.epochs_done} of {log.epochs} epochs; learns from {source}."]
    views = next((s["views"] for s in reversed(sessions) if is_count(s.get("views"))), 0)
    if views:
        reuse = log.epochs / views
        words.append(f"{views} stored views, each used {reuse:.3g} times in all epochs.")
    if len(sessions) > 1:
        steps = ", ".join(printable(_text(s.get("step"))) for s in sessions[1:][:MOST_SESSIONS])
        words.append(f"Started {len(sessions)} times; it went on from step {steps}.")
    taught = log.epoch_values("val_teacher_top1")
    if taught:
        words.append(f"The teacher's own top-1 on the same images: {taught[-1]:.1%}.")
    best, name = _best(log)
    if best is not None:
        words.append(f"The best epoch, whose weights are kept, has the {name}.")
    ends = {"best": best, "last": log.closing[-1] if log.closing else None}
    shown = {name: line for name, line in ends.items() if line is not None}
    heads = ["measure", *(f"{name}: epoch {line.epoch}" for name, line in shown.items())]
    rows = [
        [title, *(_measure(line, name) for line in shown.values())]
        for name, title in (SHARES | OTHERS).items()
        if any(name in line.numbers for line in shown.values())
    ]
    if any("val_samples" in line.numbers for line in shown.values()):
        words.append("Shares have the 95% interval that so many samples leave (Wilson).")
    return Section("What it reached", paragraphs=words, table=[heads, *rows])


def _best(log: RunLog) -> tuple[Line | None, str]:
    """Return the line of the epoch whose weights are kept as the best, and by what it is."""
    by_labels = log.settings["learn"] == "labels" or not log.epoch_values("val_kl_nats")
    name, sign = ("val_top1", -1) if by_labels else ("val_kl_nats", 1)
    best = min(
        (line for line, _ in _values(log, name)),
        key=lambda line: sign * line.numbers[name],
        default=None,
    )
    return best, "highest top-1" if by_labels else "lowest KL to the teacher"


def _measure(line: Line, name: str) -> str:
    value = line.numbers.get(name)
    if value is None:
        return "–"
    if name not in SHARES:
        return f"{value:.4g}"
    count = line.numbers.get("val_samples", 0)
    if count < 1 or not 0 <= value <= 1:
        return f"{value:.2%}"
    low, high = wilson(value, count)
    return f"{value:.2%} ({low:.2%} to {high:.2%})"


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the ends of the 95% interval of a share of so many samples.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209.
    """
    z = Z * Z / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _sessions(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """Return the starts of a run, and how many lines say nothing of one."""
    found: list[Mapping[str, Any]] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, len(lines) - len(found)


def _started(sessions: Sequence[Mapping[str, Any]], unread: int) -> Section:
    rows = []
    for one in sessions[-MOST_SESSIONS:]:
        versions = one.get("versions")
        known = versions if isinstance(versions, dict) else {}
        shown = [f"{name} {known[name]}" for name in ("kdcache", "torch") if name in known]
        values = [one.get(name) for name in ("started", "step", "processes", "device")]
        commit = str(one.get("commit") or "")[:12]
        rows.append([*map(_text, values), ", ".join(shown), commit, _text(one.get("command"))])
    note = [f"{unread} lines of {SESSIONS} cannot be read."] if unread else []
    heads = ["started", "from step", "processes", "device", "versions", "commit", "command"]
    return Section(
        "How it was started", note, table=[heads, *(list(map(printable, row)) for row in rows)]
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "–" if value is None else json.dumps(value)


def _files(folder: Path) -> list[list[str]]:
    names = sorted(
        p
        for p in itertools.chain(folder.iterdir(), (folder / CHECKPOINTS).glob("*"))
        if p.is_file() and not p.name.startswith(".")
    )
    return [
        [printable(str(path.relative_to(folder))), human_bytes(path.stat().st_size)]
        for path in names
    ]


def _classes(path: Path) -> Section:
    """Return the measures of classes as the run wrote them, the first so many."""
    rows: list[list[str]] = []
    notes = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            try:
                rows += itertools.islice(csv.reader(file), MOST_CLASSES + 1)
            except csv.Error as error:
                notes.append(f"{path.name} cannot be read beyond line {len(rows)}: {error}.")
    if len(rows) > MOST_CLASSES:
        notes.append(f"The first {MOST_CLASSES} of {path.name}.")
    heads = rows[0] if rows else []
    shown = [[_class_cell(*pair) for pair in zip(heads, row, strict=False)] for row in rows[1:]]
    return Section("Classes", notes, table=[list(map(printable, heads)), *shown] if rows else ())


def _class_cell(head: str, text: str) -> str:
    if head not in CLASS_SHARES:
        return printable(text)
    try:
        return f"{100 * float(text):.4g}%"
    except ValueError:
        return printable(text)


def _settings(settings: Mapping[str, Any]) -> list[list[str]]:
    return [[printable(name), printable(_text(v))] for name, v in sorted(flat(settings).items())]


def compared_sections(
    logs: Sequence[RunLog], names: Sequence[str], *, table: Sequence[Sequence[str]]
) -> list[Section]:
    """Return the sections of a page of several runs. table: of what they reached."""
    others = differing([log.settings for log in logs])
    rows = [
        [printable(name), *(printable(_text(v)) for v in found)] for name, found in others.items()
    ]
    heads = ["setting", *map(printable, names)]
    return [
        Section("What they reached", table=table),
        Section("Curves", figures=curves(logs, names)),
        Section(
            "Settings that differ", [] if rows else ["None."], table=[heads, *rows] if rows else ()
        ),
    ]
