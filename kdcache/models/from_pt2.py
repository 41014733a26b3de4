"""Teachers from torch.export programs, pt2:FILE, which may come from anybody.

Invariant: torch never sees the file. Its reader unpickles (sample inputs, subclasses of tensors,
objects), evaluates text (symbolic sizes, guards), imports modules (pytree specs) and walks
attributes (operators), each of which runs what a stranger wrote. Here the archive is read as bytes,
its document as records, and the program runs as steps of listed operators; what would need more is
refused.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.identity import digest
from kdcache.models.archive import AGAIN, Archive, open_archive
from kdcache.models.counts import MOST, Counts, run_in_counts
from kdcache.models.graph_document import (
    Document,
    Extent,
    Payload,
    Payloads,
    Range,
    read_record,
)
from kdcache.models.notes import NOTES, NOTES_BYTES, known_inputs, read_notes
from kdcache.models.program import DTYPES, Plan, make_plan, run_plan
from kdcache.models.source import Model, Takes

_DOCUMENT_BYTES = 2**26
_FOLDERS = {"weights": "data/weights", "constants": "data/constants"}
_PATH = re.compile(r"[^.]{1,200}(\.[^.]{1,200}){0,63}")
_SYMBOL = re.compile(r"Symbol\('(\w+)'(, \w+=(True|False))*\)", re.ASCII)


def open_pt2(path: Path) -> Model:
    """Return the network of a .pt2 file, in evaluation mode, on the CPU.

    It takes (N, 3, H, W) of any N: normalised images of any floating dtype, or uint8 pixels, as the
    program does. Its graph is the sha256 of what the program computes.

    Raises:
        UsageError: the file is not there or damaged, holds no program of this kind, or one that
            could run code.
    """
    try:
        with open_archive(path) as archive:
            return _read_model(archive, path.name)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


@dataclass(frozen=True)
class _Images:
    """What a program takes, at which of its inputs. height, width: None for any."""

    place: int
    dtype: torch.dtype
    counts: Counts
    height: int | None
    width: int | None


class ProgramNetwork(nn.Module):
    """A program with its weights; it stays in evaluation mode, since that is what was exported.

    It moves between devices as any module, wherever the program itself was exported.
    """

    def __init__(
        self, plan: Plan, weights: dict[str, Tensor], *, places: dict[int, str], images: _Images
    ) -> None:
        # places: which of the plan's inputs takes which of the weights
        super().__init__()
        self.weights = nn.Module()
        owners = {name: _register(self.weights, name, tensor) for name, tensor in weights.items()}
        self._plan = plan
        self._places = [(place, *owners[name]) for place, name in places.items()]
        self._images = images
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        wanted = self._images.dtype
        if wanted.is_floating_point != images_N3HW.is_floating_point():
            raise TypeError(f"takes {wanted}, was given {images_N3HW.dtype}")
        return run_in_counts(self._run, images_N3HW.to(wanted), self._images.counts)

    def _run(self, images_N3HW: Tensor) -> Tensor:
        inputs: list[Tensor | None] = [None] * len(self._plan.inputs)
        for place, owner, name in self._places:
            inputs[place] = getattr(owner, name)
        inputs[self._images.place] = images_N3HW
        (logits_NC,) = run_plan(self._plan, inputs, images_N3HW.device)
        return cast(Tensor, logits_NC)


# --- the document --------------------------------------------------------------------------


def _read_model(archive: Archive, file: str) -> Model:
    name = _model_name(archive)
    member = f"models/{name}.json"
    document = read_record(
        Document, bytes(archive.read(member, _DOCUMENT_BYTES)), name=f"its {member}"
    )
    images = _read_images(document)
    plan = make_plan(document.graph_module.graph)
    if len(plan.outputs) != 1 or len(document.graph_module.signature.output_specs) != 1:
        raise UsageError(f"gives {len(plan.outputs)} outputs, expected logits alone")
    places, weights = _read_weights(archive, name, document)
    extra = f"extra/{NOTES}"
    noted = bytes(archive.read(extra, NOTES_BYTES)) if extra in archive.names else None
    takes: Takes = "images" if images.dtype.is_floating_point else "pixels"
    notes = read_notes(noted)
    inputs = known_inputs(notes, takes=takes, height=images.height, width=images.width)
    return Model(
        network=ProgramNetwork(plan, weights, places=places, images=images),
        name=f"pt2:{file}",
        trained=True,
        inputs=inputs,
        takes=takes,
        graph=digest(document.model_dump(mode="json", exclude_unset=True)),
        classes=notes.classes,
    )


def _model_name(archive: Archive) -> str:
    models = sorted(
        name.removeprefix("models/").removesuffix(".json")
        for name in archive.names
        if re.fullmatch(r"models/[\w.-]+\.json", name, re.ASCII)
    )
    if "model" in models:
        return "model"
    if len(models) == 1:
        return models[0]
    if not models and any(name.startswith("data/aotinductor/") for name in archive.names):
        raise UsageError(
            "holds a compiled library, which is code, and no program; save what torch.export gives"
        )
    raise UsageError(f"holds {len(models)} programs, expected one; {AGAIN}")


def _read_images(document: Document) -> _Images:
    """Return what the program's one user input takes."""
    graph, signature = document.graph_module.graph, document.graph_module.signature
    if len(graph.inputs) != len(signature.input_specs):
        raise UsageError("has another number of inputs than its signature says")
    places = [
        place for place, spec in enumerate(signature.input_specs) if spec.kind == "user_input"
    ]
    if len(places) != 1:
        raise UsageError(f"takes {len(places)} inputs, expected images alone")
    given = graph.inputs[places[0]]
    meta = graph.tensor_values.get(given.value.name) if given.kind == "as_tensor" else None
    if meta is None:
        raise UsageError(f"takes an input of the kind {given.kind}, expected a tensor of images")
    dtype = DTYPES.get(meta.dtype)
    shape = [extent.value if extent.kind == "as_int" else None for extent in meta.sizes]
    shown = f"({', '.join('any' if side is None else str(side) for side in shape)})"
    if dtype is None or not (dtype.is_floating_point or dtype == torch.uint8):
        raise UsageError(f"takes {dtype} {shown}, expected floating images or uint8 pixels")
    if len(shape) != 4 or shape[1] != 3 or not all(side is None or side > 0 for side in shape):
        raise UsageError(f"takes {shown}, expected images (N, 3, H, W)")
    counts = _counts(meta.sizes, document.range_constraints)
    return _Images(places[0], dtype, counts, height=shape[2], width=shape[3])


def _counts(sizes: list[Extent], ranges: dict[str, Range]) -> Counts:
    """Return how many images a program takes, from its first size."""
    if sizes[0].kind == "as_int":
        return Counts(sizes[0].value, sizes[0].value)
    text = sizes[0].value.expr_str
    match = _SYMBOL.fullmatch(text)
    if match is None or any(
        side.kind == "as_expr" and side.value.expr_str == text for side in sizes[2:]
    ):
        raise UsageError(
            f"takes {text[:60]!r} images, expected a number or a free one; export it with "
            "dynamic_shapes=({0: Dim('batch', min=1)},)"
        )
    found = ranges.get(match[1], Range(min_val=None, max_val=None))
    most = MOST if found.max_val is None else min(found.max_val, MOST)
    return Counts(max(found.min_val or 1, 1), most)


# --- the weights ---------------------------------------------------------------------------


def _read_weights(
    archive: Archive, model: str, document: Document
) -> tuple[dict[int, str], dict[str, Tensor]]:
    """Return which input takes which weights, and all of these by name."""
    for folder in _FOLDERS.values():
        if (older := f"{folder}/{model}.pt") in archive.names:
            raise UsageError(f"has {older!r}, a pickle of an older layout; {AGAIN}")
    configs = {
        kind: read_record(Payloads, bytes(archive.read(member, _DOCUMENT_BYTES)), name=member)
        for kind, folder in _FOLDERS.items()
        for member in (f"{folder}/{model}_{kind}_config.json",)
    }
    places: dict[int, str] = {}
    weights: dict[str, Tensor] = {}
    read: dict[tuple[str, str], Tensor] = {}  # weights that are tied stay tied
    stored: dict[str, bytearray] = {}
    for place, spec in enumerate(document.graph_module.signature.input_specs):
        if spec.kind in ("user_input", "constant_input"):
            continue
        name = getattr(spec.value, f"{spec.kind}_name")
        if document.graph_module.graph.inputs[place].kind != "as_tensor":
            raise UsageError(f"gives {name[:60]!r} to an input that is no tensor")
        kinds = [kind for kind, payloads in configs.items() if name in payloads.config]
        if len(kinds) != 1 or not _PATH.fullmatch(name):
            raise UsageError(f"has {len(kinds)} tensors {name[:60]!r}, expected one; {AGAIN}")
        payload = configs[kinds[0]].config[name]
        key = (kinds[0], payload.model_dump_json())
        if key not in read:
            member = f"{_FOLDERS[kinds[0]]}/{payload.path_name}"
            if member not in stored and not payload.use_pickle:
                stored[member] = archive.read(member)
            read[key] = _as_tensor(stored.get(member), payload, name)
        places[place], weights[name] = name, read[key]
    return places, weights


def _as_tensor(data: bytearray | None, payload: Payload, name: str) -> Tensor:
    """Return the tensor that a payload says its bytes are; None if they are a pickle."""
    meta = payload.tensor_meta
    if data is None or payload.use_pickle or meta is None:
        raise UsageError(
            f"has {name!r} as a pickle, which could run code; turn it into a plain tensor before "
            "torch.export"
        )
    if (dtype := DTYPES.get(meta.dtype)) is None:
        raise UsageError(f"has {name!r} of dtype number {meta.dtype}, kdcache knows {[*DTYPES]}")
    sizes, strides = _numbers(meta.sizes, name), _numbers(meta.strides, name)
    (offset,) = _numbers([meta.storage_offset], name)
    count = math.prod(sizes)
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=False))
    held = len(data) // dtype.itemsize
    if len(sizes) != len(strides) or count > held or (count and reach >= held):
        raise UsageError(f"has {name!r} of shape {sizes} in {len(data)} B, {AGAIN}")
    try:
        numbers = torch.frombuffer(data, dtype=dtype, count=held) if held else torch.empty(0)
        tensor = numbers.to(dtype).as_strided(sizes, strides, offset if count else 0)
    except RuntimeError as error:
        raise UsageError(f"has {name!r} of shape {sizes}: {error}") from None
    return nn.Parameter(tensor, requires_grad=False) if payload.is_param else tensor


def _numbers(extents: list[Extent], name: str) -> list[int]:
    found = [extent.value for extent in extents if extent.kind == "as_int" and extent.value >= 0]
    if len(found) != len(extents):
        raise UsageError(f"has {name!r} of a shape that is not fixed; {AGAIN}")
    return found


def _register(root: nn.Module, path: str, tensor: Tensor) -> tuple[nn.Module, str]:
    """Keep a tensor in the module that its path names; return that module, and the last name."""
    *parents, last = path.split(".")
    owner = root
    try:
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor)
    except KeyError:
        raise UsageError(f"has weights named {path[:60]!r}, which no module can have") from None
    return owner, last
