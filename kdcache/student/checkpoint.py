"""What a run keeps: its state, atomically replaced, and its final weights."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdcache.errors import CorruptError, UsageError
from kdcache.files import write_whole
from kdcache.replay.stream import ReplayStream

STATE = "checkpoint.pt"
WEIGHTS = "student.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.json"


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything that decides the rest of a run."""

    network: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    stream: ReplayStream

    def save(self, folder: Path, *, epoch: int) -> None:
        """Replace the run's checkpoint. epoch: epochs done."""
        metrics = folder / METRICS
        state = {
            "epoch": epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "stream": self.stream.state_dict(),
            "rng": torch.get_rng_state(),
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        }
        if torch.cuda.is_available():
            state["cuda_rng"] = torch.cuda.get_rng_state_all()
        write_atomically(folder / STATE, lambda path: torch.save(state, path))

    def load(self, folder: Path) -> int:
        """Go on from the run's checkpoint; return the epochs done, 0 if there is none.

        Raises:
            CorruptError: the checkpoint cannot be read.
            MismatchError: it is of another stream.
        """
        path = folder / STATE
        if not path.exists():
            (folder / METRICS).unlink(missing_ok=True)
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged pickles raise many kinds
            raise CorruptError(
                f"{path}: cannot be read ({error}); delete the run folder and train again"
            ) from error
        self.stream.load_state_dict(state["stream"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        os.truncate(folder / METRICS, state["metrics_bytes"])
        return int(state["epoch"])


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a run's file whole or not at all.

    Raises:
        UsageError: the disk is full or read-only; an older file is untouched.
    """
    try:
        write_whole(path, write)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise UsageError(f"{path}: cannot be written: {error}") from error


def open_run(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make a run's folder, or check that the one there is this run's.

    Raises:
        UsageError: the folder holds a run and resume is not set, or it is of other settings.
    """
    path = folder / CONFIG
    text = json.dumps(config, indent=1, sort_keys=True)
    if path.exists():
        if not resume:
            raise UsageError(f"{folder}: holds a run; go on with --resume, or name another folder")
        found = json.loads(path.read_text())
        differing = sorted(k for k in config.keys() | found.keys() if config.get(k) != found.get(k))
        if differing:
            raise UsageError(
                f"{folder}: holds a run with other {', '.join(differing)}; resume with the same "
                "settings, or name another folder"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder}: holds other files; name an empty folder for the run")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
    write_atomically(path, lambda partial: partial.write_text(text))


def save_weights(folder: Path, network: nn.Module, *, metadata: dict[str, str]) -> Path:
    """Write the final weights as safetensors; return their path."""
    path = folder / WEIGHTS
    plain = network.cpu().to(memory_format=torch.contiguous_format)
    write_atomically(path, lambda partial: save_model(plain, str(partial), metadata))
    return path
