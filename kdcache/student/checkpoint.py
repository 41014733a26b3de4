"""What a run can go on from: its whole state, in files written whole, the newest few kept."""

import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from kdcache.errors import CorruptError, KdcacheError, MismatchError, UsageError
from kdcache.files import PARTIAL, write_whole
from kdcache.replay.stream import ReplayStream

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"

_NAME = re.compile(r"step-(\d{9})\.pt")
_AGAIN = "delete the run folder and train again"


@dataclass(eq=False)
class Counts:
    """What a run counts. step: steps done. totals: float64 sums over this epoch's steps so far.

    best: the best measure of validation so far, with its epoch.
    """

    totals: Tensor
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything that decides the rest of a run. Randomness follows from the step's number.

    settings: digest of the run's settings, so that no other run's checkpoint is taken for its own.
    """

    network: nn.Module
    optimizers: list[Optimizer]
    schedules: list[LRScheduler]
    scaler: GradScaler
    average: AveragedModel | None
    stream: ReplayStream
    counts: Counts
    settings: str

    def save(self, folder: Path, *, totals: Tensor, keep: int) -> None:
        """Write a checkpoint of this step, and remove all but the newest few.

        totals: of each rank.
        """
        metrics = folder / METRICS
        state = {
            "settings": self.settings,
            "step": self.counts.step,
            "totals": totals,
            "best": self.counts.best,
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "stream": self.stream.state_dict(),
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        }
        path = folder / CHECKPOINTS / f"step-{self.counts.step:09d}.pt"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda partial: torch.save(state, partial))
        _remove_old(folder, keep)

    def load(self, folder: Path, *, rank: int, world: int) -> int:
        """Go on from the run's newest checkpoint; return the bytes of metrics before it.

        Raises:
            CorruptError: the checkpoint cannot be read, or the metrics before it are lost.
            MismatchError: it is of another run, or of data that changed.
        """
        found = checkpoints(folder)
        if not found:
            return 0
        *older, path = found
        advice = f"delete it to go on from {older[-1].name}" if older else _AGAIN
        try:
            state = _read_state(path)
            if state["settings"] != self.settings:
                raise MismatchError(f"{path}: is of a run with other settings; remove it")
            self.stream.load_state_dict(state["stream"])
            self.network.load_state_dict(state["network"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            for schedule, kept in zip(self.schedules, state["schedules"], strict=True):
                schedule.load_state_dict(kept)
            self.scaler.load_state_dict(state["scaler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self._count_on(state, rank, world)
            metrics_bytes = int(state["metrics_bytes"])
        except KdcacheError:
            raise
        except Exception as error:  # damaged pickles raise many kinds
            raise CorruptError(
                f"{path}: cannot be read ({_first_line(error)}); {advice}"
            ) from error
        metrics = folder / METRICS
        if metrics_bytes and (not metrics.exists() or metrics.stat().st_size < metrics_bytes):
            raise CorruptError(f"{metrics}: shorter than at the last checkpoint; {_AGAIN}")
        return metrics_bytes

    def _count_on(self, state: dict[str, Any], rank: int, world: int) -> None:
        """Take over counts; where there were other ranks, each has the mean of their sums."""
        totals = state["totals"]
        self.counts.totals.copy_(totals[rank] if len(totals) == world else totals.mean(0))
        self.counts.step, self.counts.best = int(state["step"]), dict(state["best"])


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest last."""
    found = (folder / CHECKPOINTS).glob("step-*.pt")
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def _remove_old(folder: Path, keep: int) -> None:
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)


def start_afresh(folder: Path, *, metrics_bytes: int, keep: int) -> None:
    """Remove what a killed run wrote after its last checkpoint, or had not finished."""
    _remove_old(folder, keep)
    for place in (folder, folder / CHECKPOINTS):
        for path in place.glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)
    if (folder / METRICS).exists():
        os.truncate(folder / METRICS, metrics_bytes)


def _read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint, its checksums proven: torch reads flipped bits without a word."""
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} differs from its checksum")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a run's file whole or not at all.

    Raises:
        UsageError: the disk is full or read-only; an older file is untouched.
    """
    try:
        write_whole(path, write)
    except (OSError, RuntimeError, SafetensorError) as error:  # each raises its own on a full disk
        raise UsageError(
            f"{path}: cannot be written: {_first_line(error)}; free space or permissions, then "
            "go on with --resume"
        ) from error
