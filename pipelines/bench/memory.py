"""What the stream's workers hold over a long epoch, and what a killed run leaves behind.

    python -m pipelines.bench.memory --data build/bench/pixels/tars --cache build/bench/pixels/cache

streams without end and says when it has begun: the run that is killed.
"""

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcache.cache.store import open_cache
from kdcache.data.document import load_dataset
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from pipelines.bench.material import BATCH, WORKERS, Material, Sizes
from pipelines.bench.stream import batch_sizes, open_stream
from pipelines.bench.timing import rounded

_PROC = Path("/proc")
_SHARED = Path("/dev/shm")
_READY = "streaming"
_SETTLE_S = 1.0
_WAIT_S = 20.0  # a DataLoader's workers look for their parent every 5
_ENDLESS = 10**6  # epochs
_READINGS = 64  # of memory, over the long epoch
_MB = 1e6


# --- memory over a long epoch --------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Bytes of a process. own: that no other process shares. resident: shared ones too."""

    own: int
    resident: int


def held_by(pid: int | None) -> Held | None:
    """Return what a process holds; None if it is not there."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return None
    kb = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    own = kb["Private_Clean"] + kb["Private_Dirty"]
    return Held(1024 * own, 1024 * kb["Rss"])


@dataclass
class _Peaks:
    """The most that was seen of a process so far."""

    own: int = 0
    resident: int = 0

    def add(self, held: Held) -> None:
        self.own, self.resident = max(self.own, held.own), max(self.resident, held.resident)


def long_epoch(material: Material, sizes: Sizes) -> dict[str, Any]:
    """Return peaks of the workers up to a quarter and the whole of a long epoch, and their growth.

    The images are streamed again and again until there are sizes.memory_images of them.
    """
    images = material.dataset().num_samples
    epochs = -(-sizes.memory_images // images)
    stream = open_stream(material, sizes, seed=0, epochs=epochs + 1)
    total = epochs * stream.batches_per_epoch
    every = max(total // _READINGS, 1)
    workers: dict[int, _Peaks] = {}
    main, early, early_main = _Peaks(), 0, _Peaks()
    quarter: dict[int, _Peaks] = {}
    with closing(batch_sizes(stream)) as batches:
        for number in range(1, total + 1):
            next(batches)
            if number % every == 0 or number == total:
                _read(workers, main)
            if not quarter and number >= total / 4 and workers:
                quarter = {pid: _Peaks(p.own, p.resident) for pid, p in workers.items()}
                early, early_main = number, _Peaks(main.own, main.resident)
    return {
        "images": total * sizes.batch,
        "compared_with_images": early * sizes.batch,
        "workers": len(workers),
        "worker_own_mb": _most(workers, "own"),
        "worker_own_mb_at_a_quarter": _most(quarter, "own"),
        "worker_own_growth": _growth(workers, quarter, "own"),
        "worker_resident_mb": _most(workers, "resident"),
        "worker_resident_growth": _growth(workers, quarter, "resident"),
        "main_own_mb": rounded(main.own / _MB),
        "main_own_growth": rounded(main.own / early_main.own - 1),
    }


def _read(workers: dict[int, _Peaks], main: _Peaks) -> None:
    own = held_by(os.getpid())
    assert own is not None
    main.add(own)
    for child in multiprocessing.active_children():
        held = held_by(child.pid)
        if held is not None and child.pid is not None:
            workers.setdefault(child.pid, _Peaks()).add(held)


def _most(peaks: dict[int, _Peaks], field: str) -> float:
    return rounded(max(getattr(peak, field) for peak in peaks.values()) / _MB)


def _growth(late: dict[int, _Peaks], early: dict[int, _Peaks], field: str) -> float:
    """Return the greatest growth of a worker, as a share."""
    return rounded(max(getattr(late[pid], field) / getattr(early[pid], field) for pid in early) - 1)


# --- a run that is killed ------------------------------------------------------------------


def killed_run(material: Material) -> dict[str, Any]:
    """Kill a streaming process outright; return what stays of it: shared memory, and workers.

    What other programs hold meanwhile is not counted. Workers that stay are killed in the end.
    """
    command = [sys.executable, "-m", "pipelines.bench.memory"]
    command += ["--data", str(material.data), "--cache", str(material.cache)]
    before = _shared_entries()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.split()[:1] != [_READY]:
            raise RuntimeError(f"the run to be killed said {line!r}, expected {_READY!r}")
        workers = [int(pid) for pid in line.split()[1:]]
        during = _shared_entries() - before
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    seconds = _wait_for_end(workers)
    orphans = [pid for pid in workers if _runs(pid)]
    left = _shared_entries() - before - _names_in_use(apart_from=orphans)
    time.sleep(_SETTLE_S)  # what others hand over has no name for long
    left = (left & _shared_entries()) - _names_in_use(apart_from=orphans)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    return {
        "entries_while_running": len(during),
        "entries_left": len(left),
        "workers": len(workers),
        "workers_left": len(orphans),
        "seconds_until_workers_end": None if orphans else round(seconds, 1),
    }


def _shared_entries() -> set[str]:
    """Return the names of shared memory, but for semaphores, which others that are killed leave.

    A forked DataLoader's have no names.
    """
    return {entry.name for entry in _SHARED.iterdir() if not entry.name.startswith("sem.mp-")}


def _names_in_use(*, apart_from: list[int]) -> set[str]:
    """Return the shared memory that living processes have mapped, by name."""
    names = set()
    for maps in _PROC.glob("[0-9]*/maps"):
        if int(maps.parent.name) in apart_from:
            continue
        try:
            lines = maps.read_text().splitlines()
        except OSError:  # it has ended, or is not ours
            continue
        names |= {line.rpartition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}
    return names


def _wait_for_end(pids: list[int]) -> float:
    """Wait until processes have ended; return how long it took, in seconds."""
    started = time.monotonic()
    while any(_runs(pid) for pid in pids):
        if time.monotonic() - started > _WAIT_S:
            break
        time.sleep(0.1)
    return time.monotonic() - started


def _runs(pid: int) -> bool:
    """Return whether a process runs: a zombie, which nobody has waited for, does not."""
    try:
        state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def main(arguments: list[str] | None = None) -> None:
    """Stream without end; say "streaming" and the workers' process numbers once it has begun."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.memory", description="Stream a cache until killed."
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dataset = load_dataset(options.data)
    stream = replay_stream(
        open_cache(options.cache),
        dataset,
        StreamOptions(
            batch_size=min(options.batch_size, dataset.num_samples),
            num_epochs=_ENDLESS,
            num_workers=WORKERS,
        ),
    )
    for number, _ in enumerate(stream):
        if number == 2:
            pids = [str(child.pid) for child in multiprocessing.active_children()]
            print(_READY, *pids, flush=True)


if __name__ == "__main__":
    main()
