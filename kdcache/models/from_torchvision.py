"""Models of "torchvision:NAME": torchvision's networks, with its weights or those of a file.

torchvision knows what images its own weights were made for; of a file's weights it knows nothing,
so that nothing is said of them but what the network itself fixes.
"""

import difflib
import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torch import hub, nn

from kdcache.errors import UsageError
from kdcache.models.libraries import first_line, quiet
from kdcache.models.source import Inputs, Model
from kdcache.models.weights import load_weights

PATIENCE_S = 15.0  # for each answer of a server


def open_torchvision(name: str, weights: str | Path | None, *, num_classes: int | None) -> Model:
    """Return a model of torchvision, with its weights.

    weights: an entry of the model's weights ("IMAGENET1K_V2", "DEFAULT"), or else the name of a
    file; a Path is always a file; None loads none. num_classes: of the network, but where an entry
    has its own.

    Raises:
        UsageError: there is no such model, entry or file, or the weights do not fit or come.
    """
    _check_name(name)
    entries = _entries(name)
    if isinstance(weights, str):
        if weights in entries:
            return _published(name, entries[weights], asked=f"torchvision:{name}@{weights}")
        if not Path(weights).exists():
            raise UsageError(_no_such(name, weights, entries))
    network = make_torchvision(name, num_classes=num_classes)
    if weights is not None:
        load_weights(network, Path(weights))
    return Model(
        network,
        f"torchvision:{name}",
        trained=weights is not None,
        inputs=Inputs(size=_fixed_size(network)),
    )


def make_torchvision(name: str, *, num_classes: int | None) -> nn.Module:
    """Return a network of torchvision with fresh weights.

    Raises:
        UsageError: there is no such model.
    """
    from torchvision.models import get_model

    _check_name(name)
    options = {} if num_classes is None else {"num_classes": num_classes}
    silent = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    try:
        network: nn.Module = get_model(name, weights=None, **options, **silent)
    except Exception as error:  # of each model's own
        raise UsageError(f"torchvision:{name}: cannot be made: {first_line(error)}") from error
    return network


def _check_name(name: str) -> None:
    from torchvision import models

    known = models.list_models(module=models)  # others detect, segment, or follow motion
    if name not in known:
        near = difflib.get_close_matches(name, known, n=8)
        raise UsageError(
            f"torchvision has no model {name!r}; near it: {', '.join(near or known[:8])}"
        )


def _fixed_size(network: nn.Module) -> int | None:
    """Return the side of the images that a network takes, where it takes one size only."""
    from torchvision.models import VisionTransformer

    return int(network.image_size) if isinstance(network, VisionTransformer) else None


# --- torchvision's own weights -------------------------------------------------------------


def _entries(name: str) -> dict[str, Any]:
    """Return the weights that torchvision publishes for a model, by their names."""
    from torchvision.models import get_model_weights

    return dict(get_model_weights(name).__members__)  # "DEFAULT" is among them


def _no_such(name: str, weights: str, entries: dict[str, Any]) -> str:
    if "." in weights or "/" in weights:
        return f"{weights}: no such weights file"
    return (
        f"torchvision:{name}: has no weights {weights!r}, and there is no such file; it has "
        f"{', '.join(entries) or 'none; give a file'}"
    )


def _published(name: str, entry: Any, *, asked: str) -> Model:
    from torchvision.models import get_model

    _fetch(entry, asked)
    try:
        with quiet():  # reads the same file once more: its own code knows how each model is built
            network = get_model(name, weights=entry, progress=False)
    except Exception as error:
        raise UsageError(f"{asked}: torchvision cannot load it: {first_line(error)}") from error
    meta = entry.meta
    classes = meta.get("categories")
    return Model(
        network,
        f"torchvision:{name}",
        trained=True,
        inputs=_inputs(entry.transforms()),
        classes=tuple(classes) if classes else None,
        licence=meta.get("license"),
    )


def _fetch(entry: Any, asked: str) -> None:
    """Have the file of published weights in torch.hub's folder, with tensors only."""
    file = Path(hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    found = file.exists()
    if found:
        _check_hash(file)
    try:
        with quiet(), _patience():
            entry.get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
    except Exception as error:  # of the network, of the file system and of pickle
        if found:
            raise UsageError(
                f"{file}: cannot be read: {first_line(error)}; delete it, and it is fetched again"
            ) from error
        raise UsageError(
            f"{asked}: not in torch's cache, and cannot be fetched: {first_line(error)}; on a "
            f"machine with a network, download {entry.url} and put it at {file}"
        ) from error


def _check_hash(file: Path) -> None:
    """Check a cached file against the start of its sha256 that its name ends in."""
    named = hub.HASH_REGEX.search(file.name)
    try:
        with file.open("rb") as data:
            found = hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    if named and not found.startswith(named[1]):
        raise UsageError(
            f"{file}: its sha256 is {found[:12]}, its name says {named[1]}; delete it, and it is "
            "fetched again"
        )


@contextmanager
def _patience() -> Iterator[None]:
    """Let no server be waited for without end, as torch.hub does."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _inputs(preset: Any) -> Inputs:
    """Return what torchvision's transforms say; those of detectors say nothing."""
    if not hasattr(preset, "crop_size"):
        return Inputs()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    mean, std = map(tuple, (preset.mean, preset.std))
    return Inputs(
        size=size,
        crop=min(size / resized, 1.0),
        interpolation=preset.interpolation.value,
        mean=mean if len(mean) == 3 else None,
        std=std if len(std) == 3 else None,
    )
