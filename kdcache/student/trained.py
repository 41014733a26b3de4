"""A trained student, from its weights and what is known of them.

A weights file may come from anybody, and the spec in it is text: networks of torchvision and timm
are looked up by it; code of one's own is imported, and a folder or hub read, only when the user
names it.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from kdcache.errors import UsageError
from kdcache.models.source import Triple
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing
from kdcache.models.weights import first_problem, load_weights, weights_notes
from kdcache.student.folder import WEIGHTS

# Bounds of what any network takes, since the numbers in a file decide what is allocated.
Classes = Annotated[int, Field(ge=2, le=2**20)]
Size = Annotated[int, Field(ge=1, le=2**14)]


_SPEC = r"[\w.-]+:\w+|timm:[\w.-]+|hf:.+"
_LOOKED_UP = r"torchvision:\w+|timm:[\w.-]+"  # without code, folder or hub


def _checked_spec(spec: str) -> str:
    """Return a spec that may stand in messages, and, quoted, in a command that somebody copies."""
    if not re.fullmatch(_SPEC, spec) or not spec.isprintable():
        raise ValueError(
            "expected torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory"
        )
    return spec


class Facts(BaseModel):
    """What a weights file, or its user, says of a student; None says nothing.

    student: spec of the network. size: side of its images, in pixels. mean, std: of the pixels in
    0 to 1, by channel. classes: names, in order.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    student: Annotated[str, AfterValidator(_checked_spec)] | None = None
    num_classes: Classes | None = None
    size: Size | None = None
    mean: Triple | None = None
    std: Triple | None = None
    classes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _all_are_named(self) -> Self:
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} names of {self.num_classes} classes")
        return self


def make_facts(**values: Any) -> Facts:
    """Return what the user says, checked.

    Raises:
        UsageError: something is out of range; names it.
    """
    try:
        return Facts(**values)
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None


@dataclass(frozen=True, eq=False)
class Trained:
    """A student in evaluation mode, float32, on the CPU.

    noted: the spec in its weights file; None if there is none. classes: names, if it has them.
    weights: that file; None if it was not read from any.
    """

    network: nn.Module
    spec: str
    noted: str | None
    num_classes: int
    size: int
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    weights: Path | None = None


def load_trained(path: Path, given: Facts, *, fallback: Facts | None = None) -> Trained:
    """Return the student of a run's folder or of a weights file.

    given: what the user says, for what the file does not. size and spec may differ from the file's:
    images of another size may serve, and modules move. fallback: for what neither says.

    Raises:
        UsageError: the weights are missing, cannot be read, do not fit or are not known enough.
        CorruptError: what the file says of itself cannot be read.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if path.is_dir() and not weights.exists():
        raise UsageError(f"{path}: no {WEIGHTS} there; finish the run with kdcache train --resume")
    if not weights.exists():
        raise UsageError(f"{weights}: no such weights file; give a run's folder, or weights in it")
    noted = weights_notes(weights, Facts)
    for name in ("num_classes", "mean", "std"):
        ours, theirs = getattr(given, name), getattr(noted, name)
        if None not in (ours, theirs) and ours != theirs:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{weights}: trained with {option} {theirs}, not {ours}; leave it out")
    if given.student is None and noted.student and not re.fullmatch(_LOOKED_UP, noted.student):
        read = noted.student.startswith("hf:")
        made, used = ("described by", "is read") if read else ("made by code,", "runs")
        raise UsageError(
            f"{weights}: its network is {made} {noted.student}, which {used} only when you name "
            f"it; repeat the command with --student {shlex.quote(noted.student)}"
        )
    known: dict[str, Any] = {}
    for facts in (fallback or Facts(), noted, given):
        known |= facts.model_dump(exclude_none=True)
    absent = [
        f"--{name.replace('_', '-')}"
        for name in Facts.model_fields
        if name not in (*known, "classes")
    ]
    if absent:
        raise UsageError(f"{weights}: does not say all of its student; add {', '.join(absent)}")
    network = build_network(known["student"], num_classes=known["num_classes"])
    load_weights(network, weights)
    network.float().eval().requires_grad_(False)
    preprocessing = Preprocessing(known["mean"], known["std"])
    return Trained(
        network,
        known["student"],
        noted.student,
        known["num_classes"],
        known["size"],
        preprocessing,
        noted.classes,
        weights,
    )
