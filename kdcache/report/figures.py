"""What pictures by matplotlib share, and curves as SVG text for light and dark pages."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#c44e52", "#dd8452", "#4c72b0", "#55a868", "#8172b3")
GREY = "#808080"
DARK_GREY = "#606060"  # on white


def plain(axes: Axes, colour: str = DARK_GREY) -> None:
    """Leave an axes two sides and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=colour, alpha=0.2)


def log_ticks(axis: Axis, show: Callable[[float], str]) -> None:
    """Put ticks at 1, 2 and 5 times the powers of ten of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_formatter(NullFormatter())


def curves_svg(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x_label: str, y_label: str
) -> str:
    """Return an SVG element with one line for each named (x, y)."""
    # The salt names the figure's elements, which must differ between the figures of a page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": y_label}):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        colours = itertools.cycle(COLOURS)
        for colour, (name, (x, y)) in zip(colours, curves.items(), strict=False):
            axes.plot(x, y, label=name, color=colour, linewidth=2)
        axes.set_xlabel(x_label, color=GREY)
        axes.set_ylabel(y_label, color=GREY)
        axes.tick_params(colors=GREY)
        plain(axes, GREY)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.legend(frameon=False, labelcolor=GREY)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
