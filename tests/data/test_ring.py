"""Claims about the ring: memory used again, shared without a name, never two blocks in one slot."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.data.ring import MAX_POOLED, Pool, Ring
from kdcache.errors import UsageError
from kdcache.replay import stream as stream_module
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from tests.replay.streaming import digests

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def read_only(complete: Path) -> Cache:
    return open_cache(complete)


def replay(cache: Cache, dataset: Dataset, **options: Any) -> ReplayStream:
    options = {"batch_size": 5, "num_epochs": 4, "window": 2} | options
    return replay_stream(cache, dataset, StreamOptions(**options))


def test_a_freed_slot_is_taken_again_before_a_fresh_one() -> None:
    ring = Ring((3, 2, 2))
    assert [ring.take(), ring.take()] == [0, 1]
    ring.free(0)
    assert [ring.take(), ring.take(), ring.take()] == [0, 2, None]


def test_a_child_process_writes_what_its_parent_reads() -> None:
    ring = Ring((2, 3))
    child = os.fork()
    if child == 0:
        ring[1][:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert ring[1].tolist() == [7, 7, 7]
    assert ring[0].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_blocks_without_a_slot_travel_otherwise(
    read_only: Cache,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    num_slots: int,
    num_workers: int,
) -> None:
    expected = digests(replay(read_only, dataset))
    shape = ReplayStream._ring_shape
    monkeypatch.setattr(ReplayStream, "_ring_shape", lambda self: (num_slots, *shape(self)[1:]))
    assert digests(replay(read_only, dataset, num_workers=num_workers)) == expected


def test_slots_suffice_for_any_window_and_batch(
    read_only: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = []

    class Watched(Ring):
        def take(self) -> int | None:
            slot = super().take()
            short.append(slot is None)
            return slot

    monkeypatch.setattr(stream_module, "Ring", Watched)
    for window in (0, 1, 3, 16):
        for batch_size in (1, 5, 24):
            for views in (1, 4):
                list(
                    replay(
                        read_only,
                        dataset,
                        window=window,
                        batch_size=batch_size,
                        views_per_load=views,
                    )
                )
    list(replay(read_only, dataset, shuffle=False, batch_size=7))
    assert len(short) > 100
    assert not any(short)


def test_a_batch_stays_as_it_is_while_slots_are_used_again(
    read_only: Cache, dataset: Dataset
) -> None:
    batches = list(replay(read_only, dataset))  # all kept
    assert [d for b in batches for d in digests([b])] == [
        d for b in replay(read_only, dataset) for d in digests([b])
    ]
    first = batches[0].pixels.numpy()
    assert not any(np.shares_memory(first, other.pixels.numpy()) for other in batches[1:])


def test_a_batchs_memory_is_used_again_only_when_nobody_holds_any_of_it() -> None:
    pool, shape = Pool(), (2, 3, 3, 3)

    def tensor() -> torch.Tensor:
        return torch.from_numpy(pool.take(shape)).permute(0, 3, 1, 2)

    first = tensor()
    address = first.data_ptr()
    assert tensor().data_ptr() != address
    part = first[1:, 0].numpy()  # a view of a view, in another library
    del first
    assert tensor().data_ptr() != address
    del part
    assert address in {held.data_ptr() for held in [tensor() for _ in range(MAX_POOLED)]}
    held = [tensor() for _ in range(MAX_POOLED + 5)]
    assert len({each.data_ptr() for each in held}) == len(held)
    assert pool.take((1, 3, 3, 3)).shape == (1, 3, 3, 3)


KILLED = """
import sys
from pathlib import Path
from kdcache.cache.store import open_cache
from kdcache.data.document import load_dataset
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions

cache, data = map(Path, sys.argv[1:])
options = StreamOptions(batch_size=5, num_epochs=10_000, num_workers=2)
for number, batch in enumerate(replay_stream(open_cache(cache), load_dataset(data), options)):
    if number == 3:
        print("streaming", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts /dev/shm")
def test_a_killed_run_leaves_no_shared_memory_and_no_process(
    dataset: Dataset, complete: Path
) -> None:
    before = set(os.listdir("/dev/shm"))
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(complete), str(dataset.root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "streaming\n"
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(workers) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 30
    while any(_alive(int(worker)) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.2)
    assert set(os.listdir("/dev/shm")) <= before


STUCK = """
import os
from kdcache.data.workers import _begin

parent = os.getpid()
child = os.fork()
if child == 0:
    _begin(parent, None, 0)
    waited, held = os.pipe()
    os.read(waited, 1)  # for ever, since this process holds the other end itself
else:
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def test_a_worker_stuck_at_a_full_pipe_ends_with_its_parent() -> None:
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STUCK], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert run.stdout is not None
    child = int(run.stdout.readline())
    time.sleep(2.5)
    assert _alive(child), "a worker should stay while its parent lives"
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 30
    while _alive(child):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.2)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_forked_childs_use_of_a_stream_is_refused(read_only: Cache, dataset: Dataset) -> None:
    batches = iter(replay(read_only, dataset))
    next(batches)
    child = os.fork()
    if child == 0:
        try:
            next(batches)
        except UsageError as error:
            os._exit(42 if "begun by another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert len(list(batches)) == 15
