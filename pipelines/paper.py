"""Who learns best from a teacher: the study on digits, through the real store and stream.

    python -m pipelines.paper --out build/paper

Writes docs/results/digits.{json,md,html} and pictures; with --quick, a short trial of the same
code, into OUT/results. What is done stands in OUT: a run that was killed goes on, and ends with the
same numbers.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from kdcache.files import alone, write_whole
from kdcache.identity import digest
from kdcache.processes import end_with
from pipelines import digits
from pipelines.bench.record import make_record
from pipelines.study.cases import Unit, grid, seed_units, tuning_units
from pipelines.study.data import NUM_TEST, Part
from pipelines.study.design import ARMS, FULL, QUICK, Design, student
from pipelines.study.report import write_results
from pipelines.study.results import Row, choose, findings
from pipelines.study.work import run_seed, unit_path

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PACKAGES = ("kdcache", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "zarr", "pillow")
_TICK_S = 20.0

SeedRows = tuple[Row, list[list[Row]]]  # of the teacher, and of each unit


class _Progress:
    """Tells how much is done, from the files that are there, and counts the seconds of all runs."""

    def __init__(self, folder: Path, units: Sequence[Unit]) -> None:
        self._folder, self._units = folder, units
        self._started, self._before, self._told = time.monotonic(), self._done(), -1
        self._clock = folder / "seconds.json"
        self._earlier_s = json.loads(self._clock.read_text()) if self._clock.exists() else 0.0

    @property
    def seconds(self) -> float:
        """Return the seconds that this run and those before it took."""
        return float(self._earlier_s) + time.monotonic() - self._started

    def _done(self) -> int:
        return sum(u.passes for u in self._units if unit_path(self._folder, u).exists())

    def tell(self) -> None:
        """Print a line where more is done than in the last one."""
        text = json.dumps(self.seconds)
        write_whole(self._clock, lambda file: file.write_text(text))
        done, total = self._done(), sum(unit.passes for unit in self._units)
        if done > self._told:
            spent_s, fresh = time.monotonic() - self._started, done - self._before
            left = f", about {spent_s * (total - done) / fresh / 60:.0f} min left" if fresh else ""
            print(f"{spent_s / 60:6.1f} min  {done / total:4.0%} of the training{left}", flush=True)
        self._told = done


def run_study(design: Design, out: Path, *, workers: int) -> dict[str, Any]:
    """Return what the study finds. workers: processes; 0 runs all in this one."""
    folder = out / digest(asdict(design))[:12]  # other designs are other studies
    folder.mkdir(parents=True, exist_ok=True)
    tuning = {seed: tuning_units(design, seed) for seed in design.tuning_seeds}
    any_setting = {arm: grid(design, arm)[0] for arm in ARMS}
    sized = [seed_units(design, seed, tuned=any_setting) for seed in design.seeds]
    with alone(folder, "another process runs this study; wait for it"):
        progress = _Progress(folder, [*chain(*tuning.values()), *chain(*sized)])
        run = partial(_run, design, folder, workers=workers, progress=progress)
        chosen = run(units=tuning, part="validation")
        tuned = choose(design, [row for _, rows in chosen for row in chain(*rows)])
        settings = {arm: setting for arm, (setting, _) in tuned.items()}
        units = {seed: seed_units(design, seed, tuned=settings) for seed in design.seeds}
        found = run(units=units, part="test")
    sections: dict[str, list[Row]] = {}
    for seed, (_, rows) in zip(design.seeds, found, strict=True):
        for unit, part in zip(units[seed], rows, strict=True):
            sections.setdefault(unit.section, []).extend(part)
    return {
        "seconds": round(progress.seconds, 1),
        "design": describe(design),
        "teachers": [teacher for teacher, _ in found],
        **findings(design, sections, tuned=tuned),
    }


def _run(
    design: Design,
    folder: Path,
    *,
    units: Mapping[int, Sequence[Unit]],
    part: Part,
    workers: int,
    progress: _Progress,
) -> list[SeedRows]:
    """Return what run_seed gives of each seed, in their order."""
    work = [
        partial(run_seed, design, folder, seed=seed, units=own, part=part)
        for seed, own in units.items()
    ]
    if workers == 0:
        found = [run() for run in work]
        progress.tell()
        return found
    with ProcessPoolExecutor(
        workers,
        # Spawned: stores that were opened before a fork would hang after it.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with,
        initargs=(os.getpid(),),
    ) as pool:
        futures = [pool.submit(run) for run in work]
        left = set(futures)
        try:
            while left:
                done, left = wait(left, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
                progress.tell()
                for future in done:
                    future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def describe(design: Design) -> dict[str, Any]:
    """Return the design as the result states it."""
    return {
        "budgets": list(design.budgets),
        "seeds": list(design.seeds),
        "side_seeds": list(design.side_seeds),
        "batch_size": design.batch_size,
        "images": digits.NUM_CLASSES * digits.NUM_STUDENT_PER_CLASS,
        "test_images": NUM_TEST,
        "temperature_grid": list(design.temperatures),
        "learning_rate_grid": list(design.learning_rates),
        "weight_decay_grid": list(design.weight_decays),
        "tuning_seeds": list(design.tuning_seeds),
        "tuning_epochs": design.tuning_epochs,
        "view_counts": list(design.view_counts),
        "mild_views": design.mild_views,
        "margin_nats": design.margin_nats,
        "student_parameters": _num_parameters(student()),
        "teacher_parameters": _num_parameters(digits.teacher()),
        "arms": dict(ARMS),
    }


def _num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def write_result(study: Mapping[str, Any], folder: Path, *, quick: bool) -> dict[str, Any]:
    """Write what was found, and where and when, into FOLDER as data and as a report; return it."""
    record = make_record("digits", (), figures={}, packages=PACKAGES)
    result = {
        "command": "make paper-quick" if quick else "make paper",
        "date": record.date[:10],
        "commit": record.commit,
        "quick": quick,
        "machine": record.machine.model_dump(),
        "versions": record.versions,
        **study,
    }
    write_results(result, folder)
    return result


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A short trial, under 5 minutes.")] = False,
    out: Annotated[Path, typer.Option(help="What is done; results of --quick.")] = Path(
        "build/paper"
    ),
    workers: Annotated[int, typer.Option(help="Processes; by default one a core.")] = len(
        os.sched_getaffinity(0)
    ),
) -> None:
    """Run the study on digits."""
    study = run_study(QUICK if quick else FULL, out, workers=workers)
    folder = out / "results" if quick else RESULTS
    write_result(study, folder, quick=quick)
    print(f"{study['seconds'] / 60:.1f} min; see {folder / 'digits.md'} and digits.html")


if __name__ == "__main__":
    typer.run(main)
