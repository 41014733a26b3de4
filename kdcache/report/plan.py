"""What a cache will cost, and from how many student runs on it is cheaper than a live teacher.

Pure arithmetic from what a view costs and what is wished. Left out: starting processes, uploads,
and the student's own work, which is the same with and without a cache.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from kdcache.cache.layout import MAX_SPAN_VIEWS, check_views, default_span_views
from kdcache.errors import UsageError
from kdcache.precompute.probe import ViewCosts

ROW_BYTES = 16  # of a cache, once an image: its uid and content digest
MAX_VIEWS = 1_000_000
MAX_EPOCHS = 10**12
GB = 1e9
HOUR_S = 3600.0

Limit = Literal["teacher", "rendering", "cores", "spans"]


@dataclass(frozen=True)
class Prices:
    """Prices in any currency. gb_month: of a stored GB (10**9 bytes), kept for `months`."""

    device_hour: float = 2.0
    gb_month: float = 0.02
    months: float = 12.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise UsageError(f"price {field.name} {value}: expected a number from 0")


@dataclass(frozen=True)
class Views:
    """Views of each image, in spans of span_views, for student runs of `epochs`."""

    num_views: int
    span_views: int
    epochs: int

    @property
    def reuse(self) -> float:
        """Return how often a student run uses each view."""
        return self.epochs / self.num_views


def enough_views(epochs: int) -> int:
    """Return the views that student runs of so many epochs need: 3 times the root of the epochs.

    No more than one an epoch. Source: docs/how-to/choose-views.md.
    """
    return min(epochs, math.isqrt(9 * epochs - 1) + 1)


def views_of_epochs(
    epochs: int, *, reuse: float | None = None, span_views: int | None = None
) -> Views:
    """Return the views that student runs use `reuse` times each: epochs / reuse, in whole spans.

    reuse: None for enough_views.

    Raises:
        UsageError: epochs or span_views are below 1, reuse is not a number above 0, or something is
            more than MAX_EPOCHS or MAX_VIEWS.
    """
    if not 1 <= epochs <= MAX_EPOCHS:
        raise UsageError(f"{epochs!s:.20} epochs: expected 1 to {MAX_EPOCHS:,}")
    if reuse is None:
        least = enough_views(epochs)
    else:
        _check_reuse(reuse)
        least = _whole(epochs / reuse, reuse, most=MAX_VIEWS, what=f"views of {epochs:,} epochs")
    span = min(MAX_SPAN_VIEWS, least) if span_views is None else span_views
    views = -(-least // max(span, 1)) * span
    if span_views is None and views > epochs >= least:  # no more than one an epoch
        views, span = least, default_span_views(least)
    check_views(views, span)
    if views > MAX_VIEWS:
        raise UsageError(f"spans of {span!s:.20} views: expected up to {MAX_VIEWS:,} views in all")
    return Views(views, span, epochs)


def epochs_of_views(
    num_views: int, *, reuse: float | None = None, span_views: int | None = None
) -> Views:
    """Return so many views, with the epochs that use each `reuse` times, rounded up.

    reuse: None for the most epochs of which they are enough_views.

    Raises:
        UsageError: the views do not fill whole spans, reuse is not a number above 0, or there are
            more epochs than MAX_EPOCHS.
    """
    span = default_span_views(num_views) if span_views is None else span_views
    check_views(num_views, span)
    if reuse is None:
        return Views(num_views, span, max(num_views, num_views**2 // 9))
    _check_reuse(reuse)
    epochs = _whole(num_views * reuse, reuse, most=MAX_EPOCHS, what=f"epochs of {num_views} views")
    return Views(num_views, span, epochs)


def _check_reuse(reuse: float) -> None:
    if not 0 < reuse < math.inf:
        raise UsageError(f"reuse {reuse}: expected how often a view is used, a number above 0")


def _whole(value: float, reuse: float, *, most: int, what: str) -> int:
    """Return value rounded up, but not for a rounding error.

    Raises:
        UsageError: it is more than `most`, by this reuse.
    """
    if value > most:
        raise UsageError(
            f"reuse {reuse} makes {value:.3g} {what}, expected up to {most:,}; change --reuse, or "
            "make's REUSE"
        )
    return math.ceil(value * (1 - 1e-12))


@dataclass(frozen=True)
class Wishes:
    """The job.

    num_devices: GPUs, each with num_workers processes that render; 0 renders between the teacher's
    calls. image_bytes: of an image in its tar. runs: student runs that costs are stated for.
    student_images_per_s: of the student on one device, if known.
    """

    num_images: int
    num_tars: int
    image_bytes: float
    views: Views
    num_devices: int = 1
    num_workers: int = 0
    runs: int = 3
    student_images_per_s: float | None = None
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        least = {"num_images": 1, "num_tars": 1, "num_devices": 1, "num_workers": 0, "runs": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} {getattr(self, name)}: expected {low} or more")
        speed = self.student_images_per_s
        if speed is not None and not 0 < speed < math.inf:
            raise UsageError(f"student_images_per_s {speed}: expected a number above 0")


@dataclass(frozen=True)
class Plan:
    """What comes of it.

    storage_bytes: of the whole cache. teacher_hours: of devices at work on the teacher;
    device_hours: from the job's start to its end, idle time included. wall_hours: of the job.
    limited_by: what it waits for; cores: those that teacher and rendering share; spans:
    there are fewer than devices. views_per_s: of
    all devices. read_bytes: of an image and its target; read_mb_per_s: at the student's speed, or
    at 1,000 images a second. precompute_cost, storage_cost: once. online_hours, online_cost: of the
    teacher in one student run. student_hours: of a run without its teacher, if known. break_even:
    student runs after which the cache is cheaper; None: never.
    """

    storage_bytes: float
    teacher_hours: float
    device_hours: float
    wall_hours: float
    limited_by: Limit
    views_per_s: float
    read_bytes: float
    read_mb_per_s: float
    precompute_cost: float
    storage_cost: float
    online_hours: float
    online_cost: float
    student_hours: float | None
    break_even: float | None

    @property
    def cached_cost(self) -> float:
        """Return what the cache costs, for any number of student runs."""
        return self.precompute_cost + self.storage_cost


def busy_workers(costs: ViewCosts) -> int:
    """Return the rendering processes that keep a device busy, as far as its cores allow.

    One core is left to the teacher's process; one worker there is at least.
    """
    wanted = math.ceil(costs.render_s / costs.teacher_s)
    return max(min(wanted, int(costs.cores) - 1), 1)


def view_time(costs: ViewCosts, num_workers: int) -> tuple[float, Limit]:
    """Return the seconds of one device's job a view, and what limits them.

    Without workers, rendering and teacher take turns: teacher + render. With W workers they
    overlap, and the slowest decides: the teacher; rendering / W; or the cores that all of it shares
    (CPU seconds of both over cores), which counts where the teacher runs on the CPU.
    """
    teacher, render = costs.teacher_s, costs.render_s
    if num_workers == 0:
        return teacher + render, "teacher" if teacher >= render else "rendering"
    limits: dict[Limit, float] = {
        "teacher": teacher,
        "rendering": render / num_workers,
        "cores": (teacher * costs.teacher_cores + render) / costs.cores,
    }
    slowest = max(limits, key=lambda name: limits[name])
    return limits[slowest], slowest


def make_plan(costs: ViewCosts, wishes: Wishes) -> Plan:
    """Return what a job costs, with N images, V views, E epochs, S spans, n devices.

    - storage: N x (V x bytes of a target + 16)
    - teacher hours: N x V x teacher
    - wall time: N x V x view_time x ceil(S / n) / S: devices take whole spans; S is tars x V / G
    - device hours: wall time x n
    - reading: images a second x (bytes of an image + bytes of a target); a tile is read at once,
      by each of the student's workers that renders a block of it
    - cached: device hours x price + storage in GB x price x months, whatever the number of runs
    - online, a run: N x E x teacher x price: the teacher at every step, on the same views;
      rendering is the student's in both ways
    - break-even: cached / online runs. Where the teacher costs nothing, it never comes, unless the
      cache costs nothing either
    """
    views, prices = wishes.views, wishes.prices
    total = wishes.num_images * views.num_views
    view_s, limit = view_time(costs, wishes.num_workers)
    spans = wishes.num_tars * views.num_views // views.span_views
    wall_s = total * view_s * math.ceil(spans / wishes.num_devices) / spans
    device_hours = wall_s * wishes.num_devices / HOUR_S
    storage_bytes = total * costs.target_bytes + wishes.num_images * ROW_BYTES
    steps = wishes.num_images * views.epochs
    online_hours = steps * costs.teacher_s / HOUR_S
    speed = wishes.student_images_per_s
    read_bytes = wishes.image_bytes + costs.target_bytes
    precompute_cost = device_hours * prices.device_hour
    storage_cost = storage_bytes / GB * prices.gb_month * prices.months
    online_cost = online_hours * prices.device_hour
    return Plan(
        storage_bytes=storage_bytes,
        teacher_hours=total * costs.teacher_s / HOUR_S,
        device_hours=device_hours,
        wall_hours=wall_s / HOUR_S,
        limited_by=limit if spans >= wishes.num_devices else "spans",
        views_per_s=total / wall_s,
        read_bytes=read_bytes,
        read_mb_per_s=(1000 if speed is None else speed) * read_bytes / 1e6,
        precompute_cost=precompute_cost,
        storage_cost=storage_cost,
        online_hours=online_hours,
        online_cost=online_cost,
        student_hours=None if speed is None else steps / speed / HOUR_S,
        break_even=_break_even(precompute_cost + storage_cost, online_cost),
    )


def _break_even(once: float, each: float) -> float | None:
    if once == 0:
        return 0.0
    return once / each if each > 0 else None


def money(amount: float) -> str:
    """Return an amount with two decimals; one below a hundredth with two digits."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else f"{amount:.2g}"
