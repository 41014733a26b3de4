"""A run's folder: settings, sessions, metrics and weights; one process writes it.

config.json           what decides the result: settings, ids of data, caches and teacher
sessions.jsonl        each start: versions, devices, settings that decide no result
metrics.jsonl         a line an epoch, and within epochs if asked for
checkpoints/          the newest states
best.safetensors      the weights that measured best
student.safetensors   the final weights
classes.csv           the final measures of each class
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from kdcache import __version__
from kdcache.errors import CorruptError, UsageError
from kdcache.files import LOCK
from kdcache.pixels.witness import pixel_versions
from kdcache.stores.location import without_credentials
from kdcache.student.checkpoint import METRICS, write_atomically

WEIGHTS = "student.safetensors"
BEST = "best.safetensors"
CLASSES = "classes.csv"
CONFIG = "config.json"
SESSIONS = "sessions.jsonl"


def open_run(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Make a run's folder, or check that the one there is this run's.

    Raises:
        UsageError: the folder holds a run and resume is not set, or it is of other settings.
        CorruptError: the settings there cannot be read.
    """
    path = folder / CONFIG
    text = json.dumps(config, indent=1, sort_keys=True)
    found = read_config(folder)
    if found is not None:
        if not resume:
            raise UsageError(f"{folder}: holds a run; go on with --resume, or name another folder")
        # Plain JSON on both sides: a tuple is a list there.
        differing = list(_differences(found, json.loads(text)))
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


def _differences(found: dict[str, Any], ours: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield what differs between two settings, by name; of tables, what differs in them."""
    for name in sorted(ours.keys() | found.keys()):
        theirs, mine = found.get(name), ours.get(name)
        if isinstance(theirs, dict) and isinstance(mine, dict):
            yield from _differences(theirs, mine, f"{where}{name}.")
        elif theirs != mine:
            yield f"{where}{name} {theirs}, this one has {mine}"


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder; None if there is none.

    Raises:
        CorruptError: the settings cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"{path}: no readable settings: {error}; delete the run folder and train again"
        ) from error


def note_session(folder: Path, session: Mapping[str, Any]) -> None:
    """Add a line on how the run is started, now and here."""
    line = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(map(without_credentials, sys.argv)),
        "commit": describe_commit(Path.cwd()),
        "versions": {**pixel_versions(), "kdcache": __version__, "torch": torch.__version__},
        **session,
    }
    append_line(folder / SESSIONS, line)


def append_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Add a line of metrics."""
    append_line(folder / METRICS, metrics)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add a line of JSON to a run's file.

    Raises:
        UsageError: the disk is full or read-only.
    """
    try:
        with path.open("a") as file:
            file.write(json.dumps(value, sort_keys=True) + "\n")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written: {error.strerror}; free space or permissions, then go on "
            "with --resume"
        ) from error


def describe_commit(folder: Path) -> str | None:
    """Return the commit of the code in a folder, with -dirty where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def save_weights(path: Path, network: nn.Module, *, metadata: dict[str, Any]) -> None:
    """Write all weights of a network as safetensors, tied ones too; it stays as it is.

    metadata: stands in the file as one JSON text, since safetensors writes several in any order.
    """
    notes = {"kdcache": json.dumps(metadata, sort_keys=True)}
    weights = {name: w.contiguous().clone() for name, w in network.state_dict().items()}

    data = save(weights, notes)  # save_file has a temporary file of its own, which a kill leaves
    write_atomically(path, lambda partial: partial.write_bytes(data))
