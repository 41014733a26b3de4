"""The scale benchmark: what a job of many spans costs beside rendering, teacher and bytes.

    make bench-scale
    python -m pipelines.bench.scale --quick

Runs 13,000 tars x 90 views through the engine and a real store, on a renderer and a teacher that do
nothing, with 8 images a tar in place of 1,000: what is left is what spans cost. It is compared with
the seconds that a fast teacher takes for a span of 1,000 images. The store is in memory, since a
disk's syncs would hide the engine; some spans are written to the disk as well. Takes about 10
minutes, 4 GB of memory and 500,000 files; writes build/bench/scale.json. Exit code 1: a bar does
not hold.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.cache.manifest import COMMITS, Commit
from kdcache.cache.status import read_status
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import BlockSource
from kdcache.data.dataset import COLUMNS, Dataset
from kdcache.models.teacher import Preprocessing, Teacher
from kdcache.pixels.render import RenderedBlock
from kdcache.pixels.witness import LayerDigests
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import Job
from kdcache.recipe.parts import Role
from pipelines.bench.filled import empty_cache
from pipelines.bench.record import (
    Bar,
    Progress,
    conclude,
    load_average,
    make_bar,
    make_record,
    read_options,
)
from pipelines.bench.timing import Meter, rounded
from pipelines.bench.watch import resident_bytes

PACKAGES = ("numpy", "torch", "zarr")
TEACHER_VIEWS_PER_S = 5000.0  # a ViT-B/16 in bfloat16 on a GPU of 2024, by the order of magnitude
TAR_IMAGES = 1000
ROWS, SIZE, CLASSES = 8, 8, 16


@dataclass(frozen=True)
class Extent:
    """tars, views of the job, and views of a span."""

    tars: int
    views: int
    span_views: int

    @property
    def spans(self) -> int:
        """Return the number of spans."""
        return self.tars * self.views // self.span_views


IN_MEMORY = Path("/dev/shm")
ON_DISK = Extent(tars=20, views=90, span_views=10)
FULL = Extent(tars=13_000, views=90, span_views=10)
QUICK = Extent(tars=40, views=20, span_views=10)


class _Nothing(BlockSource):
    """Blocks of black images that nobody reads or renders."""

    def where(self, tar: int, row: int) -> str:
        return f"tar {tar}, row {row}"

    def render(
        self,
        tar: int,
        rows: slice,
        *,
        views: Sequence[int],
        role: Role = "student",
        skip: Collection[int] = (),
        whole: bool = True,
        out_GNHW3: NDArray[np.uint8] | None = None,
        layers: LayerDigests | None = None,
    ) -> RenderedBlock:
        count = rows.stop - rows.start
        pixels = np.zeros((len(views), count, SIZE, SIZE, 3), np.uint8)
        return RenderedBlock(pixels, (), {}, np.ones(count, np.bool_))


class _Constant(nn.Module):
    """Logits that are the same for every image."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return torch.arange(CLASSES).float().expand(len(images_N3HW), CLASSES)


def make_job(path: Path, extent: Extent) -> Job:
    """Return a job on a fresh cache."""
    cache = empty_cache(
        path,
        "packed:8",
        rows=[ROWS] * extent.tars,
        num_views=extent.views,
        span_views=extent.span_views,
        num_classes=CLASSES,
    )
    recipe = cache.info.recipe.model_copy(update={"size": SIZE})
    starts = np.arange(extent.tars + 1, dtype=np.int64) * ROWS
    nothing: NDArray[Any] = np.empty(0)
    dataset = Dataset(Path("nowhere"), (), None, None, *[nothing] * len(COLUMNS))
    source = _Nothing(dataset, recipe, starts, nothing, nothing)
    device = torch.device("cpu")
    teacher = Teacher(_Constant(), "none", "none", Preprocessing(), "float32", device)
    return Job(source, teacher, cache, TAR_IMAGES, False)


def watch_job(job: Job, extent: Extent) -> tuple[dict[str, float], list[float]]:
    """Run a job; return what a span costs, and resident bytes after each tenth of the spans."""
    held: list[float] = []
    done = 0

    def note(_: Commit) -> None:
        nonlocal done
        done += 1
        if done % (extent.spans // 10) == 0:
            held.append(resident_bytes())

    meter = Meter()
    run_inline(job, committed=note)
    cost = meter.read(extent.spans)
    found = {
        "seconds": cost.wall_s * extent.spans,
        "wall_ms_per_span": 1e3 * cost.wall_s,
        "cpu_ms_per_span": 1e3 * cost.cpu_s,
    }
    return found, held


def watch_store(cache: Cache) -> dict[str, float]:
    """Return what it costs to open a cache, to see what is missing, and to say so."""
    steps: dict[str, Callable[[], object]] = {
        "open_s": lambda: open_cache(cache.path),
        "missing_s": cache.missing,
        "status_s": lambda: read_status(cache),
    }
    found = {}
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        found[name] = time.perf_counter() - started
    records = [entry.stat().st_size for entry in (cache.path / COMMITS).iterdir()]
    return {**found, "records_mb": sum(records) / 1e6, "record_bytes": sum(records) / len(records)}


def scan(job: Job, extent: Extent) -> float:
    """Return the seconds in which one more process finds that every span is done."""
    started = time.perf_counter()
    run_inline(job, list(job.cache.grid.spans()))
    return (time.perf_counter() - started) / extent.spans


def run(folder: Path, *, quick: bool) -> tuple[list[Bar], dict[str, Any]]:
    """Return all bars and figures. folder: what is on the disk."""
    extent, say, disk = QUICK if quick else FULL, Progress(), folder / "scale"
    figures: dict[str, Any] = {
        "quick": quick,
        "load_average_at_start": round(load_average(), 2),
        "spans": extent.spans,
    }
    figures["wall_ms_per_span_on_disk"] = watch_job(make_job(disk, ON_DISK), ON_DISK)[0][
        "wall_ms_per_span"
    ]
    shutil.rmtree(disk)
    say("some spans on the disk")
    with tempfile.TemporaryDirectory(prefix="kdcache-scale-", dir=IN_MEMORY) as memory:
        job = make_job(Path(memory) / "cache", extent)
        cost, held = watch_job(job, extent)
        say("all spans in memory")
        figures |= cost
        figures["scan_us_per_span"] = 1e6 * scan(job, extent)
        figures |= watch_store(job.cache)
    say("opened, scanned and deleted")
    figures = {k: rounded(v) if isinstance(v, float) else v for k, v in figures.items()}
    figures["resident_mb_by_tenths"] = [rounded(size / 1e6) for size in held]
    figures["cores_used_by_others"] = say.others
    span_s = TAR_IMAGES * extent.span_views / TEACHER_VIEWS_PER_S
    found = {
        "overhead_of_a_span": (cost["wall_ms_per_span"] / 1e3 / span_s, 0.02),
        "memory_growth_with_spans": (held[-1] / held[0] - 1, 0.05),
    }
    bars = [
        make_bar(name, [value], bar=bar, better="lower", unit="share")
        for name, (value, bar) in found.items()
    ]
    return bars, figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, write its record, and print it."""
    options = read_options("scale", "Measure what many spans cost.", arguments)
    torch.set_num_threads(1)
    bars, figures = run(options.out, quick=options.quick)
    record = make_record("scale", bars, figures=figures, packages=PACKAGES)
    conclude(record, options)


if __name__ == "__main__":
    main()
