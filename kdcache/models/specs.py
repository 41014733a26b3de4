"""Names to networks: "torchvision:resnet50" or "package.module:factory".

A factory is the user's own code and runs as such; it is imported from the current folder too.
Nothing read from a cache is ever given to this module.
"""

import difflib
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from kdcache.data.workers import worker_died
from kdcache.errors import UsageError
from kdcache.processes import peer_died


class NoMemoryError(UsageError):
    """A network does not fit into memory with that many images."""


_WRAPPERS = ("state_dict", "model", "model_state_dict", "network")  # the last is ours


def open_device(name: str) -> torch.device:
    """Return a device that is there; "auto" is the first GPU, or the CPU without one.

    Raises:
        UsageError: there is none of this name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise UsageError("device 'meta': computes nothing; name cpu or cuda")
    return device


def build_network(spec: str, *, num_classes: int | None) -> nn.Module:
    """Return the network that a spec names, with fresh weights.

    num_classes: given to the model or factory where it takes it; None leaves its own default.

    Raises:
        UsageError: the spec names nothing, or its factory fails.
    """
    source, colon, name = spec.partition(":")
    if not colon or not source or not name:
        raise UsageError(f"model {spec!r}: expected torchvision:NAME or package.module:factory")
    options = {} if num_classes is None else {"num_classes": num_classes}
    if source == "torchvision":
        return _torchvision(name, options)
    return _call(_factory(spec, source, name), options, spec)


def _torchvision(name: str, options: dict[str, int]) -> nn.Module:
    from torchvision.models import get_model, list_models

    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=8)
        raise UsageError(
            f"torchvision has no model {name!r}; near it: {', '.join(near or known[:8])}"
        )
    quiet = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = get_model(name, weights=None, **options, **quiet)
    return network


def _factory(spec: str, module: str, name: str) -> Callable[..., Any]:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # the module is the user's own code
        raise UsageError(f"model {spec!r}: cannot import {module}: {error!r}") from error
    if not callable(found):
        raise UsageError(f"model {spec!r}: {module} has no factory named {name}")
    factory: Callable[..., Any] = found
    return factory


def _call(factory: Callable[..., Any], options: dict[str, int], spec: str) -> nn.Module:
    try:
        parameters = inspect.signature(factory).parameters
        takes = "num_classes" in parameters or any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        )
        network = factory(**options) if takes else factory()
    except (Exception, SystemExit) as error:
        raise UsageError(f"model {spec!r}: its factory failed: {error!r}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"model {spec!r}: its factory gave {type(network)}, expected a torch Module"
        )
    if any(isinstance(p, UninitializedParameter) for p in network.parameters()):
        raise UsageError(f"model {spec!r}: has lazy layers; run it once in its factory")
    return network


def run_network(
    network: nn.Module, images_N3HW: Tensor, *, name: str, num_classes: int | None
) -> Tensor:
    """Return a network's logits (N, C) of normalised images.

    num_classes: what C must be; None takes any.

    Raises:
        NoMemoryError: the device's memory does not hold so many images.
        UsageError: the network fails, or gives something else than floating logits.
    """
    count = len(images_N3HW)
    try:
        logits_NC = network(images_N3HW)
    except torch.OutOfMemoryError as error:
        raise NoMemoryError(
            f"{name}: out of memory on {count} images; lower --batch-size"
        ) from error
    except (Exception, SystemExit) as error:  # the network is the user's own code
        if worker_died(error) or peer_died(error):
            raise
        tall, wide = images_N3HW.shape[2:]
        raise UsageError(
            f"{name}: fails on {tall} x {wide} pixels, the recipe's size, {count} images at once: "
            f"{error!r}"
        ) from error
    found = type(logits_NC).__name__
    if isinstance(logits_NC, Tensor):
        kind = "" if logits_NC.is_floating_point() else f"{logits_NC.dtype} "
        found = f"{kind}{tuple(logits_NC.shape)}"
        fits = logits_NC.ndim == 2 and num_classes in (None, logits_NC.shape[1])
        if fits and not kind and len(logits_NC) == count:
            return logits_NC
    classes = "classes" if num_classes is None else f"{num_classes} classes"
    raise UsageError(
        f"{name}: gave {found} for {count} images, expected a tensor of logits (images, {classes})"
    )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file, or a PyTorch file without code, into a network.

    Raises:
        UsageError: the file is missing, holds more than tensors, or does not fit the network.
    """
    state = _read_weights(path)
    if problems := _misfits(state, network.state_dict()):
        raise UsageError(
            f"{path}: weights do not fit the model; {problems}; name the model that they are of, "
            "or, for a teacher of other classes, its --teacher-classes"
        )
    network.load_state_dict(state)


def load_matching(network: nn.Module, path: Path) -> str:
    """Load what fits of a weights file into a network; return what does not, "" if all fits.

    Raises:
        UsageError: the file is missing, holds more than tensors, or nothing of it fits.
    """
    state, expected = _read_weights(path), network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in expected and expected[name].shape == tensor.shape
    }
    problems = _misfits(state, expected)
    if not fitting:
        raise UsageError(f"{path}: nothing fits the model; {problems}")
    network.load_state_dict(fitting, strict=False)
    return problems


def _misfits(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    absent, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return "; ".join(
        f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", absent), ("unknown", extra), ("shaped otherwise", shapes))
        if names
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such weights file") from None
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path}: holds more than tensors, and loading it could run code; save its state_dict "
            "as safetensors"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: not a readable weights file: {error}") from error
    if isinstance(state, dict):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
        if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            return {name.removeprefix("module."): value for name, value in state.items()}
    raise UsageError(f"{path}: expected a state_dict of tensors")
