"""Weights files into networks: tensors only, all of them, or an error that says what differs.

Prefer safetensors, which holds nothing else. A PyTorch file is a pickle, which can run code; it is
read with torch's reader of tensors alone.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcache.errors import CorruptError, UsageError
from kdcache.models.libraries import first_line
from kdcache.models.notes import NOTES
from kdcache.texts import first_of

OTHERS = (
    "name the model that they are of; for a teacher of other classes give its --teacher-classes, "
    "or fine-tune it on yours: kdcache train --learn labels --init"
)
_WRAPPERS = ("state_dict", "model", "model_state_dict", "network")  # the last is ours


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file, or a PyTorch file without code, into a network.

    Raises:
        UsageError: the file is missing, holds more than tensors, or does not fit the network.
    """
    state = read_weights(path)
    if problems := _misfits(state, network.state_dict()):
        raise UsageError(f"{path}: weights do not fit the model; {problems}; {OTHERS}")
    _load(network, state, path=path)


def load_matching(network: nn.Module, path: Path) -> str:
    """Load what fits of a weights file into a network; return what does not, "" if all fits.

    Raises:
        UsageError: the file is missing, holds more than tensors, or nothing of it fits.
    """
    state, expected = read_weights(path), network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in expected and expected[name].shape == tensor.shape
    }
    problems = _misfits(state, expected)
    if not fitting:
        raise UsageError(f"{path}: nothing fits the model; {problems}")
    _load(network, fitting, path=path)
    return problems


def _load(network: nn.Module, state: Mapping[str, Tensor], *, path: Path) -> None:
    expected = network.state_dict()
    for name, tensor in state.items():
        wanted = expected[name]
        if not _numbers_keep(tensor.dtype, wanted.dtype):
            raise UsageError(
                f"{path}: {name} is {tensor.dtype}, expected {wanted.dtype}; "
                "save weights that are not quantised"
            )
    try:
        network.load_state_dict(state, strict=False)  # names and shapes were compared
    except Exception as error:  # each kind of tensor, and each network, has its own
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{path}: cannot be loaded into the model: {line}") from error


def _numbers_keep(found: torch.dtype, expected: torch.dtype) -> bool:
    """Return whether numbers of one type mean the same in another, but for rounding."""
    if found.is_complex or expected.is_complex:
        return found == expected
    return found.is_floating_point or not expected.is_floating_point


def _misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    absent, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return "; ".join(
        f"{what}: {shortened(names)}"
        for what, names in (("missing", absent), ("unknown", extra), ("shaped otherwise", shapes))
        if names
    )


def shortened(names: list[str]) -> str:
    """Return the first names of a list, and the number of the others."""
    return ", ".join(first_of(names, 3))


# --- what is known of them ------------------------------------------------------------------

Kind = TypeVar("Kind", bound=BaseModel)


def weights_notes(weights: Path, kind: type[Kind]) -> Kind:
    """Return what a weights file that `kdcache train` wrote says of itself.

    Raises:
        UsageError: the file is missing or damaged.
        CorruptError: it says something else.
    """
    if weights.suffix != ".safetensors":
        return kind()
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get(NOTES, "{}")
    except FileNotFoundError:
        raise UsageError(f"{weights}: no such weights file") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{weights}: not a readable weights file: {error}") from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise CorruptError(
            f"{weights}: its metadata cannot be read: {first_problem(error)}; train again"
        ) from None


def first_problem(error: ValidationError) -> str:
    """Return where the first error is, what it is, and what was found."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or NOTES
    return f"{where}: {first['msg']}, found {first['input']!r:.200}"


# --- files ---------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the plain tensors of a weights file, by name.

    Raises:
        UsageError: the file is missing or damaged, or holds something else.
    """
    state = _read(path)
    if isinstance(state, dict):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
        if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            for name, tensor in state.items():
                if odd := _oddity(tensor):
                    raise UsageError(
                        f"{path}: {name} is a {odd} tensor, expected a plain one; "
                        "save a state_dict of plain tensors"
                    )
            plain = {name.removeprefix("module."): value for name, value in state.items()}
            if len(plain) < len(state):
                raise UsageError(
                    f"{path}: has weights twice, with and without 'module.' before their names; "
                    "save the network's own state_dict"
                )
            return plain
    raise UsageError(f"{path}: expected a state_dict of tensors")


def _read(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: not a regular file; give a file of weights")
        if path.suffix == ".safetensors":
            return load_file(path)
        if advice := _other_archive(path):
            raise UsageError(f"{path}: {advice}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except FileNotFoundError:
        what = (
            "cannot be read; look at its permissions" if path.exists() else "no such weights file"
        )
        raise UsageError(f"{path}: {what}") from None
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path}: holds more than tensors, and loading it could run code; save its state_dict "
            "as safetensors"
        ) from None
    except SafetensorError as error:
        raise UsageError(f"{path}: not a readable weights file: {error}") from error
    except Exception as error:  # a damaged pickle raises what it likes
        raise UsageError(f"{path}: not a readable weights file: {first_line(error)}") from error


def _other_archive(path: Path) -> str:
    """Return what to do with a file that torch writes for programs, "" for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = {name.partition("/")[2] for name in archive.namelist()}
    except FileNotFoundError:
        raise
    except Exception:  # no zip, or a damaged one: torch.load says what it is
        return ""
    if "constants.pkl" in inner:
        return (
            "is a TorchScript archive, which carries code; save its state_dict, or export it with "
            "torch.export as .pt2"
        )
    if "archive_format" in inner:
        return "is a program of torch.export and holds its own network; name it as pt2:FILE"
    return ""


def _oddity(tensor: Tensor) -> str:
    """Return what keeps a tensor from being a plain array of numbers, "" if nothing does."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "meta"
    if tensor.is_quantized:
        return "quantised"
    return "" if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")
