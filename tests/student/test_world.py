"""Claims about processes that train together: the same run as one process', whatever their number.

Equal to float tolerance, since gradients are summed in another order.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.processes import Stopped
from kdcache.student.checkpoint import checkpoints
from kdcache.student.folder import SESSIONS, WEIGHTS
from kdcache.student.loop import train
from kdcache.student.sources import Sources
from kdcache.student.world import World, join_world
from tests import tiny
from tests.student.making import centre_cache, make_sources, metrics_of, run_of
from tests.worlds import in_world, note, run_ranks

CHANGES: dict[str, Any] = {
    "student": "tests.student.nets:plain",
    "batch_size": 8,
    "lanes": 4,
    "epochs": 5,
    "log_steps": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """83 images in tars of 17 and 15: five steps an epoch of eight would be ten."""
    return tiny.make_dataset(tmp_path_factory.mktemp("data"), 83, rows_per_tar=17)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Sources:
    """Replayed views, and a validation set of a number of images that no world divides."""
    folder = tmp_path_factory.mktemp("caches")
    cache = tiny.precompute(folder / "cache", data, tiny.make_recipe()).path
    val = tiny.make_dataset(folder / "val", 13, seed=3)
    return make_sources(data, cache, val_data=val.root, val_cache=centre_cache(folder / "v", val))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Path:
    """The folder of a run of 50 steps in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(run_of(folder, sources, **CHANGES))
    return folder


def _train(world: World, folder: Path, sources: Sources, changes: dict[str, Any]) -> None:
    train(run_of(folder, sources, world=world, **changes))


def _assert_close(found: Path, expected: Path) -> None:
    """Compare metrics and final weights to float tolerance."""
    ours, theirs = metrics_of(found), metrics_of(expected)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=2e-4, abs=1e-5)
    weights, others = load_file(found / WEIGHTS), load_file(expected / WEIGHTS)
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_follow_the_run_of_one(
    tmp_path: Path, sources: Sources, alone: Path, world: int
) -> None:
    assert in_world(world, _train, tmp_path / "r", sources, CHANGES) == [0] * world
    steps = [line for line in metrics_of(tmp_path / "r") if "epoch" not in line]
    assert len(steps) == 50
    _assert_close(tmp_path / "r", alone)
    assert json.loads((tmp_path / "r" / SESSIONS).read_text())["processes"] == world


@pytest.mark.parametrize("accumulate", [3, 8])
def test_parts_of_a_step_make_the_same_step(
    tmp_path: Path, sources: Sources, alone: Path, accumulate: int
) -> None:
    train(run_of(tmp_path / "r", sources, **CHANGES, accumulate=accumulate))
    _assert_close(tmp_path / "r", alone)


def test_processes_and_parts_together_make_the_same_step(
    tmp_path: Path, sources: Sources, alone: Path
) -> None:
    changes = {**CHANGES, "accumulate": 2, "num_workers": 1}
    assert in_world(2, _train, tmp_path / "r", sources, changes) == [0, 0]
    _assert_close(tmp_path / "r", alone)


# --- other numbers of processes, one after the other ---------------------------------------


def _train_and_stop(
    world: World, folder: Path, sources: Sources, changes: dict[str, Any], step: int
) -> None:
    """Go on until a step, at which the last process is asked to stop."""
    run = run_of(folder, sources, world=world, **changes)
    steps: list[int] = []

    def count(_: Any) -> None:
        steps.append(1)

    if world.rank == world.size - 1:
        stream = run.stream
        finish = stream._finish

        def finishing(*args: Any, **more: Any) -> Any:
            if more["load"] * stream.batches_per_epoch + more["number"] + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return finish(*args, **more)

        stream._finish = finishing  # type: ignore[method-assign]
    try:
        train(run, resume=True, progress=count)
    except Stopped as end:
        note(folder, world, f"stopped {end.args}")


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, sources: Sources, alone: Path, first: int
) -> None:
    """Stopped in mid-epoch by a signal to one process alone."""
    folder, second = tmp_path / "r", 3 - first
    assert in_world(first, _train_and_stop, folder, sources, CHANGES, 23) == [0] * first
    for rank in range(first):
        path = folder / f"told-{rank}"
        assert path.read_text() == "stopped (15,)"
        path.unlink()
    assert checkpoints(folder)[-1].name == "step-000000023.pt"
    assert in_world(second, _train_and_stop, folder, sources, CHANGES, 0) == [0] * second
    _assert_close(folder, alone)
    sessions = [json.loads(line) for line in (folder / SESSIONS).read_text().splitlines()]
    assert [(s["processes"], s["step"]) for s in sessions] == [(first, 0), (second, 23)]


# --- a process that ends -------------------------------------------------------------------


def _bereft(rank: int, folder: Path, sources: Sources) -> None:
    changes = {**CHANGES, "student": "tests.student.nets:leaving"}
    try:
        with join_world("cpu") as world:
            train(run_of(folder / "r", sources, world=world, **changes))
    except UsageError as error:
        (folder / f"told-{rank}").write_text(str(error))


def test_a_process_that_ends_is_told_of_by_the_others(tmp_path: Path, sources: Sources) -> None:
    assert run_ranks(2, _bereft, tmp_path, sources) == [0, 9]
    told = (tmp_path / "told-0").read_text()
    assert told.startswith("process 0: another of the 2 ended; look for its own message")


# --- refusals ------------------------------------------------------------------------------


def _refused(world: World, folder: Path, sources: Sources, changes: dict[str, Any]) -> None:
    try:
        run_of(folder / "r", sources, world=world, **changes)
    except UsageError as error:
        note(folder, world, str(error))


@pytest.mark.parametrize(
    ("world", "changes", "words"),
    [
        (2, {"batch_size": 9, "lanes": None}, "2 processes cannot share it evenly"),
        (2, {"batch_size": 9, "lanes": 9}, "lanes is 9, expected a multiple of the 2 processes"),
        (2, {"accumulate": 5}, "each of 2 processes has 4 samples of a step"),
    ],
)
def test_steps_that_cannot_be_shared_are_refused(
    tmp_path: Path, sources: Sources, world: int, changes: dict[str, Any], words: str
) -> None:
    assert in_world(world, _refused, tmp_path, sources, {**CHANGES, **changes}) == [0] * world
    for rank in range(world):
        assert words in (tmp_path / f"told-{rank}").read_text()


def _other_folders(world: World, folder: Path, sources: Sources) -> None:
    try:
        train(run_of(folder / str(world.rank), sources, world=world, **CHANGES), resume=True)
    except MismatchError as error:
        note(folder, world, str(error))


def test_processes_that_see_different_folders_are_refused(
    tmp_path: Path, sources: Sources, alone: Path
) -> None:
    (tmp_path / "0").symlink_to(alone)
    assert in_world(2, _other_folders, tmp_path, sources) == [0, 0]
    for rank in range(2):
        assert "different checkpoints, of steps [50, 0]" in (tmp_path / f"told-{rank}").read_text()
