"""The student benchmark: what cached targets add to a step, and what they spare a whole run.

    make bench-student
    python -m pipelines.bench.student --quick

Three comparisons:

    a step              one student learns from cached targets, one from labels; both take the same
                        batches, which lie in memory, in turns
    a teacher           the same student, views and batches, from the cache and with the teacher in
                        the loop. The latter decodes images whole, as kdcache does where no teacher
                        has seen them before
    the usual loop      a student of one layer: ours replays mixed views and learns from their
                        targets, the usual one crops, flips and learns from labels

Takes about 7 minutes on two quiet cores, less on a machine with a GPU, which is then used; writes
build/bench/student.json. Exit code 1: a bar does not hold.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdcache.replay.batch import Batch
from kdcache.student.objective import Objective
from kdcache.student.run import Run
from pipelines.bench.material import NUM_CLASSES, Material, make_material, mixed_recipe
from pipelines.bench.photos import SETS, make_photos
from pipelines.bench.record import (
    Bar,
    Progress,
    conclude,
    load_average,
    make_bar,
    make_record,
    read_options,
)
from pipelines.bench.replaying import stream_works
from pipelines.bench.student_sizes import FULL, ON_GPU, QUICK, StudentSizes
from pipelines.bench.timing import (
    Batches,
    Cost,
    Work,
    alternate,
    between,
    rounded,
    speedups,
    summary,
    timed,
)
from pipelines.bench.training import (
    Plan,
    cached_run,
    gflops,
    make_stepper,
    online_run,
    our_loop,
    synchronise,
    usual_loop,
)

PACKAGES = ("numpy", "pillow", "simplejpeg", "torch", "torchvision", "zarr")
ENCODING = "packed:32"
POOLED = "pipelines.bench.material:pooled_teacher"  # one layer on mean colours
NUM_VIEWS = 24  # so many that no round uses one twice
VIEWS_PER_LOAD = 4  # of the loop that decodes an image once for several epochs
_AHEAD = 4  # passes beside those measured, of which the first is not, and two or fewer wait loaded

Found = tuple[list[Bar], dict[str, Any]]


# --- a step --------------------------------------------------------------------------------


def _again(step: Callable[[], int], times: int) -> Work:
    """Return work that is a step, so many times, each of which returns its images."""

    def work(_: int) -> int:
        images = sum(step() for _ in range(times))
        synchronise()
        return images

    return timed(work)


def _by_labels(run: Run) -> Run:
    """Return a run on the same stream that learns from its labels."""
    config = run.config.model_copy(update={"learn": "labels"})
    return replace(run, config=config, objective=Objective(config))


def _steps(run: Run, batches: Sequence[Batch], times: int) -> Work:
    step, coming = make_stepper(run), cycle(batches)

    def one() -> int:
        batch = next(coming)
        step(batch)
        return len(batch)

    return _again(one, times)


def _losses(run: Run, batch: Batch, times: int) -> Work:
    moved = batch.to(run.world.device)
    shape = (len(batch), NUM_CLASSES)
    logits_NC = torch.randn(shape, device=run.world.device, requires_grad=True)

    def one() -> int:
        logits_NC.grad = None
        torch.autograd.backward(run.objective(logits_NC, moved).mean())
        return len(batch)

    return _again(one, times)


def _ms(costs: Sequence[Cost], images: int) -> dict[str, float]:
    """Return the milliseconds of a batch."""
    return {
        "ms": rounded(1e3 * images * median(cost.wall_s for cost in costs)),
        "cpu_ms": rounded(1e3 * images * median(cost.cpu_s for cost in costs)),
    }


def step_bars(material: Material, sizes: StudentSizes) -> Found:
    """Return what learning from cached targets adds to a step, and the losses alone."""
    plan = Plan(sizes.student, sizes.precision, sizes.step_batch, workers=0, epochs=sizes.steps)
    run = cached_run(material, plan)
    runs = {"cached targets": run, "labels": _by_labels(run)}
    batches = list(islice(run.stream, sizes.steps))
    steps = {name: _steps(run, batches, sizes.steps) for name, run in runs.items()}
    costs = alternate(steps, rounds=sizes.step_rounds)
    found = speedups(costs["labels"], costs["cached targets"], clock="wall")
    losses = {name: _losses(run, batches[0], sizes.loss_calls) for name, run in runs.items()}
    loss_costs = alternate(losses, rounds=sizes.step_rounds)
    by_cpu = speedups(costs["labels"], costs["cached targets"], clock="cpu")
    figures = {
        "a_step": {
            **{name: _ms(cost, sizes.step_batch) for name, cost in costs.items()},
            "ratio_in_cpu_seconds": rounded(median(by_cpu)),
        },
        "its_loss": {name: _ms(cost, sizes.step_batch) for name, cost in loss_costs.items()},
    }
    name = "step_with_cached_targets_over_labels"
    return [make_bar(name, found, bar=1.03, better="lower")], figures


def stream_figures(material: Material, sizes: StudentSizes) -> dict[str, Any]:
    """Return what reading and gathering targets adds to the stream, in CPU-seconds."""
    works = stream_works(material, batch=sizes.batch, passes=sizes.passes)
    costs = alternate(works, rounds=sizes.rounds)

    def added(more: str, less: str) -> float:
        pairs = zip(costs[more], costs[less], strict=True)
        return rounded(1e6 * median(a.cpu_s - b.cpu_s for a, b in pairs))

    return {
        **{name: summary(found) for name, found in costs.items()},
        "targets_add_cpu_us_per_image": added("views and targets", "views"),
        "proving_adds_cpu_us_per_image": added("views and targets, proven", "views and targets"),
    }


# --- a teacher in the loop -----------------------------------------------------------------


def _loop_work(open_loop: Callable[[], Batches], *, start: int, images: int) -> Work:
    def work(_: int) -> Cost:
        with closing(open_loop()) as batches:
            return between(batches, start=start, stop=start + images)

    return work


def teacher_figures(material: Material, sizes: StudentSizes) -> dict[str, Any]:
    """Return how many times as fast a run from the cache is as one with its teacher in the loop."""
    plan = Plan(
        sizes.student,
        sizes.precision,
        sizes.taught_batch,
        sizes.taught_workers,
        epochs=sizes.taught_passes + _AHEAD,
        stretch=sizes.taught_stretch,
    )
    recipe = mixed_recipe()

    def cached() -> Batches:
        return our_loop(cached_run(material, plan), plan)

    def online(teacher: str) -> Batches:
        return our_loop(online_run(material, plan, recipe=recipe, teacher=teacher), plan)

    teachers = {"light": sizes.light, "heavy": sizes.heavy}
    loops = {"cached": cached}
    loops |= {name: lambda spec=spec: online(spec) for name, spec in teachers.items()}  # type: ignore[misc]
    start, images = plan.stretch * plan.batch, sizes.taught_passes * sizes.taught_images
    works = {n: _loop_work(loop, start=start, images=images) for n, loop in loops.items()}
    costs = alternate(works, rounds=sizes.taught_rounds)
    cost = gflops(sizes.student, size=recipe.size)
    found: dict[str, Any] = {
        "cached": {"student": sizes.student, "forward_gflops": rounded(cost)}
        | summary(costs["cached"])
    }
    for name, spec in teachers.items():
        own = gflops(spec, size=recipe.size)
        runs = speedups(costs["cached"], costs[name], clock="wall")
        found[name] = {
            "teacher": spec,
            "forward_gflops": rounded(own),
            "times_the_students": rounded(own / cost),
            **summary(costs[name]),
            "cached_is_faster": rounded(median(runs)),
            "runs": [rounded(run) for run in runs],
        }
    return found


# --- the usual loop ------------------------------------------------------------------------


def loop_bars(material: Material, sizes: StudentSizes) -> Found:
    """Return our whole loop beside the usual one, with a student that costs next to nothing."""
    per_pass, size = sizes.images, mixed_recipe().size
    plan = Plan(
        POOLED,
        sizes.precision,
        sizes.batch,
        sizes.workers,
        epochs=sizes.passes + _AHEAD,
        stretch=per_pass // sizes.batch,
    )
    several = replace(plan, epochs=NUM_VIEWS, views_per_load=VIEWS_PER_LOAD)
    images = sizes.passes * per_pass
    works = {
        "kdcache": _loop_work(
            lambda: our_loop(cached_run(material, plan), plan), start=per_pass, images=images
        ),
        "usual": _loop_work(
            lambda: usual_loop(material.image_folder, plan, size=size),
            start=per_pass,
            images=images,
        ),
        f"kdcache, {VIEWS_PER_LOAD} views a load": _loop_work(
            lambda: our_loop(cached_run(material, several), several),
            start=NUM_VIEWS // 3 * per_pass,
            images=NUM_VIEWS // 3 * per_pass,
        ),
    }
    costs = alternate(works, rounds=sizes.rounds)
    runs = speedups(costs["kdcache"], costs["usual"], clock="cpu")
    found: dict[str, Any] = {name: summary(cost) for name, cost in costs.items()}
    for name in found.keys() - {"usual"}:
        for clock in ("cpu", "wall"):
            ratios = speedups(costs[name], costs["usual"], clock=clock)
            found[name][f"faster_in_{clock}"] = rounded(median(ratios))
    bar = make_bar("loop_images_per_cpu_second_vs_imagefolder", runs, bar=2.0)
    return [bar], {"the_usual_loop": {"workers": sizes.workers, "batch": sizes.batch} | found}


# --- all of it -----------------------------------------------------------------------------


def _material(folder: Path, photos: Path, *, images: int, rows_per_tar: int) -> Material:
    make_photos(SETS["imagenet"], photos, count=images)
    return make_material(
        folder, photos, rows_per_tar=rows_per_tar, encoding=ENCODING, num_views=NUM_VIEWS
    )


def run(folder: Path, photos: Path, *, quick: bool) -> Found:
    """Return all bars and figures. folder: what is made afresh. photos: what is kept."""
    on_gpu = torch.cuda.is_available()
    say, sizes = Progress(), QUICK if quick else ON_GPU if on_gpu else FULL
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "quick": quick,
        "load_average_at_start": round(load_average(), 2),
        "device": "cuda" if on_gpu else "cpu",
        "precision": sizes.precision,
    }
    shutil.rmtree(folder, ignore_errors=True)
    material = _material(
        folder / "many", photos / "many", images=sizes.images, rows_per_tar=sizes.rows_per_tar
    )
    few = _material(
        folder / "few",
        photos / "few",
        images=sizes.taught_images,
        rows_per_tar=sizes.rows_per_tar,
    )
    say("photographs, tars and caches")
    bars, found = step_bars(material, sizes)
    figures |= found
    say("steps and losses")
    if not on_gpu:  # the stream is the CPU's work
        figures["the_stream"] = stream_figures(material, sizes)
        say("targets in the stream")
    figures["a_teacher_in_the_loop"] = teacher_figures(few, sizes)
    say("teachers in the loop")
    more, found = loop_bars(material, sizes)
    figures |= found
    say("the usual loop")
    figures["cores_used_by_others"] = say.others
    return bars + more, figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, write its record, and print it."""
    options = read_options(
        "student",
        "Measure what cached targets cost a step, and what they spare a whole run.",
        arguments,
    )
    photos = options.out / "photos" / ("student-quick" if options.quick else "student")
    bars, figures = run(options.out / "student", photos, quick=options.quick)
    record = make_record("student", bars, figures=figures, packages=PACKAGES)
    conclude(record, options)


if __name__ == "__main__":
    main()
