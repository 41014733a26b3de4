"""Claims about plans: worked by hand, and that more of anything costs as it should."""

import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from kdcache.errors import UsageError
from kdcache.precompute.probe import ViewCosts
from kdcache.report.break_even import draw_break_even, shown_runs
from kdcache.report.plan import (
    Plan,
    Prices,
    Views,
    Wishes,
    busy_workers,
    enough_views,
    epochs_of_views,
    make_plan,
    money,
    view_time,
    views_of_epochs,
)

GPU = ViewCosts(
    teacher_s=0.001, render_s=0.004, target_bytes=50, span_views=8, teacher_cores=1, cores=16
)
JOB = Wishes(
    num_images=900_000,
    num_tars=900,
    image_bytes=100_000,
    views=Views(16, 8, 48),
    num_devices=4,
    num_workers=8,
    prices=Prices(device_hour=3, gb_month=0.5, months=10),
)


def check_close(found: float | None, wanted: float) -> None:
    assert found == pytest.approx(wanted, rel=1e-9)


# --- worked by hand ------------------------------------------------------------------------


def test_a_job_that_its_teacher_limits() -> None:
    plan = make_plan(GPU, JOB)
    # 14.4 million views at 1 ms: 14,400 s, which is 4 hours, on 4 GPUs one.
    assert plan.limited_by == "teacher"
    check_close(plan.teacher_hours, 4)
    check_close(plan.wall_hours, 1)
    check_close(plan.device_hours, 4)
    check_close(plan.views_per_s, 4000)
    check_close(plan.storage_bytes, 900_000 * (16 * 50 + 16))
    check_close(plan.precompute_cost, 12)
    check_close(plan.storage_cost, 0.7344 * 0.5 * 10)
    check_close(plan.cached_cost, 12 + 3.672)
    # 43.2 million steps at 1 ms: 12 hours.
    check_close(plan.online_hours, 12)
    check_close(plan.online_cost, 36)
    check_close(plan.break_even, 15.672 / 36)
    assert plan.student_hours is None
    check_close(plan.read_mb_per_s, 100.05)


def test_a_job_that_rendering_limits() -> None:
    plan = make_plan(GPU, replace(JOB, num_workers=2))  # 4 ms of two workers: 2 ms a view
    assert plan.limited_by == "rendering"
    check_close(plan.wall_hours, 2)
    check_close(plan.device_hours, 8)
    check_close(plan.teacher_hours, 4)
    check_close(plan.break_even, (24 + 3.672) / 36)


def test_without_workers_teacher_and_rendering_take_turns() -> None:
    assert view_time(GPU, 0) == (pytest.approx(0.005), "rendering")
    assert view_time(replace(GPU, render_s=0.0005), 0) == (pytest.approx(0.0015), "teacher")


def test_a_teacher_on_the_cpu_shares_its_cores_with_rendering() -> None:
    cpu = ViewCosts(0.010, 0.004, 50, 8, teacher_cores=2, cores=2)
    assert view_time(cpu, 1) == (pytest.approx(0.012), "cores")


def test_a_known_student_says_its_hours_and_its_own_bandwidth() -> None:
    plan = make_plan(GPU, replace(JOB, student_images_per_s=2000.0))
    check_close(plan.read_mb_per_s, 200.1)
    check_close(plan.student_hours, 43_200_000 / 2000 / 3600)


def test_gpus_beyond_the_spans_are_idle() -> None:
    job = replace(JOB, num_tars=3, views=Views(8, 8, 8))  # three spans
    walls = [make_plan(GPU, replace(job, num_devices=n)).wall_hours for n in (1, 2, 3, 4)]
    check_close(walls[1], walls[0] * 2 / 3)
    check_close(walls[2], walls[0] / 3)
    assert walls[3] == walls[2]
    four = make_plan(GPU, replace(job, num_devices=4))
    check_close(four.device_hours, 4 * walls[3])


def test_workers_keep_a_gpu_busy_as_far_as_its_cores_allow() -> None:
    assert busy_workers(GPU) == 4
    assert view_time(GPU, 4)[1] == "teacher"
    assert busy_workers(replace(GPU, cores=3)) == 2
    assert busy_workers(replace(GPU, cores=0.5)) == 1
    assert busy_workers(replace(GPU, render_s=1e-6)) == 1


# --- break-even ----------------------------------------------------------------------------


def test_a_cache_whose_views_are_used_once_is_even_after_one_run() -> None:
    free = Prices(device_hour=2, gb_month=0)
    check_close(make_plan(GPU, replace(JOB, views=Views(16, 8, 16), prices=free)).break_even, 1)


def test_break_even_comes_at_once_where_a_cache_costs_nothing() -> None:
    assert make_plan(GPU, replace(JOB, prices=Prices(0, 0, 12))).break_even == 0


def test_break_even_never_comes_where_a_teacher_costs_nothing_and_storage_does() -> None:
    assert make_plan(GPU, replace(JOB, prices=Prices(0, 0.02, 12))).break_even is None


@given(
    teacher_s=st.floats(1e-6, 10),
    render_s=st.floats(1e-6, 10),
    workers=st.integers(0, 64),
    devices=st.integers(1, 2000),
    span=st.integers(1, 8),
    runs=st.integers(1, 50),
    epochs=st.integers(1, 10_000),
)
def test_more_gpus_workers_and_views_cost_as_they_should(
    teacher_s: float,
    render_s: float,
    workers: int,
    devices: int,
    span: int,
    runs: int,
    epochs: int,
) -> None:
    costs = replace(GPU, teacher_s=teacher_s, render_s=render_s)
    views = Views(span * runs, span, epochs)
    job = replace(JOB, views=views, num_devices=devices, num_workers=workers)
    plan = make_plan(costs, job)
    more = make_plan(costs, replace(job, num_devices=devices + 1))
    assert more.wall_hours <= plan.wall_hours
    assert plan.device_hours >= plan.teacher_hours * (1 - 1e-9)
    assert view_time(costs, workers + 1)[0] <= view_time(costs, workers)[0]
    twice = make_plan(costs, replace(job, views=Views(2 * span * runs, span, epochs)))
    check_close(twice.online_cost, plan.online_cost)
    assert twice.cached_cost > plan.cached_cost
    assert plan.break_even is not None
    even = plan.break_even * plan.online_cost
    check_close(even, plan.cached_cost)


# --- views and epochs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "reuse", "span", "wanted"),
    [
        (300, 3, None, (104, 8)),
        (48, 3, None, (16, 8)),
        (9, 3, None, (3, 3)),
        (1, 3, None, (1, 1)),
        (300, 3, 10, (100, 10)),
        (300, 0.3, 4, (1000, 4)),
        (7, 7 / 3, 1, (3, 1)),  # no fourth for a rounding error
    ],
)
def test_views_are_epochs_over_reuse_in_whole_spans(
    epochs: int, reuse: float, span: int | None, wanted: tuple[int, int]
) -> None:
    views = views_of_epochs(epochs, reuse=reuse, span_views=span)
    assert (views.num_views, views.span_views) == wanted
    assert views.epochs == epochs
    assert views.reuse <= reuse * (1 + 1e-9)


@given(epochs=st.integers(1, 10**9))
def test_enough_views_are_three_times_the_root_of_the_epochs(epochs: int) -> None:
    views = enough_views(epochs)
    assert views == min(epochs, math.ceil(Decimal(9 * epochs).sqrt()))
    assert epochs_of_views(views, span_views=1).epochs >= epochs
    if epochs > 9:
        assert enough_views(epochs_of_views(views, span_views=1).epochs) == views


def test_without_a_reuse_views_are_enough_of_them_in_whole_spans() -> None:
    assert views_of_epochs(300) == Views(56, 8, 300)
    assert views_of_epochs(7) == Views(7, 7, 7)
    assert views_of_epochs(10) == Views(10, 5, 10)
    assert views_of_epochs(16) == Views(16, 8, 16)
    assert views_of_epochs(9, span_views=8) == Views(16, 8, 9)
    assert epochs_of_views(56) == Views(56, 8, 348)
    assert epochs_of_views(4) == Views(4, 4, 4)


def test_epochs_are_views_times_reuse() -> None:
    assert epochs_of_views(16, reuse=3) == Views(16, 8, 48)
    assert epochs_of_views(5, reuse=0.5).epochs == 3


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["device_hour", "gb_month", "months"])
def test_a_price_is_a_number_from_zero(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Prices(**{name: value})


def test_wishes_that_make_no_job_are_refused() -> None:
    for name in ("num_images", "num_devices", "runs"):
        with pytest.raises(UsageError, match=f"{name} 0: expected 1 or more"):
            replace(JOB, **{name: 0})
    for speed in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="student_images_per_s"):
            replace(JOB, student_images_per_s=speed)
    for reuse in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="reuse"):
            views_of_epochs(3, reuse=reuse)
        with pytest.raises(UsageError, match="reuse"):
            epochs_of_views(3, reuse=reuse)
    for span in (0, -1):
        with pytest.raises(UsageError, match="multiple"):
            views_of_epochs(3, reuse=1, span_views=span)
    with pytest.raises(UsageError, match="multiple"):
        epochs_of_views(10, reuse=1, span_views=4)
    with pytest.raises(UsageError, match="0 epochs"):
        views_of_epochs(0, reuse=1)


def test_amounts_are_readable_at_every_size() -> None:
    amounts = {12345.678: "12,345.68", 0.5: "0.50", 0.0: "0.00", 0.001234: "0.0012"}
    assert {amount: money(amount) for amount in amounts} == amounts


# --- the picture ---------------------------------------------------------------------------


def texts(figure: Figure) -> str:
    axes = figure.axes[0]
    return "\n".join([*(text.get_text() for text in axes.texts), axes.get_title("right")])


def draw(path: Path, plan: Plan, runs: int) -> None:
    draw_break_even(plan, path, runs=runs, caption="7 GB")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 700


def test_the_picture_states_break_even_and_both_costs(
    tmp_path: Path, figures: list[Figure]
) -> None:
    plan = make_plan(GPU, JOB)
    draw(tmp_path / "a.png", plan, runs=3)
    shown = texts(figures[0])
    assert "break-even: 0.44 runs" in shown
    assert "cached: 15.67" in shown
    assert "online, 3 runs: 108.00" in shown
    ends = [line.get_xydata()[-1].tolist() for line in figures[0].axes[0].lines[:2]]  # type: ignore[index]
    assert ends == [[4, pytest.approx(15.672)], [4, pytest.approx(144)]]


def test_the_picture_says_that_there_is_no_break_even(
    tmp_path: Path, figures: list[Figure]
) -> None:
    never = make_plan(GPU, replace(JOB, prices=Prices(0, 0.02, 12)))
    draw(tmp_path / "a.png", never, runs=1)
    draw(tmp_path / "b.png", make_plan(GPU, replace(JOB, prices=Prices(0, 0, 0))), runs=1)
    assert "no break-even" in texts(figures[0])
    assert "break-even: 0 runs" in texts(figures[1])


def test_a_late_break_even_is_in_the_picture() -> None:
    plan = replace(make_plan(GPU, JOB), break_even=40.0)
    assert shown_runs(plan, 3) == 60
    assert shown_runs(plan, 200) == 200
