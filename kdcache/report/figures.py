"""Curves as SVG text, by matplotlib; colours work on light and dark pages."""

import io
import itertools
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#c44e52", "#dd8452", "#4c72b0", "#55a868", "#8172b3")
GREY = "#808080"


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
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.grid(color=GREY, alpha=0.25)
        axes.legend(frameon=False, labelcolor=GREY)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
