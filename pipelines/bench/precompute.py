"""The precompute benchmark: how busy a job keeps the teacher, how fast it renders, what it holds.

    make bench-precompute
    python -m pipelines.bench.precompute --quick

Utilisation is the time of the same forward passes on pixels that lie on the device already, over
the job's time. Takes about 6 minutes on two quiet cores and writes build/bench/precompute.json.
Exit code 1: a bar does not hold.
"""

import multiprocessing
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.models.teacher import Teacher, load_teacher
from kdcache.precompute.engines import run_inline
from kdcache.precompute.prepare import describe_cache, prepare_cache
from kdcache.precompute.render import BlockStream
from kdcache.precompute.span import Job
from kdcache.recipe.schema import Recipe
from pipelines.bench.material import mixed_recipe
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
from pipelines.bench.timing import Cost, Work, alternate, rounded, timed

PACKAGES = ("numpy", "simplejpeg", "torch", "torchvision", "zarr")
LIGHT = "pipelines.bench.material:pooled_teacher"
HEAVY = "pipelines.bench.precompute:heavy_teacher"
BATCH = 256
SMALL = 64  # pixels; a size at which the teacher costs next to nothing

Found = tuple[list[Bar], dict[str, Any]]


@dataclass(frozen=True)
class JobSizes:
    """images: of the job that renders, of the heavy teacher's, and of the long one for memory."""

    images: int
    heavy_images: int
    long_images: int
    rounds: int


FULL = JobSizes(images=512, heavy_images=64, long_images=2048, rounds=5)
QUICK = JobSizes(images=32, heavy_images=8, long_images=64, rounds=1)


def heavy_teacher() -> nn.Module:
    """Return a network of many layers: a ResNet-50 on a GPU, a ResNet-18 on a CPU."""
    torch.manual_seed(0)
    network: nn.Module = models.resnet50() if torch.cuda.is_available() else models.resnet18()
    return network


@dataclass(frozen=True, eq=False)
class Runner:
    """Jobs over one dataset. folder: of their caches."""

    folder: Path
    dataset: Dataset
    recipe: Recipe

    def job(self, teacher: Teacher, *, num_views: int, span: int, workers: int) -> Job:
        """Return a job on a fresh cache."""
        path = self.folder / "cache"
        shutil.rmtree(path, ignore_errors=True)
        info = describe_cache(
            self.dataset, self.recipe, teacher=teacher, encoding="packed:32", other_classes=True
        )
        cache = prepare_cache(
            path, info, dataset=self.dataset, num_views=num_views, span_views=span
        )
        source = dataset_source(self.dataset, self.recipe)
        return Job(source, teacher, cache, BATCH, False, workers)

    def run(
        self, teacher: Teacher, *, num_views: int, workers: int, span: int | None = None
    ) -> Work:
        """Return work that is a whole job."""

        def work(_: int) -> int:
            spans = span or num_views
            run_inline(self.job(teacher, num_views=num_views, span=spans, workers=workers))
            return self.dataset.num_samples * num_views

        return timed(work)

    def run_together(self, teacher: Teacher, *, num_views: int, processes: int) -> Work:
        """Return work that is a whole job, of processes that share it and render for themselves."""

        def work(_: int) -> int:
            job = self.job(teacher, num_views=num_views, span=num_views, workers=0)
            context = multiprocessing.get_context("fork")  # no imports that a long job forgets
            children = [
                context.Process(target=_run_in_child, args=(job,)) for _ in range(processes)
            ]
            for child in children:
                child.start()
            for child in children:
                child.join()
            assert not job.cache.missing()
            return self.dataset.num_samples * num_views

        return timed(work)

    def render(self, teacher: Teacher, *, num_views: int, workers: int) -> Work:
        """Return work that renders what a job does, in as many processes, and no more."""

        def work(_: int) -> int:
            job = self.job(teacher, num_views=num_views, span=num_views, workers=workers)
            stream = BlockStream(job.source, job.cache.grid, num_workers=max(workers, 1))
            for request, _block in stream.blocks(job.cache.missing()):
                stream.done(request)
            return self.dataset.num_samples * num_views

        return timed(work)

    def forward(self, teacher: Teacher, *, num_views: int) -> Work:
        """Return work that is the job's calls of the teacher alone, on pixels on its device."""
        size, block = self.recipe.size, self.recipe.block * num_views
        pixels = torch.randint(0, 256, (min(BATCH, block), size, size, 3), dtype=torch.uint8)
        pixels = pixels.permute(0, 3, 1, 2).to(teacher.device)

        def work(_: int) -> int:
            left = self.dataset.num_samples * num_views
            total = left
            while left > 0:
                logits = teacher(pixels[: min(left, len(pixels))])
                left -= len(logits)
            if teacher.device.type == "cuda":
                torch.cuda.synchronize()
            return total

        return timed(work)


def _run_in_child(job: Job) -> None:
    torch.set_num_threads(1)
    run_inline(job)


def _views_per_s(costs: Sequence[Cost]) -> dict[str, float]:
    rates = sorted(cost.rate for cost in costs)
    return {
        "views_per_s": rounded(rates[len(rates) // 2]),
        "cpu_us_per_view": rounded(1e6 * min(cost.cpu_s for cost in costs)),
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def heavy_bars(folder: Path, data: Path, sizes: JobSizes) -> Found:
    """Return the utilisation of a teacher that costs far more than rendering."""
    runner = Runner(folder, load_dataset(data), mixed_recipe())
    teacher = load_teacher(HEAVY, None, device=_device())
    works = {
        "job": runner.run(teacher, num_views=8, workers=1),
        "forward": runner.forward(teacher, num_views=8),
    }
    costs = alternate(works, rounds=sizes.rounds)
    runs = [f.wall_s / j.wall_s for j, f in zip(costs["job"], costs["forward"], strict=True)]
    figures = {name: _views_per_s(found) for name, found in costs.items()}
    return [make_bar("heavy_teacher_utilisation", runs, bar=0.95)], {"heavy_teacher": figures}


def light_bars(folder: Path, data: Path, sizes: JobSizes) -> Found:
    """Return how near jobs come to what their renderers give, and how these add up."""
    recipe = mixed_recipe().model_copy(update={"size": SMALL})
    runner = Runner(folder, load_dataset(data), recipe)
    teacher = load_teacher(LIGHT, None, device=_device())
    works = {
        "job, 1 worker": runner.run(teacher, num_views=1, workers=1),
        "rendering, 1 worker": runner.render(teacher, num_views=1, workers=1),
        "job, 2 workers": runner.run(teacher, num_views=1, workers=2),
        "rendering, 2 workers": runner.render(teacher, num_views=1, workers=2),
    }
    costs = alternate(works, rounds=sizes.rounds)
    walls = {name: [cost.wall_s for cost in found] for name, found in costs.items()}
    pairs = {
        "job_of_its_renderers_limit": ("rendering, 1 worker", "job, 1 worker", 0.9),
    }
    bars = [
        make_bar(name, [a / b for a, b in zip(walls[slow], walls[fast], strict=True)], bar=bar)
        for name, (slow, fast, bar) in pairs.items()
    ]
    return bars, {"light_teacher": {name: _views_per_s(found) for name, found in costs.items()}}


def process_bars(folder: Path, data: Path, sizes: JobSizes) -> Found:
    """Return how two processes that share a job, each rendering for itself, add up."""
    recipe = mixed_recipe().model_copy(update={"size": SMALL})
    runner, teacher = Runner(folder, load_dataset(data), recipe), load_teacher(LIGHT, None)
    works = {
        f"{n} processes": runner.run_together(teacher, num_views=8, processes=n) for n in (1, 2)
    }
    costs = alternate(works, rounds=sizes.rounds)
    pairs = zip(costs["1 processes"], costs["2 processes"], strict=True)
    runs = [one.wall_s / two.wall_s for one, two in pairs]
    figures = {name: _views_per_s(found) for name, found in costs.items()}
    return [make_bar("two_processes_over_one", runs, bar=1.8)], {"processes": figures}


def span_figures(folder: Path, data: Path, sizes: JobSizes) -> dict[str, Any]:
    """Return the rates of jobs that make several views of one decoding, with two workers."""
    runner = Runner(folder, load_dataset(data), mixed_recipe())
    teacher = load_teacher(LIGHT, None, device=_device())
    works = {f"G = {g}": runner.run(teacher, num_views=g, workers=2) for g in (1, 4, 8, 16)}
    works |= {
        f"G = {g}, rendering alone": runner.render(teacher, num_views=g, workers=2)
        for g in (1, 4, 8, 16)
    }
    costs = alternate(works, rounds=min(sizes.rounds, 3))
    return {name: _views_per_s(found) for name, found in costs.items()}


def _peak_mb(folder: Path, data: Path, num_views: int, results: Any) -> None:
    torch.set_num_threads(1)
    runner = Runner(folder, load_dataset(data), mixed_recipe().model_copy(update={"size": SMALL}))
    teacher = load_teacher(LIGHT, None)
    runner.run(teacher, num_views=num_views, span=4, workers=1)(0)
    # Not getrusage's own maximum, which is inherited from the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own_kb = int(status["VmHWM"].split()[0])
    worker_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    results.put([kb * 1024 / 1e6 for kb in (own_kb, worker_kb)])


def memory_bars(folder: Path, short: Path, long: Path) -> Found:
    """Return how the most memory held grows with images and views, job process and worker."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, data, num_views in (("few", short, 4), ("images", long, 4), ("views", short, 32)):
        results = context.Queue()
        process = context.Process(target=_peak_mb, args=(folder, data, num_views, results))
        process.start()
        found[name] = dict(zip(("job", "worker"), map(rounded, results.get()), strict=True))
        process.join()
    bars = [
        make_bar(
            f"memory_growth_with_{name}",
            [max(found[name][who] / found["few"][who] - 1 for who in ("job", "worker"))],
            bar=0.05,
            better="lower",
            unit="share",
        )
        for name in ("images", "views")
    ]
    return bars, {"most_memory_mb": found}


def _pack(photos: Path, folder: Path, *, images: int) -> Path:
    """Return tars of the first images, several, made if they are not there."""
    data, chosen = folder / f"data-{images}", folder / f"images-{images}"
    if not data.exists():
        files = sorted((photos / "imagenet").rglob("*.jpg"), key=lambda path: path.name)
        for file in files[:images]:
            copy = chosen / file.parent.name / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)
        options = PackOptions(rows_per_tar=max(images // 8, 4), shuffle_seed=0)
        pack(open_source(str(chosen)), data, options=options)
    return data


def run(folder: Path, photos: Path, *, quick: bool) -> Found:
    """Return all bars and figures. folder: what is made afresh. photos: what is kept."""
    say, sizes = Progress(), QUICK if quick else FULL
    figures: dict[str, Any] = {
        "quick": quick,
        "load_average_at_start": round(load_average(), 2),
        "device": _device(),
    }
    bars: list[Bar] = []

    def add(found: Found, text: str) -> None:
        bars.extend(found[0])
        figures.update(found[1])
        say(text)

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_photos(SETS["imagenet"], photos, count=sizes.long_images)
    packed = partial(_pack, photos, folder)
    data = packed(images=sizes.images)
    say("photographs and tars")
    torch.set_num_threads(2)
    add(heavy_bars(folder, packed(images=sizes.heavy_images), sizes), "a heavy teacher")
    torch.set_num_threads(1)
    add(light_bars(folder, data, sizes), "a light teacher")
    add(process_bars(folder, packed(images=sizes.long_images // 2), sizes), "two processes")
    add(([], {"several_views": span_figures(folder, data, sizes)}), "several views")
    short = packed(images=sizes.long_images // 4)  # of whole blocks, as the long one
    add(memory_bars(folder, short, packed(images=sizes.long_images)), "memory")
    figures["cores_used_by_others"] = say.others
    return bars, figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, write its record, and print it."""
    options = read_options(
        "precompute", "Measure how busy a job keeps its teacher, rendering, and memory.", arguments
    )
    photos = options.out / "photos" / ("quick" if options.quick else "full")
    bars, figures = run(options.out / "precompute", photos, quick=options.quick)
    record = make_record("precompute", bars, figures=figures, packages=PACKAGES)
    conclude(record, options)


if __name__ == "__main__":
    main()
