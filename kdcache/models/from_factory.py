"""Models of "package.module:factory": a callable of the user's own code, which gives a network.

It runs as such, and is imported from the current folder too. Nothing read from a cache or from a
weights file is ever given to this module.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from kdcache.errors import UsageError
from kdcache.models.source import Model
from kdcache.models.weights import load_weights


def open_factory(
    module: str, name: str, weights: Path | None, *, num_classes: int | None, hint: str = ""
) -> Model:
    """Return the model that a factory makes; without a weights file, it loads its own.

    num_classes, hint: as make_by_factory.

    Raises:
        UsageError: as make_by_factory and load_weights.
    """
    network = make_by_factory(module, name, num_classes=num_classes, hint=hint)
    if weights is not None:
        load_weights(network, weights)
    return Model(network, f"{module}:{name}", trained=True)


def make_by_factory(
    module: str, name: str, *, num_classes: int | None, hint: str = ""
) -> nn.Module:
    """Return the network that a factory makes.

    num_classes: given to the factory where it takes it. hint: ends the message when there is no
    such module.

    Raises:
        UsageError: there is no such factory, or it fails.
    """
    spec = f"{module}:{name}"
    options = {} if num_classes is None else {"num_classes": num_classes}
    return _call(_factory(spec, module, name, hint), options, spec)


def _factory(spec: str, module: str, name: str, hint: str) -> Callable[..., Any]:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # the module is the user's own code
        raise UsageError(f"model {spec!r}: cannot import {module}: {error!r}{hint}") from error
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
