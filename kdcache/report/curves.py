"""Runs drawn by matplotlib: a panel a metric, a line a run, against epochs or images seen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from kdcache.report.figures import log_ticks, plain
from kdcache.report.runs import Line, RunLog, run_names

# Okabe and Ito 2008: told apart by any colour vision; without their yellow, which is pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
Dash = Literal["-", "--", ":"]
DASHES: tuple[Dash, ...] = ("-", "--", ":")  # of the first seven runs, the next seven, …
LOG_FROM = 10.0  # greatest over smallest value, from where on a logarithm shows more
FEW_RUNS, MOST_DOTS = 3, 24  # values are marked, where they can be told apart
NAME_LETTERS = 60
LEGEND_LETTERS = 120  # of a line of the legend, with 8 a run for its handle


@dataclass(frozen=True)
class Panel:
    """A metric's panel. thin: another metric, drawn thin.

    steps: values within epochs are drawn thin too, or joined with those at their ends.
    """

    title: str
    name: str
    thin: str | None = None
    steps: Literal["thin", "joined"] | None = None
    may_be_log: bool = False
    is_share: bool = False


PANELS = (
    Panel("training loss", "loss", steps="thin", may_be_log=True),
    Panel("validation KL, nats", "val_kl_nats", may_be_log=True),
    Panel("validation top-1 (thin: top-5)", "val_top1", thin="val_top5", is_share=True),
    Panel("agreement with the teacher", "val_agreement", is_share=True),
    Panel("calibration error", "val_calibration_error", is_share=True),
    Panel("learning rate", "learning_rate", steps="joined"),
)


def draw_curves(runs: Sequence[RunLog], path: Path) -> None:
    """Write a PNG of what runs measured; panels without data are left out.

    runs: each with a line of metrics or more. They are drawn against epochs, but against images
    seen where they have other epochs or batch sizes, or one has not closed an epoch.
    """
    shown = [p for p in PANELS if any(p.name in line.numbers for r in runs for line in r.lines)]
    columns = {2: 2, 4: 2}.get(len(shown), min(len(shown), 3))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(10, 2.8 * rows + 0.6), layout="constrained", dpi=150)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    lengths = {(run.epochs, run.settings["batch_size"]) for run in runs}
    by_images = len(lengths) > 1 or not all(run.closing for run in runs)
    scales = [
        float(run.settings["batch_size"]) if by_images else _epochs_a_step(run) for run in runs
    ]
    end = max(scale * run.lines[-1].step for scale, run in zip(scales, runs, strict=True))
    for axes, panel in zip(panels, shown, strict=False):
        _draw_panel(axes, panel, runs, scales=scales)
        axes.set_xlim(0, 1.02 * end)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.supxlabel("images seen" if by_images else "epochs", fontsize=10)
    _name_runs(figure, runs)
    figure.savefig(path, format="png")


def _epochs_a_step(run: RunLog) -> float:
    last = run.closing[-1]
    return (last.epoch or 0) / last.step


def _draw_panel(
    axes: Axes, panel: Panel, runs: Sequence[RunLog], *, scales: Sequence[float]
) -> None:
    """Draw a metric of all runs. scales: epochs, or images, of a step of each."""
    few = len(runs) <= FEW_RUNS
    dotted = few and max(len(run.closing) for run in runs) <= MOST_DOTS
    usual = 1.8 if few else 1.3
    values: list[float] = []
    for number, (run, scale) in enumerate(zip(runs, scales, strict=True)):
        colour, dash = _style(number)
        for name, lines, width, alpha in _parts(panel, run):
            there = [line for line in lines if math.isfinite(line.numbers.get(name, math.nan))]
            y = [line.numbers[name] for line in there]
            axes.plot(
                [scale * line.step for line in there], y, color=colour, alpha=alpha, linestyle=dash,
                linewidth=width * usual, marker="o" if dotted or len(y) == 1 else "",
                markersize=1 + 2 * width, zorder=2 + width,
            )  # fmt: skip
            values += y if width == 1 else []
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.tick_params(labelsize=9)
    plain(axes)
    if panel.may_be_log and 0 < LOG_FROM * min(values, default=0) < max(values, default=0):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(min(values) / 1.5, max(values) * 1.5)  # thin lines may leave
        log_ticks(axes.yaxis, lambda y: f"{y:.4g}")
    elif panel.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%"))
    elif panel.steps == "joined":
        axes.set_ylim(bottom=0)


def _parts(panel: Panel, run: RunLog) -> Iterator[tuple[str, Sequence[Line], float, float]]:
    """Yield what is drawn of a run in a panel: metric, lines of the log, width and opacity."""
    if panel.steps == "joined":
        yield panel.name, run.lines, 1.0, 1.0
        return
    yield panel.name, run.closing, 1.0, 1.0
    if panel.thin is not None:
        yield panel.thin, run.closing, 0.5, 1.0
    if panel.steps == "thin":
        yield panel.name, [line for line in run.lines if line.epoch is None], 0.5, 0.4


def _style(number: int) -> tuple[str, Dash]:
    """Return a run's colour and dashes."""
    turn, place = divmod(number, len(COLOURS))
    return COLOURS[place], DASHES[turn % len(DASHES)]


def _name_runs(figure: Figure, runs: Sequence[RunLog]) -> None:
    """Name one run in the title, several in a legend above the panels."""
    found = run_names([run.folder for run in runs])
    names = [_label(name, run) for name, run in zip(found, runs, strict=True)]
    if len(runs) == 1:
        title = f"{names[0]}: {runs[0].settings['student']}, {runs[0].settings['learn']}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
        return
    columns = max(LEGEND_LETTERS // (max(map(len, names)) + 8), 1)
    rows = -(-len(names) // columns)
    legend = figure.legend(
        handles=[
            Line2D([], [], color=colour, linestyle=dash, label=" ")
            for colour, dash in map(_style, range(len(runs)))
        ],
        loc="outside upper left",
        ncols=-(-len(names) // rows),
        frameon=False,
        fontsize=9,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # names may hold dollars, and begin with underscores
        text.set_text(name)


def _label(name: str, run: RunLog) -> str:
    """Return a run's name and what it is; where it is unfinished, how far it came."""
    shown = name if len(name) <= NAME_LETTERS else f"…{name[1 - NAME_LETTERS :]}"
    if run.epochs_done < run.epochs:
        shown += f" ({run.epochs_done} of {run.epochs} epochs)"
    return shown.encode(errors="backslashreplace").decode()
