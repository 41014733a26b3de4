"""Pictures of the study. A group's colour is the same in all; its variants differ in dashes."""

import itertools
from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

from kdcache.report.figures import COLOURS, GREY, Dash, Line, Picture, Scale, lines_svg
from pipelines.study.sentences import kind_of_views
from pipelines.study.summary import Row, budgets, bytes_per_view, distinct, mean_over_seeds, select
from pipelines.study.words import nats, number

BLUE, ORANGE, GREEN, PINK = COLOURS
ARMS: dict[str, tuple[str, Dash, str]] = {
    "labels": (GREY, "-", "o"),
    "labels + mixup": (GREY, "--", "s"),
    "fixed": (ORANGE, "-", "o"),
    "fixed, mean of crops": (ORANGE, ":", "D"),
    "fixed + mixup": (ORANGE, "--", "s"),
    "independent": (PINK, "-", "^"),
    "consistent, mild crops": (GREEN, ":", "D"),
    "consistent": (GREEN, "-", "o"),
    "function matching": (BLUE, "-", "o"),
}
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
DECADES = (1, 10, 100, 1000)
KL = Scale("Test KL to the teacher, nats", is_log=True)


def arms(runs: Sequence[Row]) -> Picture | None:
    """Return the KL of each arm against its epochs."""
    lines = []
    for (arm,) in distinct(runs, "arm"):
        colour, dash, mark = ARMS[arm]
        there = select(runs, arm=arm)
        at = budgets(there)
        parts = [select(there, epochs=epochs) for epochs in at]
        lines.append(_line(arm, at, parts, colour=colour, dash=dash, mark=mark))
    ticks: dict[float, str] = {epochs: number(epochs) for epochs in budgets(runs)}
    x = Scale("epochs", is_log=True, ticks=ticks)
    return _picture("digits-arms", lines, x=x)


def views(rows: Sequence[Row], *, reuse: bool) -> Picture | None:
    """Return the KL against stored views; all lines end at the right in a live teacher.

    reuse: against the uses of each view in their place, the most at the left.
    """
    lengths = budgets(rows)
    counts = [count for (count,) in distinct(rows, "views") if count is not None]
    live = 1 if reuse else 4 * max(counts, default=1)  # where the live teacher stands
    lines = []
    for mixed, epochs in distinct(rows, "mixed", "epochs"):
        there = select(rows, mixed=mixed, epochs=epochs)
        parts = {
            live if count is None else count / epochs if reuse else count: select(
                there, views=count
            )
            for (count,) in distinct(there, "views")
        }
        at = sorted(parts)
        colour, mark = (BLUE, "o") if mixed else (GREEN, "s")
        dash = DASHES[lengths.index(epochs) % len(DASHES)]
        name = kind_of_views(mixed) + (f", {number(epochs)} epochs" if len(lengths) > 1 else "")
        own = [parts[place] for place in at]
        lines.append(_line(name, at, own, colour=colour, mark=mark, dash=dash))
    if reuse:
        label = "uses of each stored view (1: live)"
        ticks = {1 / place: number(place) for place in DECADES if place <= lengths[-1]}
        x = Scale(label, is_log=True, ticks=ticks)
        return _picture("digits-reuse", lines, x=x, show=lambda place: number(1 / place))
    ticks = {place: number(place) for place in DECADES if place <= max(counts, default=1)}
    x = Scale("stored views (live: one an epoch)", is_log=True, ticks={**ticks, live: "live"})
    return _picture("digits-views", lines, x=x)


def encodings(rows: Sequence[Row]) -> Picture | None:
    """Return the KL against what is kept of a view, a line for each temperature."""
    kept = [k for (k,) in distinct(rows, "k")]
    styles = itertools.cycle(zip(COLOURS, "os^D", strict=True))
    lines = []
    for (temperature, stored, epochs), (colour, mark) in zip(
        distinct(rows, "temperature", "stored_temperature", "epochs"), styles, strict=False
    ):
        there = select(rows, temperature=temperature, stored_temperature=stored, epochs=epochs)
        parts = {kept.index(k): select(there, k=k) for (k,) in distinct(there, "k")}
        name = f"T = {number(temperature)}"
        if stored is not None:
            name += f", stored at {number(stored)}"
        lines.append(_line(name, list(parts), list(parts.values()), colour=colour, mark=mark))
    ticks: dict[float, str] = {
        place: f"{'all' if k is None else k}\n{bytes_per_view(select(rows, k=k)):.1f} B"
        for place, k in enumerate(kept)
    }
    x = Scale("classes kept of each view, and bytes", ticks=ticks)
    return _picture("digits-encodings", lines, x=x)


def _line(name: str, x: Sequence[float], parts: Sequence[Sequence[Row]], **style: Any) -> Line:
    """Return the line of the means of parts, a part at each x; none where a student diverged."""
    found = [(at, mean_over_seeds(part)) for at, part in zip(x, parts, strict=True)]
    known = [(at, *mean) for at, mean in found if not isnan(mean.mean)]
    at, y, low, high = ([point[index] for point in known] for index in range(4))
    return Line(name, at, y, low=low, high=high, **style)


def _picture(
    name: str, lines: Sequence[Line], *, x: Scale, show: Callable[[float], str] = number
) -> Picture | None:
    """Return a picture of KLs, with each line's first and last values in words.

    None: no line has a KL.
    """

    def place(value: float) -> str:
        return (x.ticks or {}).get(value, show(value)).replace("\n", ", ")

    lines = [line for line in lines if line.y]
    if not lines:
        return None
    said = [
        f"{line.name}: {nats(line.y[0])} at {place(line.x[0])}, "
        f"{nats(line.y[-1])} at {place(line.x[-1])}"
        for line in lines
    ]
    words = f"{KL.label}, against {x.label}. {'; '.join(said)}."
    return Picture(name, lines_svg(lines, name, x=x, y=KL), words)
