"""Models of "timm:NAME": timm's networks, with the weights of a tag or those of a file.

A tag, as in resnet50.a1_in1k, says which published weights are meant: they come from the hub as
safetensors. A file beside a tag is taken for those weights; beside a plain name, nothing is said of
it but what the network itself fixes.
"""

import difflib
import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.errors import UsageError
from kdcache.models.hub import Repository, fetch
from kdcache.models.libraries import first_line, need, quiet
from kdcache.models.source import Inputs, Model
from kdcache.models.weights import load_weights, shortened

_WEIGHTS = "model.safetensors"


def open_timm(name: str, weights: Path | None, *, num_classes: int | None) -> Model:
    """Return a model of timm, with its weights.

    weights: a file; None takes those of the name's tag from the hub, or none without a tag.
    num_classes: of the network; the hub's weights have their own.

    Raises:
        UsageError: timm is not installed or has no such model, or the weights do not fit or come.
    """
    timm = _timm(name)
    tagged = "." in name
    if weights is None and tagged:
        network = _published(timm, name)
    else:
        network = _make(timm, name, num_classes)
        if weights is not None:
            load_weights(network, weights)
    settings = network.pretrained_cfg
    known = tagged and network.num_classes == settings["num_classes"]  # else it is another file
    return Model(
        network,
        f"timm:{name if known else name.partition('.')[0]}",
        trained=weights is not None or tagged,
        inputs=_inputs(timm, network, known=known),
        classes=_classes(timm, settings) if known else None,
        licence=settings.get("license") if known else None,
    )


def make_timm(name: str, *, num_classes: int | None) -> nn.Module:
    """Return a network of timm with fresh weights. A tag only names the network's settings.

    Raises:
        UsageError: timm is not installed, or has no such model.
    """
    network: nn.Module = _make(_timm(name), name, num_classes)
    return network


def _timm(name: str) -> Any:
    """Return timm, which has the model of this name."""
    timm = need("timm", extra="timm", spec=f"timm:{name}")
    known = timm.list_models()
    plain, _, tag = name.partition(".")
    if "/" in name or ":" in name:
        raise UsageError(
            f"timm:{name}: expected a name of timm's own, such as resnet50.a1_in1k; name a model "
            "of the hub as hf:OWNER/NAME"
        )
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=8) or known[:8]
        raise UsageError(f"timm has no model {plain!r}; near it: {', '.join(near)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise UsageError(
            f"timm has no weights {tag!r} of {plain}; it has {', '.join(tags) or 'none'}"
        )
    return timm


def _make(timm: Any, name: str, num_classes: int | None, **options: Any) -> Any:
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        with quiet():
            return timm.create_model(name, **options)
    except Exception as error:
        raise UsageError(f"timm:{name}: timm cannot make it: {first_line(error)}") from error


def _published(timm: Any, name: str) -> Any:
    """Return the network of a tag with the weights that the hub has for it."""
    settings = timm.models.get_pretrained_cfg(name)
    advice = (
        "on a machine with a network, download it from the hub, and give the file: "
        f"timm:{name}@FILE"
    )
    file = settings.hf_hub_filename or _WEIGHTS
    if not settings.hf_hub_id or not fnmatch.fnmatch(file, "*.safetensors"):
        place = settings.url or settings.hf_hub_id
        raise UsageError(
            f"timm:{name}: its weights are not on the hub as safetensors; download them from "
            f"{place}, and give the file: timm:{name}@FILE"
        )
    if settings.num_classes < 1:
        raise UsageError(
            f"timm:{name}: gives features, and has no classifier whose logits could be learned; "
            "name weights that were fine-tuned to classes"
        )
    repository, _, revision = settings.hf_hub_id.partition("@")
    path = fetch(Repository(repository, revision or None, f"timm:{name}", advice), file)
    with _missing() as missing:
        overlay = {"file": str(path), "custom_load": False}
        network = _make(timm, name, None, pretrained=True, pretrained_cfg_overlay=overlay)
    if missing:
        raise UsageError(
            f"{path}: lacks weights of timm:{name}: {shortened(sorted(missing))}; "
            "they would be random"
        )
    return network


@contextmanager
def _missing() -> Iterator[list[str]]:
    """Gather the names of weights that a file lacks, which timm only logs for some networks."""
    plain, found = nn.Module.load_state_dict, list[str]()

    def load(self: nn.Module, *values: Any, **options: Any) -> Any:
        result = plain(self, *values, **options)
        found.extend(result.missing_keys)
        return result

    nn.Module.load_state_dict = load  # type: ignore[method-assign] # timm offers no other way
    try:
        yield found
    finally:
        nn.Module.load_state_dict = plain  # type: ignore[method-assign] # as it was


def _inputs(timm: Any, network: Any, *, known: bool) -> Inputs:
    settings = timm.data.resolve_model_data_config(network)
    side, other = settings["input_size"][1:]
    size = side if side == other else None
    if not known:
        return Inputs(size=size if network.pretrained_cfg.get("fixed_input_size") else None)
    mean, std = (tuple(map(float, settings[key])) for key in ("mean", "std"))
    return Inputs(
        size=size,
        crop=settings["crop_pct"],
        interpolation=settings["interpolation"],
        mean=mean if len(mean) == 3 else None,
        std=std if len(std) == 3 else None,
    )


def _classes(timm: Any, settings: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes; for ImageNet's, WordNet's ids, as its folders are called."""
    if names := settings.get("label_names"):
        return tuple(map(str, names))
    subset = timm.data.infer_imagenet_subset(settings)
    return tuple(timm.data.ImageNetInfo(subset).label_names()) if subset else None
