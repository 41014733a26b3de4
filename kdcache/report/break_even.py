"""A plan drawn by matplotlib: the cost of the teacher against the number of student runs."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kdcache.report.figures import DARK_GREY, plain
from kdcache.report.plan import Plan, money

CACHED, ONLINE = "#2f6db5", "#c44e52"
LEAST_RUNS = 4
MOST_DOTS = 24  # whole runs are marked, where they can be told apart


def shown_runs(plan: Plan, runs: int) -> int:
    """Return the number of student runs at the right edge."""
    beyond = 0 if plan.break_even is None else math.ceil(1.5 * plan.break_even)
    return max(runs, beyond, LEAST_RUNS)


def draw_break_even(plan: Plan, path: Path, *, runs: int, caption: str) -> None:
    """Write a PNG with the costs of a cache and of a teacher online, and where they are equal.

    runs: student runs at which both are stated. caption: lines below.
    """
    figure = Figure(figsize=(8, 5.4), layout="constrained", dpi=150)
    figure.suptitle("Cost of the teacher, cached and online", x=0.02, ha="left", fontsize=13)
    axes = figure.subplots()
    most = shown_runs(plan, runs)
    whole = range(most + 1)
    marker = "o" if most <= MOST_DOTS else ""
    axes.plot(whole, [plan.cached_cost] * len(whole), color=CACHED, linewidth=2)
    online = [run * plan.online_cost for run in whole]
    axes.plot(whole, online, color=ONLINE, linewidth=2, marker=marker, markersize=4)
    _mark_break_even(axes, plan)
    _mark_runs(axes, plan, runs)
    axes.set_xlim(0, 1.04 * most)
    axes.set_ylim(0, 1.12 * max(plan.cached_cost, most * plan.online_cost) or 1)
    axes.set_xlabel("student runs")
    axes.set_ylabel("cost")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    plain(axes)
    figure.supxlabel(caption, fontsize=8, color=DARK_GREY, x=0.02, ha="left", linespacing=1.4)
    figure.savefig(path, format="png")


def _mark_break_even(axes: Axes, plan: Plan) -> None:
    if plan.break_even is None:
        axes.set_title("no break-even", loc="right", fontsize=10, color=DARK_GREY)
        return
    axes.axvline(plan.break_even, color="black", linewidth=1, linestyle=":")
    axes.plot(plan.break_even, plan.cached_cost, "o", color="black", markersize=7, zorder=4)
    axes.annotate(
        f"break-even: {plan.break_even:.2g} runs",
        xy=(plan.break_even, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="left" if plan.break_even <= 1 else "center",
        fontsize=10,
    )


def _mark_runs(axes: Axes, plan: Plan, runs: int) -> None:
    """Join both costs at a number of runs, and state them where no line runs."""
    online = runs * plan.online_cost
    axes.plot([runs, runs], [plan.cached_cost, online], color=DARK_GREY, linewidth=1, zorder=1)
    beneath = online / 2 <= plan.cached_cost < online  # else there is room above
    labels = (
        (plan.cached_cost, CACHED, f"cached: {money(plan.cached_cost)}", beneath),
        (online, ONLINE, f"online, {runs} run{'s' if runs > 1 else ''}: {money(online)}", False),
    )
    left = runs < shown_runs(plan, runs) / 4
    for cost, colour, text, below in labels:
        axes.plot(runs, cost, "o", color=colour, markersize=7, zorder=4)
        axes.annotate(
            text,
            xy=(runs, cost),
            xytext=(8 if left else -8, -6 if below else 6),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top" if below else "bottom",
            color=colour,
            fontweight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
