"""What encodings cost and lose, drawn by matplotlib: bytes a view against gradient error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from kdcache.report.figures import DARK_GREY, log_ticks, plain
from kdcache.targets.choice import Measured, Temperature, pareto

FAMILIES = {
    "topk": ("#c44e52", "s", "topk:K"),
    "packed": ("#2f6db5", "o", "packed:K"),
    "adaptive": ("#2e8b57", "D", "adaptive:E"),
    "dense": ("#7b5ea7", "^", "dense:f2, dense:u1"),
}
PANELS: tuple[Temperature, ...] = (1, 2, 4)
LEAST_ERROR = 1e-6  # drawn in its place is what is smaller, since zero has no logarithm
FONT_SIZE = 8
MARKER = 8.0  # points
GAP = 5.0  # points from a marker's middle to its name
Horizontal = Literal["left", "center", "right"]
Vertical = Literal["top", "center", "bottom"]
PLACES: tuple[tuple[int, int, Horizontal, Vertical], ...] = (
    (1, 0, "left", "center"), (0, 1, "center", "bottom"), (0, -1, "center", "top"),
    (-1, 0, "right", "center"), (1, 1, "left", "bottom"), (-1, -1, "right", "top"),
    (-1, 1, "right", "bottom"), (1, -1, "left", "top"), (0, 3, "center", "bottom"),
    (0, -3, "center", "top"), (2, 3, "left", "bottom"), (-2, -3, "right", "top"),
)  # fmt: skip


def draw_comparison(
    measured: Sequence[Measured], path: Path, *, title: str, chosen: Measured | None = None
) -> None:
    """Write a PNG with a panel for each of T = 1, 2 and 4.

    Filled points are on the front of bytes and errors at T = 1 and 2; the line joins those that no
    other betters in the bytes and the error of its own panel. The chosen one has a ring.
    """
    figure = Figure(figsize=(11, 17), layout="constrained", dpi=120)
    figure.suptitle(title)
    panels = figure.subplots(len(PANELS), 1)
    front = pareto(measured)
    for axes, temperature in zip(panels, PANELS, strict=True):
        _draw_points(axes, measured, front, temperature=temperature, chosen=chosen)
    panels[0].legend(handles=_legend(measured, chosen), loc="upper right", framealpha=1)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are placed where things are now
    for axes, temperature in zip(panels, PANELS, strict=True):
        _name_points(axes, measured, temperature=temperature, chosen=chosen)
    figure.savefig(path, format="png")


def _draw_points(
    axes: Axes,
    measured: Sequence[Measured],
    front: Sequence[Measured],
    *,
    temperature: Temperature,
    chosen: Measured | None,
) -> None:
    for one in measured:
        colour, marker, _ = FAMILIES[_family(one)]
        x, y = _point(one, temperature)
        face = colour if one in front else "white"
        axes.plot(
            x, y, marker, markersize=6, markeredgecolor=colour, markerfacecolor=face, zorder=3
        )
        if one is chosen:
            axes.plot(x, y, "o", markersize=14, markeredgecolor="black", markerfacecolor="none")
    line = _panel_front([_point(one, temperature) for one in measured])
    axes.plot(*zip(*line, strict=True), color=DARK_GREY, linewidth=1, zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.09)
    axes.set_xlabel("bytes a view")
    axes.set_ylabel(f"relative gradient error at T = {temperature}")
    log_ticks(axes.xaxis, lambda x: f"{x:,.4g}")
    log_ticks(axes.yaxis, lambda y: f"{100 * y:.4g}%")
    plain(axes)


def _panel_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no smaller one has less error than, from the smallest."""
    line: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not line or y < line[-1][1]:
            line.append((x, y))
    return line


def _legend(measured: Sequence[Measured], chosen: Measured | None) -> list[Line2D]:
    """Return a handle of each family that is there, and of what fill, line and ring say."""
    there = {_family(one) for one in measured}
    plain: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = [
        Line2D([], [], marker=marker, color=colour, label=label, **plain)
        for name, (colour, marker, label) in FAMILIES.items()
        if name in there
    ]
    hollow = {"color": DARK_GREY, "markerfacecolor": "white", **plain}
    handles.append(
        Line2D(
            [], [], marker="o", label="off the front of bytes and errors at T = 1 and 2", **hollow
        )
    )
    handles.append(Line2D([], [], color=DARK_GREY, linewidth=1, label="front at this temperature"))
    if chosen is not None:
        ring = {"color": "black", "markerfacecolor": "none", **plain, "markersize": 11}
        handles.append(Line2D([], [], marker="o", label=f"chosen: {chosen.encoding}", **ring))
    return handles


def _name_points(
    axes: Axes,
    measured: Sequence[Measured],
    *,
    temperature: Temperature,
    chosen: Measured | None,
) -> None:
    """Write each point's parameter beside it, where it covers no other name and no point."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    side = MARKER * figure.dpi / 72
    points = [axes.transData.transform(_point(one, temperature)) for one in measured]
    taken = [Bbox.from_bounds(x - side / 2, y - side / 2, side, side) for x, y in points]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for one in measured:
        gap = MARKER if one is chosen else GAP
        tried: list[tuple[float, Annotation]] = []
        for place in PLACES:
            name = _named(axes, one, xy=_point(one, temperature), gap=gap, place=place)
            box = name.get_window_extent()
            tried.append((sum(_overlap(box, other) for other in taken), name))
            if tried[-1][0] == 0:
                break
        best = min(tried, key=lambda pair: pair[0])[1]
        taken.append(best.get_window_extent())
        for _, name in tried:
            if name is not best:
                name.remove()
        best.set_fontweight("bold" if one is chosen else "normal")


def _named(
    axes: Axes,
    one: Measured,
    *,
    xy: tuple[float, float],
    gap: float,
    place: tuple[int, int, Horizontal, Vertical],
) -> Annotation:
    across, up, horizontal, vertical = place
    return axes.annotate(
        str(one.encoding).partition(":")[2],
        xy=xy,
        xytext=(gap * across, gap * up),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=FONT_SIZE,
        color=FAMILIES[_family(one)][0],
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _overlap(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share."""
    shared = Bbox.intersection(a, b)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _point(one: Measured, temperature: Temperature) -> tuple[float, float]:
    return one.bytes_per_view, max(one.gradient_error(temperature), LEAST_ERROR)


def _family(one: Measured) -> str:
    return str(one.encoding).partition(":")[0]
