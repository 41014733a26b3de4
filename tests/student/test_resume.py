"""Claims about runs that end early: bit for bit the undisturbed run, wherever they were cut."""

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError
from kdcache.files import PARTIAL
from kdcache.processes import Stopped
from kdcache.student.checkpoint import CHECKPOINTS, checkpoints
from kdcache.student.folder import BEST, WEIGHTS
from kdcache.student.loop import train
from kdcache.student.run import Pace
from kdcache.student.sources import Sources
from kdcache.student.world import World
from tests import tiny
from tests.cache.keeping import killed_runs
from tests.student.making import (
    assert_equal,
    centre_cache,
    make_sources,
    metrics_of,
    run_of,
    state_of,
    weights_of,
)
from tests.tiny import files_of

# Steps 2, 3, 4, 6, 8, 9 of nine have checkpoints: of three epochs of three steps.
CHANGES: dict[str, Any] = {
    "epochs": 3,
    "ema": 0.8,
    "save_steps": 2,
    "log_steps": 2,
    "label_weight": 0.25,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, complete: Path) -> Sources:
    """Replayed views, and a validation set."""
    centre = centre_cache(tmp_path_factory.mktemp("centre") / "cache", dataset)
    return make_sources(dataset, complete, val_data=dataset.root, val_cache=centre)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(run_of(folder, sources, **CHANGES))
    return folder


def _assert_same(folder: Path, expected: Path) -> None:
    """Compare all that a run leaves, but for speeds, bit for bit."""
    assert weights_of(folder) == weights_of(expected)
    assert (folder / BEST).read_bytes() == (expected / BEST).read_bytes()
    assert metrics_of(folder) == metrics_of(expected)
    assert_equal(state_of(folder), state_of(expected))
    assert files_of(folder).keys() == files_of(expected).keys()


def _kill_at(step: int) -> Any:
    def progress(pace: Pace) -> None:
        if pace.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def _train(folder: Path, sources: Sources, changes: dict[str, Any], step: int = 0) -> None:
    train(run_of(folder, sources, **changes), resume=True, progress=_kill_at(step))


def _killed(*args: Any) -> None:
    child = tiny.start_clean(_train, *args)
    child.join()
    assert child.exitcode == -signal.SIGKILL


# --- kills ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_killed_at_any_step_ends_as_if_it_was_not(
    tmp_path: Path, sources: Sources, undisturbed: Path, num_workers: int
) -> None:
    """Four runs, killed two or three times each, at all nine steps together."""
    changes = {**CHANGES, "num_workers": num_workers}
    for number, steps in enumerate([(1, 5), (2, 6), (3, 7), (4, 8, 9)]):
        folder = tmp_path / str(number)
        for step in steps:
            _killed(folder, sources, changes, step)
        train(run_of(folder, sources, **changes), resume=True)
        _assert_same(folder, undisturbed)


def _nothing(_: Path) -> None:
    """Prepare nothing."""


@pytest.mark.slow
def test_a_run_killed_before_any_change_of_a_file_ends_as_if_it_was_not(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    count = 0
    run = partial(_train, sources=sources, changes=CHANGES)
    for folder in killed_runs(tmp_path, _nothing, run, start=tiny.start_clean):
        count += 1
        run(folder)
        _assert_same(folder, undisturbed)
        assert not list(folder.rglob(f"*{PARTIAL}"))
    assert count > 40


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_was_not(
    tmp_path: Path, sources: Sources
) -> None:
    """Its student is so large that it spends most of its time on writing checkpoints."""
    changes = {**CHANGES, "student": "tests.student.nets:large", "save_steps": 1, "keep": 1}
    started = time.monotonic()
    train(run_of(tmp_path / "whole", sources, **changes))
    whole_s, rng, kills = time.monotonic() - started, np.random.default_rng(0), 0
    while kills < 12:
        folder = tmp_path / f"killed{kills}"
        for _ in range(3):
            child = tiny.start_clean(_train, folder, sources, changes)
            child.join(rng.uniform(0, whole_s))
            child.kill()
            child.join()
            kills += child.exitcode == -signal.SIGKILL
        train(run_of(folder, sources, **changes), resume=True)
        _assert_same(folder, tmp_path / "whole")


# --- stops ---------------------------------------------------------------------------------


def _stop_at(step: int, number: int) -> Any:
    def progress(pace: Pace) -> None:
        if pace.step == step:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [2, 3, 5, 9])
def test_a_run_that_is_asked_to_stop_saves_the_step_and_goes_on_from_it(
    tmp_path: Path, sources: Sources, undisturbed: Path, number: int, step: int
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    changes = {**CHANGES, "save_steps": None}
    with pytest.raises(Stopped) as caught:
        train(run_of(tmp_path / "r", sources, **changes), progress=_stop_at(step, number))
    assert caught.value.args == ((15,) if number == signal.SIGTERM else ())
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert checkpoints(tmp_path / "r")[-1].name == f"step-{step:09d}.pt"
    assert not (tmp_path / "r" / WEIGHTS).exists()
    train(run_of(tmp_path / "r", sources, **CHANGES), resume=True)
    assert weights_of(tmp_path / "r") == weights_of(undisturbed)
    assert metrics_of(tmp_path / "r") == metrics_of(undisturbed)


class _Agreeing(World):
    """A process that is asked to stop while all agree that nobody was."""

    def largest(self, value: int) -> int:
        agreed = super().largest(value)
        if not value:
            os.kill(os.getpid(), signal.SIGTERM)
        return agreed


def test_a_signal_that_comes_while_the_processes_agree_stops_them_at_the_next_step(
    tmp_path: Path, sources: Sources
) -> None:
    world = _Agreeing(0, 1, torch.device("cpu"))
    with pytest.raises(Stopped) as caught:
        train(run_of(tmp_path / "r", sources, world=world, **{**CHANGES, "save_steps": None}))
    assert caught.value.args == (15,)
    assert checkpoints(tmp_path / "r")[-1].name == "step-000000002.pt"


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path, sources: Sources) -> None:
    def progress(_: Pace) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(run_of(tmp_path / "r", sources, **CHANGES), progress=progress)
    assert not isinstance(caught.value, Stopped)
    assert checkpoints(tmp_path / "r") == []


# --- checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, sources: Sources, keep: int) -> None:
    train(run_of(tmp_path / "r", sources, **CHANGES, keep=keep))
    found = [path.name for path in checkpoints(tmp_path / "r")]
    assert found == [f"step-{step:09d}.pt" for step in (6, 8, 9)][-keep:]


def test_without_its_newest_checkpoint_a_run_goes_on_from_the_one_before(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    folder = tmp_path / "r"
    _killed(folder, sources, CHANGES, 9)
    newest = checkpoints(folder)[-1]
    newest.unlink()
    train(run_of(folder, sources, **CHANGES), resume=True)
    _assert_same(folder, undisturbed)


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, sources: Sources) -> None:
    """Equal in all but the learning rate, its state would fit."""
    _killed(tmp_path / "r", sources, CHANGES, 5)
    _killed(tmp_path / "other", sources, CHANGES | {"learning_rate": 0.5}, 8)
    newest = checkpoints(tmp_path / "other")[-1]
    shutil.copy(newest, tmp_path / "r" / CHECKPOINTS)
    with pytest.raises(MismatchError, match=f"{newest.name}: is of a run with other settings"):
        train(run_of(tmp_path / "r", sources, **CHANGES), resume=True)


def test_what_decides_no_result_may_change_on_resume(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    folder = tmp_path / "r"
    _killed(folder, sources, CHANGES, 5)
    other = {**CHANGES, "save_steps": None, "save_every": 2, "num_workers": 1, "keep": 5}
    train(run_of(folder, sources, **other), resume=True)
    assert weights_of(folder) == weights_of(undisturbed)
    assert metrics_of(folder) == metrics_of(undisturbed)
    assert {path.parent.name for path in checkpoints(folder)} == {CHECKPOINTS}
