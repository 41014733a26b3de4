"""What pictures by matplotlib share, and lines as SVG for light and dark pages.

Colours have a contrast of 3 or more on white and on near black alike. Lines are named at their
ends, so that no colour must be looked up, and told apart by dashes and marks, too.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

# Okabe and Ito 2008: told apart by any colour vision; the pink is darker than theirs.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c46a9b")
GREY = "#787878"  # of text and axes; a page draws it in its text's colour
DARK_GREY = "#606060"  # on white
Dash = Literal["-", "--", ":", "-."]

_WIDTH, _HEIGHT = 4.3, 3.1  # inches; the text is still read where a phone shows this
_LEFT, _BOTTOM, _TOP = 0.5, 0.5, 0.4
_FONT = 9.0
_LETTER = 0.57 * _FONT / 72  # inches, of a wide font
_LINE = 1.3 * _FONT / 72
_LEADER, _MARGIN = 0.26, 0.06  # before and after a name
_LEAST_RATIO = 2.5  # of a logarithmic axis: small differences are not made to look large


@dataclass(frozen=True)
class Line:
    """A named line. low, high: ends of an interval at each point, or nothing."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: str = COLOURS[0]
    dash: Dash = "-"
    mark: str = ""


@dataclass(frozen=True)
class Scale:
    """An axis of a picture. ticks: places and what stands there; nothing: found by matplotlib."""

    label: str
    is_log: bool = False
    ticks: Mapping[float, str] | None = None


@dataclass(frozen=True)
class Picture:
    """A picture as text. name: of its file, without ending. words: what it shows, if not seen."""

    name: str
    svg: str
    words: str


def plain(axes: Axes, colour: str = DARK_GREY) -> None:
    """Leave an axes two sides and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=colour, alpha=0.2)


def log_ticks(axis: Axis, show: Callable[[float], str]) -> None:
    """Put ticks at 1, 2 and 5 times the powers of ten of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_formatter(NullFormatter())


def lines_svg(lines: Sequence[Line], name: str, *, x: Scale, y: Scale) -> str:
    """Return an SVG element with lines, each named at its right end; y's label is the title.

    name: differs between the pictures of a page, as the ids of what they hold then do.
    """
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": _FONT, "text.color": GREY}
    ):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        right = _LEADER + _MARGIN + _LETTER * max(len(line.name) for line in lines)
        bottom = _BOTTOM + _LINE * max(tick.count("\n") for tick in (x.ticks or {0: ""}).values())
        width, height = _WIDTH - _LEFT - right, _HEIGHT - bottom - _TOP
        box = (_LEFT / _WIDTH, bottom / _HEIGHT, width / _WIDTH, height / _HEIGHT)
        axes = figure.add_axes(box)
        for line in lines:
            _draw_line(axes, line)
        figure.text(0.01, 0.99, y.label, va="top", fontsize=_FONT + 1)
        axes.set_xlabel(x.label, color=GREY)
        axes.tick_params(colors=GREY)
        plain(axes, GREY)
        axes.spines[["left", "bottom"]].set_color(GREY)
        _set_scale(axes, "x", x)
        _set_scale(axes, "y", y)
        _name_ends(axes, lines, gap=_LINE / height)
        text = io.StringIO()
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _draw_line(axes: Axes, line: Line) -> None:
    axes.plot(
        line.x, line.y, color=line.colour, linestyle=line.dash, linewidth=1.8, marker=line.mark,
        markersize=3.5,
    )  # fmt: skip
    if line.low:
        axes.vlines(line.x, line.low, line.high, color=line.colour, linewidth=1.2, alpha=0.6)


def _set_scale(axes: Axes, side: Literal["x", "y"], scale: Scale) -> None:
    axis = axes.xaxis if side == "x" else axes.yaxis
    if scale.is_log:
        axes.set(**{f"{side}scale": "log"})
        log_ticks(axis, lambda value: f"{value:,.4g}")
        axes.autoscale_view()
        low, high = axis.get_view_interval()
        more = math.sqrt(max(_LEAST_RATIO / (high / low), 1))
        axes.set(**{f"{side}lim": (low / more, high * more)})
        if high / low * more**2 < 10:
            axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    if scale.ticks is not None:
        axis.set_ticks(list(scale.ticks), list(scale.ticks.values()))
        axis.set_minor_locator(NullLocator())


def _name_ends(axes: Axes, lines: Sequence[Line], *, gap: float) -> None:
    """Write each line's name beside its right end. gap: of one name to the next, in axes."""
    axes.autoscale_view()  # else the scale is not yet that of the data
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [(line.x[-1], line.y[-1]) for line in lines]
    places = spread([float(to_axes.transform(end)[1]) for end in ends], gap)
    for line, end, place in zip(lines, ends, places, strict=True):
        axes.annotate(
            line.name,
            xy=end,
            xytext=(1 + _LEADER / (_WIDTH * axes.get_position().width), place),
            textcoords="axes fraction",
            va="center",
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": line.colour,
                "linewidth": 0.8,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return places moved as little as needed to lie gap or more apart, in their order.

    They stay within 0 and 1 where they find room there.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    # A place less the gaps below it must not fall: the nearest such values are means of runs.
    runs: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = places[index] - rank * gap, 1
        while runs and runs[-1][0] > mean:
            below, number = runs.pop()
            mean, count = (mean * count + below * number) / (count + number), count + number
        runs.append((mean, count))
    top = 1 - gap * (len(places) - 1)
    flat = [max(min(mean, top), 0.0) for mean, count in runs for _ in range(count)]
    moved = [0.0] * len(places)
    for rank, index in enumerate(order):
        moved[index] = flat[rank] + rank * gap
    return moved
