"""Where the time of one image goes in our stream, in microseconds of CPU."""

import cProfile
import pstats
import time
from contextlib import closing
from dataclasses import replace
from pathlib import PurePath
from statistics import median
from typing import Any

from pipelines.bench.material import Material, Sizes
from pipelines.bench.stream import kdcache_batches
from pipelines.bench.timing import Cost, between, rounded

# Stages by the functions that do them: module and name. No stage is called from another.
STAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "tar_read": (("kdcache/data/blocks.py", "read"),),
    "header": (("kdcache/pixels/decode.py", "read_header"),),
    "plan": (("kdcache/recipe/plan.py", "draw_view"), ("kdcache/recipe/plan.py", "plan_drawn")),
    "decode": (("kdcache/pixels/decode.py", "decode_image"),),
    "resize": (("kdcache/pixels/resize.py", "resize_torch"),),
    "blend": (("kdcache/pixels/mix.py", "mix_row"),),
    "witness": (("kdcache/pixels/witness.py", "witness"),),
    "target_read": (
        ("kdcache/replay/targets.py", "_read"),
        ("kdcache/cache/store.py", "read_witness"),
    ),
    "target_decode": (("kdcache/replay/batch.py", "target"),),
    "gather": (("kdcache/replay/blocks.py", "gather"),),
}  # fmt: skip
_HOT = 15

_Stats = dict[tuple[str, int, str], tuple[int, int, float, float, Any]]


def profile_stream(material: Material, sizes: Sizes, *, with_workers: list[Cost]) -> dict[str, Any]:
    """Return the stages, what is left, the functions that take most, and the cost of workers.

    with_workers: costs of the stream with worker processes, which the others are taken from to
    tell what handing over costs.
    """
    plain = _run(material, sizes)
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    profiled = _run(material, sizes, repeats=1)
    profiler.disable()
    images = profiled[1]
    stats: _Stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # not in typeshed
    stages = {name: _cumulative(stats, places) for name, places in STAGES.items()}
    found = {name: _us(seconds, images) for name, seconds in stages.items() if seconds is not None}
    inside = sum(seconds for seconds in stages.values() if seconds is not None)
    total_us = 1e6 * plain[0]
    return {
        "us_per_image": {
            **found,
            "rest_and_profiler": _us(profiled[0] * images - inside, images),
            "transfer": rounded(1e6 * median(cost.cpu_s for cost in with_workers) - total_us),
        },
        "unmatched_stages": [name for name, seconds in stages.items() if seconds is None],
        "whole_us_per_image": {
            "no_workers": rounded(total_us),
            "no_workers_profiled": rounded(1e6 * profiled[0]),
        },
        "most_own_us_per_image": _hottest(stats, images),
    }


def _run(material: Material, sizes: Sizes, *, repeats: int | None = None) -> tuple[float, int]:
    """Return CPU-seconds per image without workers, and the images of all passes."""
    passes = replace(sizes, epochs=repeats or sizes.epochs)
    count = material.dataset().num_samples // sizes.batch * sizes.batch
    total = count * passes.epochs
    with closing(kdcache_batches(material, passes, seed=0, workers=0)) as batches:
        cost = between(batches, start=0, stop=total)
    return cost.cpu_s, total


def _us(seconds: float, images: int) -> float:
    return rounded(1e6 * seconds / images)


def _cumulative(stats: _Stats, places: tuple[tuple[str, str], ...]) -> float | None:
    """Return the seconds spent in functions and what they call; None if none of them ran."""
    found = [
        row[3]
        for (file, _, name), row in stats.items()
        if any(file.endswith(module) and name == wanted for module, wanted in places)
    ]
    return sum(found) if found else None


def _hottest(stats: _Stats, images: int) -> dict[str, float]:
    """Return the functions with most time of their own, by place and name."""
    ordered = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)
    return {_label(file, name): _us(row[2], images) for (file, _, name), row in ordered[:_HOT]}


def _label(file: str, name: str) -> str:
    parts = PurePath(file).parts
    return name if file == "~" else f"{'/'.join(parts[-2:])}:{name}"
