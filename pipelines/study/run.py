"""The study itself: settings are tuned, then each seed's students are trained by workers.

Imports nothing heavy before something is to be made, so that a run says at once what it will do.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from kdcache.files import alone
from kdcache.identity import digest
from kdcache.processes import StopRequest, end_with, noting_stops
from pipelines.study.cases import grid, seed_units, tuning_units
from pipelines.study.design import ARMS, Arm, Design, Setting
from pipelines.study.kept import Row, SeedRows, Task, read_seed
from pipelines.study.made import origins
from pipelines.study.progress import Progress

_TICK_S = 15.0


def study_folder(design: Design, out: Path) -> Path:
    """Return where a design's rows are kept: other designs are other studies."""
    return out / digest(asdict(design))[:12]


def run_study(design: Design, out: Path, *, workers: int) -> dict[str, Any]:
    """Return what the study finds. workers: processes; 0 runs all in this one."""
    folder = study_folder(design, out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "units").mkdir(exist_ok=True)
    tuning = [
        Task(seed, tuple(tuning_units(design, seed)), "validation") for seed in design.tuning_seeds
    ]
    any_setting = {arm: grid(design, arm)[0] for arm in ARMS}
    with alone(folder, "another process runs this study; wait for it"):
        progress = Progress(folder, design, tuning + _main_tasks(design, any_setting))
        progress.start()
        from pipelines.study.results import choose, findings  # scipy: after the first words

        with _pool(workers) as pool:
            crew = _Crew(design, folder, workers, pool, progress)
            chosen = crew.run(tuning)
            tuned = choose(design, [row for found in chosen for row in chain(*found.units)])
            tasks = _main_tasks(design, {arm: setting for arm, (setting, _) in tuned.items()})
            found = crew.run(tasks)
    sections: dict[str, list[Row]] = {}
    for task, rows in zip(tasks, found, strict=True):
        for unit, part in zip(task.units, rows.units, strict=True):
            sections.setdefault(unit.section, []).extend(part)
    return {
        "seconds": round(progress.seconds, 1),
        "made": origins(made for rows in chosen + found for made in rows.made),
        "teachers": [rows.teachers[0] for rows in found],
        "small_teachers": [rows.teachers[1] for rows in found if len(rows.teachers) > 1],
        **findings(design, sections, tuned=tuned),
    }


def _main_tasks(design: Design, tuned: Mapping[Arm, Setting]) -> list[Task]:
    """Return what is trained with the chosen settings."""
    return [
        Task(seed, tuple(seed_units(design, seed, tuned=tuned)), "test") for seed in design.seeds
    ]


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool whose processes start with the first work, and end at once by an exception."""
    # What frees the semaphores of workers starts with the pool, and would speak of stopped ones.
    os.environ["PYTHONWARNINGS"] = ",".join(
        [*filter(None, [os.environ.get("PYTHONWARNINGS")]), "ignore:resource_tracker"]
    )
    pool = ProcessPoolExecutor(
        max(workers, 1),
        # Spawned: stores that were opened before a fork would hang after it.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with,
        initargs=(os.getpid(),),
    )
    before = multiprocessing.active_children()
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()  # what a seed has made is in files
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Crew:
    """Who makes the rows that no file keeps. workers: 0 for this process itself."""

    design: Design
    folder: Path
    workers: int
    pool: ProcessPoolExecutor
    progress: Progress

    def run(self, tasks: Sequence[Task]) -> list[SeedRows]:
        """Return the rows of each task, in their order."""
        found = {task.seed: read_seed(self.folder, task) for task in tasks}
        absent = [task for task in tasks if found[task.seed] is None]
        if absent:
            self.progress.work()
            found |= self._make(absent)
        return [rows for rows in found.values() if rows is not None]

    def _make(self, tasks: Sequence[Task]) -> dict[int, SeedRows]:
        if self.workers == 0:
            made = {task.seed: _make_seed(self.design, self.folder, task) for task in tasks}
            self.progress.tell()
            return made
        stop = StopRequest()  # noted: a worker that is half told what to do would complain
        with noting_stops(stop), _interrupts_blocked():
            futures = {
                task.seed: self.pool.submit(_make_seed, self.design, self.folder, task)
                for task in tasks
            }
        stop.check()
        left: set[Future[SeedRows]] = set(futures.values())
        while left:
            done, left = wait(left, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
            self.progress.tell()
            for future in done:
                future.result()
        return {seed: future.result() for seed, future in futures.items()}


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes that start here never see a Ctrl-C, which is their parent's to act on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_seed(design: Design, folder: Path, task: Task) -> SeedRows:
    from pipelines.study.work import run_seed  # torch and the training loop, where they are used

    return run_seed(design, folder, task)
