"""Names to networks: "SOURCE:NAME", and "@WEIGHTS" after it.

    torchvision:resnet50@IMAGENET1K_V2     an entry of the model's weights, or DEFAULT
    torchvision:resnet50@FILE              weights of a file
    timm:resnet50.a1_in1k                  a tag, whose weights come from the hub
    timm:resnet50@FILE
    hf:FOLDER                              an image classifier that save_pretrained wrote
    hf:OWNER/NAME@REVISION                 one of the hub; the revision may be left out
    pt2:FILE, onnx:FILE                    programs, which hold their network
    package.module:factory@FILE            your own code

The same names stand for students, which start with fresh weights. Nothing read from a cache is ever
given to this module.
"""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from kdcache.errors import UsageError
from kdcache.models.from_factory import make_by_factory, open_factory
from kdcache.models.from_hf import make_hf, open_hf
from kdcache.models.from_timm import make_timm, open_timm
from kdcache.models.from_torchvision import make_torchvision, open_torchvision
from kdcache.models.notes import Notes
from kdcache.models.source import Model
from kdcache.models.weights import weights_notes

SOURCES = ("torchvision", "timm", "hf", "pt2", "onnx")
PROGRAMS = ("pt2", "onnx")
EXPECTED = (
    "expected torchvision:NAME, timm:NAME, hf:FOLDER, pt2:FILE, onnx:FILE or package.module:factory"
)


@dataclass(frozen=True)
class Spec:
    """A name in its parts. source: one of SOURCES, or a Python module. weights: after "@"."""

    source: str
    name: str
    weights: str | None = None


def parse_spec(text: str) -> Spec:
    """Return a name in its parts.

    Names of folders and files may hold "@": an existing folder of hf: is taken whole, then its
    last "@" divides; pt2: and onnx: name nothing but a file.

    Raises:
        UsageError: the text is no such name.
    """
    source, colon, rest = text.partition(":")
    if not colon or not source or not rest:
        near = difflib.get_close_matches(text, SOURCES, n=1)
        hint = f"; did you mean {near[0]}:…?" if near else ""
        raise UsageError(f"model {text!r}: {EXPECTED}{hint}")
    if source in PROGRAMS or (source == "hf" and Path(rest).is_dir()):
        return Spec(source, rest)
    name, at, weights = rest.rpartition("@") if source == "hf" else rest.partition("@")
    if not at:
        return Spec(source, rest)
    if not name or not weights:
        raise UsageError(f"model {text!r}: expected a name before '@', and weights after it")
    return Spec(source, name, weights)


def open_model(text: str, weights: Path | None = None, *, num_classes: int | None = None) -> Model:
    """Return the model that a spec names, with its weights and what is known of both.

    weights: a file, the same as "@FILE". num_classes: given to the network where its weights are a
    file's or none; what comes with classes of its own keeps them.

    Raises:
        UsageError: the spec or the weights do not serve; says what does.
    """
    spec = parse_spec(text)
    if weights is not None and spec.weights is not None:
        raise UsageError(
            f"model {text!r}: names weights, and --weights {weights} names others; leave one out"
        )
    if weights is not None and spec.source in PROGRAMS:
        raise UsageError(f"model {text!r}: holds its own weights; leave --weights out")
    if spec.source == "pt2":
        from kdcache.models.from_pt2 import open_pt2

        return open_pt2(Path(spec.name))
    if spec.source == "onnx":
        from kdcache.models.from_onnx import open_onnx

        return open_onnx(Path(spec.name))
    named = spec.weights if weights is None else weights
    model = _open(spec, named, num_classes=num_classes)
    if named is None or not (file := Path(named)).is_file():
        return model
    noted = weights_notes(file, Notes)  # of these very weights: before what is known of the network
    inputs = model.inputs
    size, mean, std = noted.size or inputs.size, noted.mean or inputs.mean, noted.std or inputs.std
    return replace(
        model,
        inputs=replace(inputs, size=size, mean=mean, std=std),
        classes=noted.classes or model.classes,
    )


def _open(spec: Spec, named: str | Path | None, *, num_classes: int | None) -> Model:
    if spec.source == "torchvision":
        return open_torchvision(spec.name, named, num_classes=num_classes)
    if spec.source == "hf":
        return open_hf(spec.name, named, num_classes=num_classes)
    file = None if named is None else Path(named)
    if spec.source == "timm":
        return open_timm(spec.name, file, num_classes=num_classes)
    hint = _hint(spec.source)
    return open_factory(spec.source, spec.name, file, num_classes=num_classes, hint=hint)


def build_network(text: str, *, num_classes: int | None) -> nn.Module:
    """Return the network that a spec names, with fresh weights, as a student has.

    num_classes: given to the model or factory where it takes it; None leaves its own default.

    Raises:
        UsageError: the spec names nothing, or its factory fails, or it is a program.
    """
    spec = parse_spec(text)
    if spec.source in PROGRAMS:
        raise UsageError(
            f"model {text!r}: is a fixed program; a student needs a network that can be trained: "
            "torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory"
        )
    if spec.weights is not None:
        raise UsageError(
            f"model {text!r}: names weights, but a student starts with fresh ones; leave out "
            f"'@{spec.weights}', and give first weights with --init"
        )
    if spec.source == "torchvision":
        return make_torchvision(spec.name, num_classes=num_classes)
    if spec.source == "timm":
        return make_timm(spec.name, num_classes=num_classes)
    if spec.source == "hf":
        return make_hf(spec.name, num_classes=num_classes)
    hint = _hint(spec.source)
    return make_by_factory(spec.source, spec.name, num_classes=num_classes, hint=hint)


def absolute_spec(text: str) -> str:
    """Return a spec that means the same in another folder.

    Raises:
        UsageError: the text is no spec.
    """
    spec = parse_spec(text)
    if spec.source in PROGRAMS or (spec.source == "hf" and Path(spec.name).is_dir()):
        return f"{spec.source}:{Path(spec.name).absolute()}"
    if spec.source != "hf" and spec.weights is not None and Path(spec.weights).exists():
        return f"{spec.source}:{spec.name}@{Path(spec.weights).absolute()}"
    return text


def _hint(module: str) -> str:
    """Return the end of a message on a module that is not there, if a source is spelt like it."""
    near = difflib.get_close_matches(module.lower(), SOURCES, n=1)
    return f"; did you mean {near[0]}:…?" if near else ""
