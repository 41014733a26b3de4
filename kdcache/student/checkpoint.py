"""What a run keeps: its state, atomically replaced, and its final weights."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdcache.errors import CorruptError, KdcacheError, UsageError
from kdcache.files import LOCK, write_whole
from kdcache.replay.stream import ReplayStream

STATE = "checkpoint.pt"
WEIGHTS = "student.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.json"

_AGAIN = "delete the run folder and train again"


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
            CorruptError: the checkpoint cannot be read, or the metrics before it are lost.
            MismatchError: it is of another stream.
        """
        path = folder / STATE
        if not path.exists():
            (folder / METRICS).unlink(missing_ok=True)
            return 0
        try:
            state = _read_state(path)
            self.stream.load_state_dict(state["stream"])
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            torch.set_rng_state(state["rng"])
            if "cuda_rng" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["cuda_rng"])
            metrics_bytes, epoch = int(state["metrics_bytes"]), int(state["epoch"])
        except KdcacheError:
            raise
        except Exception as error:  # damaged pickles raise many kinds
            raise CorruptError(
                f"{path}: cannot be read ({_first_line(error)}); {_AGAIN}"
            ) from error
        metrics = folder / METRICS
        if not metrics.exists() or metrics.stat().st_size < metrics_bytes:
            raise CorruptError(f"{metrics}: shorter than at the last checkpoint; {_AGAIN}")
        os.truncate(metrics, metrics_bytes)
        return epoch


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


def open_run(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make a run's folder, or check that the one there is this run's.

    Raises:
        UsageError: the folder holds a run and resume is not set, or it is of other settings.
        CorruptError: the settings there cannot be read.
    """
    path = folder / CONFIG
    text = json.dumps(config, indent=1, sort_keys=True)
    if path.exists():
        if not resume:
            raise UsageError(f"{folder}: holds a run; go on with --resume, or name another folder")
        found = _read_config(path)
        differing = [
            f"{name} {found.get(name)}, this one has {config.get(name)}"
            for name in sorted(config.keys() | found.keys())
            if config.get(name) != found.get(name)
        ]
        if differing:
            raise UsageError(
                f"{folder}: holds a run with {'; with '.join(differing)}; resume with the same "
                "settings, or name another folder"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        leftover = f".{CONFIG}."  # of a writer that was killed
        if any(not e.name.startswith((leftover, LOCK)) for e in folder.iterdir()):
            raise UsageError(f"{folder}: holds other files; name an empty folder for the run")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
    write_atomically(path, lambda partial: partial.write_text(text))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{path}: no readable settings: {error}; {_AGAIN}") from error


def save_weights(folder: Path, network: nn.Module, *, metadata: dict[str, Any]) -> Path:
    """Write the final weights as safetensors; return their path.

    metadata: stands in the file as one JSON text, since safetensors writes several in any order.
    """
    path = folder / WEIGHTS
    notes = {"kdcache": json.dumps(metadata, sort_keys=True)}
    plain = network.cpu().to(memory_format=torch.contiguous_format)

    def write(partial: Path) -> None:
        save_model(plain, str(partial), notes)
        shutil.copymode(folder / CONFIG, partial)  # safetensors makes files for their owner alone

    write_atomically(path, write)
    return path
