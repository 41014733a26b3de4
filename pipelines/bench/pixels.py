"""The pixel benchmark: views, the student's whole stream, memory.

    make bench-pixels
    python -m pipelines.bench.pixels --quick

Takes about 8 minutes on two quiet cores and writes build/bench/pixels.json. The photographs are
kept between runs, all else is made afresh. Exit code 1: a bar does not hold.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdcache.pixels.conformance import BACKEND_VARIABLE, chosen_backends
from pipelines.bench.material import FULL, QUICK, Material, Sizes, make_material, make_photo_sets
from pipelines.bench.memory import killed_run, long_epoch
from pipelines.bench.micro import micro_runs
from pipelines.bench.profile import profile_stream
from pipelines.bench.record import (
    Bar,
    Progress,
    conclude,
    load_average,
    make_bar,
    make_record,
    read_options,
)
from pipelines.bench.stream import stream_works, uint8_works
from pipelines.bench.timing import Cost, alternate, rounded, speedups, summary

PACKAGES = ("numpy", "pillow", "simplejpeg", "torch", "torchvision", "webdataset", "zarr")
ONE_VIEW_BARS = {
    "simplejpeg": {"imagenet": 1.35, "web": 2.0, "big": 2.5},
    "turbojpeg": {"imagenet": 1.55, "web": 2.4, "big": 2.8},
}
MANY_VIEW_BARS = {4: 2.8, 8: 3.8}
STREAM_BARS = {"webdataset": 2.2, "imagefolder": 2.0, "decode_and_resize": 0.88}
MICRO_BARS = {"tar_read": 25.0, "parameters": 0.5, "witness": 5.0}
GROWTH_BAR = 0.05

Found = tuple[list[Bar], dict[str, Any]]


def view_bars(folder: Path, photos: Path, *, backend: str, quick: bool) -> Found:
    """Return the bars of views made with a JPEG backend, and their costs."""
    out = folder / f"views-{backend}.json"
    command = [sys.executable, "-m", "pipelines.bench.views"]
    command += ["--photos", str(photos), "--out", str(out), *(["--quick"] if quick else [])]
    environment = os.environ | {BACKEND_VARIABLE: backend}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if backend == "simplejpeg":
            raise RuntimeError(f"{' '.join(command)}: {reason}")
        return [], {f"views_{backend}": f"not measured: {reason}"}
    found = json.loads(out.read_text())
    bars = [
        make_bar(f"one_view_{name}_{backend}", found[f"one_view_{name}"].pop("runs"), bar=bar)
        for name, bar in ONE_VIEW_BARS[backend].items()
    ]
    for num_views, bar in MANY_VIEW_BARS.items():
        runs = found[f"{num_views}_views_imagenet"].pop("runs")
        bars.append(make_bar(f"{num_views}_views_imagenet_{backend}", runs, bar=bar))
    return bars, {f"views_{backend}": found}


def stream_bars(material: Material, sizes: Sizes) -> tuple[list[Bar], dict[str, Any], list[Cost]]:
    """Return the bars of the whole stream, its figures, and the costs of ours."""
    costs = alternate(stream_works(material, sizes), rounds=sizes.rounds)
    ours = costs["kdcache"]
    bars = [
        make_bar(f"stream_vs_{name}", speedups(ours, costs[name], clock="wall"), bar=bar)
        for name, bar in STREAM_BARS.items()
    ]
    cpu = {
        f"vs_{name}_in_cpu_seconds": rounded(median(speedups(ours, costs[name], clock="cpu")))
        for name in STREAM_BARS
    }
    uint8 = {name: work(0) for name, work in uint8_works(material, sizes).items()}
    figures = {name: summary(found) for name, found in costs.items()}
    figures |= {name: summary([cost]) for name, cost in uint8.items()}
    return bars, {"stream": {**figures, **cpu}}, ours


def micro_bars(material: Material, sizes: Sizes, *, quick: bool) -> Found:
    """Return the bars of the small steps."""
    runs = micro_runs(material, sizes, quick=quick)
    bars = [
        make_bar(f"{name}_us", runs[name], bar=bar, better="lower", unit="us per image")
        for name, bar in MICRO_BARS.items()
    ]
    others = {name: rounded(median(found)) for name, found in runs.items()}
    return bars, {"micro_us_per_image": others}


def memory_bars(material: Material, sizes: Sizes) -> Found:
    """Return the bars of memory: growth over a long epoch, and what a killed run leaves."""
    held, killed = long_epoch(material, sizes), killed_run(material)
    bars = [
        make_bar(
            f"worker_{kind}_memory_growth",
            [held[f"worker_{kind}_growth"]],
            bar=GROWTH_BAR,
            better="lower",
            unit="share",
        )
        for kind in ("own", "resident")
    ]
    for name, left, unit in (
        ("shared_memory_left_after_kill", killed["entries_left"], "entries"),
        ("workers_left_after_kill", killed["workers_left"], "processes"),
    ):
        bars.append(make_bar(name, [left], bar=0, better="lower", unit=unit))
    return bars, {"memory": held, "killed_run": killed}


def run(folder: Path, photos: Path, *, quick: bool) -> tuple[list[Bar], dict[str, Any]]:
    """Return all bars and figures. folder: what is made afresh. photos: what is kept."""
    say, sizes = Progress(), QUICK if quick else FULL
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "quick": quick,
        "load_average_at_start": round(load_average(), 2),
        "jpeg_backend_of_the_stream": chosen_backends()[0],
    }
    bars: list[Bar] = []

    def add(found: Found) -> None:
        bars.extend(found[0])
        figures.update(found[1])

    folder.mkdir(parents=True, exist_ok=True)
    make_photo_sets(photos, sizes)
    say("photographs are there")
    for backend in ONE_VIEW_BARS:
        add(view_bars(folder, photos, backend=backend, quick=quick))
        say(f"views with {backend}")
    material = make_material(folder, photos, rows_per_tar=sizes.rows_per_tar)
    say("tars and cache")
    add(micro_bars(material, sizes, quick=quick))
    say("small steps")
    found, streams, ours = stream_bars(material, sizes)
    add((found, streams))
    say("streams")
    figures["profile"] = profile_stream(material, sizes, with_workers=ours)
    say("profile")
    add(memory_bars(material, sizes))
    say("memory")
    figures["cores_used_by_others"] = say.others
    return bars, figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, write its record, and print it."""
    options = read_options(
        "pixels", "Measure views, the student's whole stream and its memory.", arguments
    )
    kind = "quick" if options.quick else "full"
    folder, photos = options.out / "pixels", options.out / "photos" / kind
    bars, figures = run(folder, photos, quick=options.quick)
    record = make_record("pixels", bars, figures=figures, packages=PACKAGES)
    conclude(record, options)


if __name__ == "__main__":
    main()
