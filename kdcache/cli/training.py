"""A run of kdcache train as people see it: what is to happen, its epochs, pace and curves."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdcache.cli.output import human_bytes, progress_bar

if TYPE_CHECKING:
    from kdcache.student.run import Pace, Run

TAUGHT = ("teacher_top1", "teacher_top5")  # the measures that are the teacher's own


def teacher_words(found: Mapping[str, Any], *, before: str = "") -> str | None:
    """Return how good measures say that the teacher is; None if they do not.

    before: stands before their names.
    """
    shown = zip(("top-1", "top-5"), (found.get(before + name) for name in TAUGHT), strict=True)
    return ", ".join(f"{name} {value:.1%}" for name, value in shown if value is not None) or None


def next_steps(
    run: "Run", *, val_data: str | None, val_caches: Sequence[str], labels: Path | None
) -> str:
    """Return the commands that follow a run, with what they must be told."""
    folder, spec = str(run.folder), run.config.student
    named = () if spec.startswith(("torchvision:", "timm:")) else ("--student", spec)
    caches = [word for cache in val_caches for word in ("--cache", cache)]
    if caches and labels is not None:
        caches += ["--labels", str(labels)]
    commands = (
        ("eval", folder, "--data", val_data or "IMAGES", *caches, *named),
        ("export", folder, "student.pt2", *named),
        ("show", folder),
    )
    return "next: " + ", ".join(f"kdcache {shlex.join(words)}" for words in commands)


def describe(run: "Run") -> str:
    """Return what is about to happen."""
    from kdcache.student.setup import reuse_factor

    epochs, stream, world = run.config.epochs, run.stream, run.world
    reuse = reuse_factor(run.config, stream)
    if reuse is None:
        views = "fresh views"
    elif reuse <= 1:
        views = f"{epochs} of {stream.num_views} stored views, each used once"
    else:
        views = f"{stream.num_views} stored views, each used {reuse:.3g} times"
    place = str(world.device) if world.size == 1 else f"{world.size} processes"
    return (
        f"{epochs} epochs of {stream.num_samples} samples on {place}; {views}; at most "
        f"{stream.memory_bytes / 2**20:,.0f} MiB of rendered blocks"
    )


def train_visibly(
    run: "Run", *, resume: bool, tell: Callable[[str], None], tensorboard: bool
) -> dict[str, Any]:
    """Train, showing progress; return the last epoch's metrics."""
    from kdcache.student.loop import train as train_student

    last: dict[str, Any] = {}
    told: set[str] = set()

    def report(metrics: dict[str, Any]) -> None:
        if "epoch" in metrics:
            last.clear()
            last.update(metrics)
            tell(f"epoch {metrics['epoch']}/{run.config.epochs}: {_in_words(metrics)}")
            words = teacher_words(metrics, before="val_")
            if words is not None and not told:
                told.add(words)
                tell(f"teacher, on the same images: {words}")

    with ExitStack() as stack:
        reports: list[Callable[[dict[str, Any]], None]] = [report]
        if tensorboard and run.world.is_first:
            from kdcache.report.tensorboard import tensorboard_writer

            reports.append(stack.enter_context(tensorboard_writer(run.folder)))

        def report_all(metrics: dict[str, Any]) -> None:
            for one in reports:
                one(metrics)

        progress = stack.enter_context(_Bar())
        try:
            train_student(run, resume=resume, report=report_all, progress=progress)
        except KeyboardInterrupt as end:
            _draw_curves(run)
            tell(f"stopped; go on from {run.folder} with --resume")
            raise typer.Exit(143 if end.args else 130) from None
    _draw_curves(run)
    return last


def _in_words(metrics: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in metrics.items()
        if name not in ("epoch", "step", *(f"val_{taught}" for taught in TAUGHT))
    )


def _draw_curves(run: "Run") -> None:
    """Draw the curves of a run that has any into its folder."""
    from kdcache.report.curves import draw_curves
    from kdcache.report.runs import read_run

    if run.world.is_first and (log := read_run(run.folder)).lines:
        draw_curves([log], run.folder / "curves.png")


class _Bar:
    """Shows the pace of a run from its first step on."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pace: Pace | None = None
        self._advance: Callable[[int], None] | None = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, pace: "Pace") -> None:
        self._pace = pace
        if self._advance is None:
            left = pace.num_steps - pace.step + 1
            bar = progress_bar("train", left, rates=lambda *_: self._rates())
            self._advance = self._stack.enter_context(bar)
        self._advance(1)

    def _rates(self) -> str:
        if (pace := self._pace) is None:
            return ""
        memory = "" if pace.memory_bytes is None else f", {human_bytes(pace.memory_bytes)} of GPU"
        return (
            f"steps, {pace.images_per_s:,.0f} images/s, {pace.wait_share:.0%} waiting for data"
            f"{memory}"
        )
