"""Models of "hf:": image classifiers of transformers, from a folder or from a hub's repository.

Both hold config.json, model.safetensors, and perhaps preprocessor_config.json and README.md. They
are data: code that comes with them is never run, and a config that asks for it is refused.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from kdcache.errors import UsageError
from kdcache.files import read_small
from kdcache.identity import digest
from kdcache.models.hf_inputs import inputs_of, timm_inputs_of
from kdcache.models.hub import Repository, fetch, fetch_if_any
from kdcache.models.libraries import first_line, need, quiet
from kdcache.models.source import Inputs, Model
from kdcache.models.weights import OTHERS, read_weights, shortened

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_IMAGES, _CARD = "preprocessor_config.json", "README.md"
_VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
_MOST_BYTES = 1 << 26
# What builds networks of other files, or of the network, in whatever part of a config it stands.
_ELSEWHERE = ("checkpoint_path", "use_pretrained_backbone", "pretrained")
_TIMM = ("timm_wrapper", "timm_backbone")
_TIMM_ARGS = frozenset({"global_pool", "img_size", "dynamic_img_size", "patch_size"})
_ATTENTION = "attn_implementation", "_attn_implementation"


@dataclass(frozen=True)
class _Place:
    """A folder with a model's files. spec: as asked for. repository: of the hub, if it is one."""

    folder: Path
    spec: str
    name: str
    repository: Repository | None = None

    def file(self, name: str) -> Path | None:
        """Return a file, None if there is none."""
        if self.repository is not None:
            return fetch_if_any(self.repository, name)
        path = self.folder / name
        return path if path.exists() else None


def open_hf(name: str, weights: str | Path | None, *, num_classes: int | None) -> Model:
    """Return an image classifier of transformers, with its weights.

    name: of a folder, which wins, or of a repository of the hub. weights: for a folder, another
    file than the one in it; for a repository, the revision, as text. num_classes: of the network,
    where the weights are of another file.

    Raises:
        UsageError: transformers is not installed, or there is no such model, or not all of it.
    """
    place = _find(name, weights)
    config = _read_config(place)
    if place.repository is None and weights is not None:
        network = _load_file(place, Path(weights), num_classes)
    else:
        network = _load(place)
    return Model(
        network,
        place.name,
        trained=True,
        inputs=_inputs(place, config),
        graph=_graph(place, config),
        classes=_classes(network),
        licence=_licence(place),
    )


def make_hf(name: str, *, num_classes: int | None) -> nn.Module:
    """Return the network that a folder's or a repository's config.json describes, fresh weights.

    Raises:
        UsageError: transformers is not installed, or makes no image classifier of this.
    """
    place = _find(name, None)
    _read_config(place)
    return _fresh(place, num_classes)


# --- files ---------------------------------------------------------------------------------


def _find(name: str, weights: str | Path | None) -> _Place:
    spec = f"hf:{name}"
    need("transformers", extra="hf", spec=spec)
    folder = Path(name)
    if folder.is_dir():
        return _Place(folder, spec, f"hf:{folder.resolve().name}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UsageError(f"{spec}: no such folder, and no name of the hub, which is OWNER/NAME")
    if isinstance(weights, Path):
        raise UsageError(
            f"{spec}: a repository of the hub has its own weights; leave --weights out, or give a "
            "folder"
        )
    repository = Repository(
        name,
        weights,
        spec if weights is None else f"{spec}@{weights}",
        f"run hf download {name} on a machine with a network, and give its folder as hf:FOLDER "
        f"(there is no folder {name} here)",
    )
    folder = fetch(repository, _CONFIG).parent
    pinned = replace(repository, revision=folder.name)  # the cache calls it by its commit
    return _Place(folder, repository.spec, spec, pinned)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_small(path, most_bytes=_MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected an object of JSON, found {type(value).__name__}")
    return value


def _read_config(place: _Place) -> dict[str, Any]:
    """Return config.json, which asks for no code but transformers' own."""
    path = place.file(_CONFIG)
    if path is None:
        raise UsageError(f"{place.folder}: has no {_CONFIG}; give the folder of save_pretrained")
    config = _read_json(path)
    for part in _parts(config):
        if "auto_map" in part:
            raise UsageError(
                f"{place.spec}: its {_CONFIG} asks for code that comes with it (auto_map), which "
                "is not run; read that code, and call it from a factory of your own"
            )
        _check_elsewhere(place, part)
        for key in _ATTENTION:
            if part.get(key) not in (None, "eager", "sdpa"):
                raise UsageError(
                    f"{place.spec}: its {_CONFIG} asks for the attention {part[key]!r}, which is "
                    "code from elsewhere; take that entry out"
                )
    if (place.folder / "adapter_config.json").exists():
        raise UsageError(
            f"{place.spec}: holds an adapter of another model; merge the two, and save the whole"
        )
    return config


def _check_elsewhere(place: _Place, part: Mapping[str, Any]) -> None:
    """Check that part of a config names no weights or networks of other files or of a hub."""
    if named := [key for key in _ELSEWHERE if part.get(key)]:
        raise UsageError(
            f"{place.spec}: its {_CONFIG} asks for weights from elsewhere ({named[0]}), which are "
            "not read; take that entry out"
        )
    if part.get("model_type") in _TIMM:
        names = [part.get(key) for key in ("architecture", "backbone") if part.get(key) is not None]
        args = part.get("model_args") or {}
        if not all(isinstance(n, str) and re.fullmatch(r"[\w.]+", n, re.ASCII) for n in names):
            raise UsageError(
                f"{place.spec}: its {_CONFIG} names {names!r:.80}, expected a model of timm"
            )
        if not isinstance(args, dict) or args.keys() - _TIMM_ARGS:
            raise UsageError(
                f"{place.spec}: its {_CONFIG} has model_args {args!r:.80}, kdcache hands on "
                f"{', '.join(sorted(_TIMM_ARGS))} alone; name the model as timm:NAME@FILE"
            )


def _parts(value: object) -> Iterator[Mapping[str, Any]]:
    """Return all objects of JSON in a value, itself included, whatever the depth."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
        if isinstance(part, dict | list):
            waiting.extend(part.values() if isinstance(part, dict) else part)


def _check_shards(place: _Place) -> None:
    """Check that the parts of weights that a folder's index names lie in the folder."""
    for path in sorted(place.folder.glob("*.index.json")):
        shards = _read_json(path).get("weight_map")
        names = shards.values() if isinstance(shards, dict) else [shards]
        if not all(isinstance(n, str) and re.fullmatch(r"[\w-][\w.-]*", n) for n in names):
            raise UsageError(f"{path}: names files that are not beside it, which are not read")


def _fetch_weights(place: _Place) -> None:
    """Have the weights in the folder."""
    if place.repository is None:
        return
    if fetch_if_any(place.repository, _WEIGHTS) is not None:
        return
    index = fetch_if_any(place.repository, _INDEX)
    if index is None:
        raise UsageError(
            f"{place.spec}: has no {_WEIGHTS} on the hub, and other files may hold code; download "
            "it, save it anew with save_pretrained, and give the folder as hf:FOLDER"
        )
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) and name.endswith(".safetensors") for name in shards.values()
    ):
        raise UsageError(f"{index}: names other files than .safetensors")
    for name in sorted(set(shards.values())):
        fetch(place.repository, name)


# --- networks ------------------------------------------------------------------------------


def _load(place: _Place) -> nn.Module:
    _fetch_weights(place)
    _check_shards(place)
    only = True if place.repository is not None else None
    auto = need("transformers", extra="hf", spec=place.spec).AutoModelForImageClassification
    options = {"trust_remote_code": False, "use_safetensors": only}
    network, report = _from_pretrained(place, auto, str(place.folder), **options)
    if wrong := _lacking(report):
        raise UsageError(
            f"{place.spec}: {wrong}; they would be random; give an image classifier with all of "
            "its weights"
        )
    return network


def _load_file(place: _Place, path: Path, num_classes: int | None) -> nn.Module:
    """Return the network of a folder's config with the weights of another file.

    transformers knows them by the names in the network, and by those that it writes.
    """
    state, fresh = read_weights(path), _fresh(place, num_classes)
    options = {"config": fresh.config, "state_dict": state}
    network, report = _from_pretrained(place, type(fresh), None, **options)
    unknown = sorted(report["unexpected_keys"])
    if unknown or (wrong := _lacking(report)):
        reason = f"unknown: {shortened(unknown)}" if unknown else wrong
        raise UsageError(f"{path}: weights do not fit the model; {reason}; {OTHERS}")
    return network


def _from_pretrained(
    place: _Place, kind: Any, source: str | None, **options: Any
) -> tuple[nn.Module, Any]:
    """Return a network with weights, and transformers' report on them."""
    transformers = need("transformers", extra="hf", spec=place.spec)
    try:
        with quiet():
            network, report = kind.from_pretrained(
                source,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # the report names them
                output_loading_info=True,
                **options,
                **_float32(transformers),
            )
    except Exception as error:  # its errors are of many kinds
        _refuse(place, error)
    return network, report


def _lacking(report: Mapping[str, Any]) -> str:
    """Return what of a network was not loaded, "" if nothing."""
    wrong = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    if wrong:
        return f"weights are missing or do not fit: {shortened(sorted(wrong))}"
    return str(report["error_msgs"][0]).splitlines()[0] if report["error_msgs"] else ""


def _config(place: _Place, num_classes: int | None) -> Any:
    transformers = need("transformers", extra="hf", spec=place.spec)
    options = {} if num_classes is None else {"num_labels": num_classes}
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(
                str(place.folder), local_files_only=True, trust_remote_code=False, **options
            )
    except Exception as error:
        _refuse(place, error)


def _fresh(place: _Place, num_classes: int | None) -> nn.Module:
    transformers = need("transformers", extra="hf", spec=place.spec)
    config = _config(place, num_classes)
    try:
        with quiet():
            network: nn.Module = transformers.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False, **_float32(transformers)
            )
    except Exception as error:
        _refuse(place, error)
    return network


def _float32(transformers: Any) -> dict[str, Any]:
    """Return the option that has weights of any kind as float32, by the library's version."""
    import torch

    new = int(transformers.__version__.partition(".")[0]) >= 5
    return {"dtype" if new else "torch_dtype": torch.float32}


def _refuse(place: _Place, error: Exception) -> NoReturn:
    raise UsageError(
        f"{place.spec}: transformers makes no image classifier of it: {first_line(error)}"
    ) from error


# --- what is known -------------------------------------------------------------------------


def _inputs(place: _Place, config: Mapping[str, Any]) -> Inputs:
    timm = config.get("pretrained_cfg")  # timm's models on the hub say it there
    if isinstance(timm, dict):
        return timm_inputs_of(timm, where=f"{place.folder / _CONFIG}, pretrained_cfg")
    path = place.file(_IMAGES)
    return Inputs() if path is None else inputs_of(_read_json(path), where=str(path))


def _graph(place: _Place, config: Mapping[str, Any]) -> str:
    """Return the digest of what the config says beyond the weights."""
    lasting = {key: value for key, value in config.items() if key not in _VOLATILE}
    try:
        return digest(lasting)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place.folder / _CONFIG}: {first_line(error)}") from error


def _classes(network: nn.Module) -> tuple[str, ...] | None:
    labels = dict(getattr(network.config, "id2label", None) or {})
    names = [labels.get(index) for index in range(len(labels))]
    if not names or None in names or names == [f"LABEL_{n}" for n in range(len(names))]:
        return None
    return tuple(map(str, names))


def _licence(place: _Place) -> str | None:
    """Return the licence in the front matter of README.md; None if nothing says it."""
    try:
        path = place.file(_CARD)
    except UsageError:
        return None  # neither here nor to be had; nothing depends on it
    if path is None:
        return None
    from huggingface_hub import metadata_load

    try:
        notes = metadata_load(path) or {}
    except Exception:  # a text for people, perhaps with mistakes
        return None
    found = notes.get("license")
    if found == "other":
        found = notes.get("license_link") or notes.get("license_name") or found
    if isinstance(found, list):
        found = " AND ".join(map(str, found))
    return None if found is None else str(found)
