"""A frozen, fingerprinted network with its preprocessing."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.identity import digest
from kdcache.models.checks import settle
from kdcache.models.running import NoMemoryError, open_device, run_network
from kdcache.models.source import UNKNOWN, Inputs, Takes, Triple
from kdcache.models.specs import open_model

Precision = Literal["float32", "bfloat16", "float16"]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What follows uint8 pixels: division by 255, minus mean, over std; per RGB channel."""

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise UsageError(f"{self}: expected finite numbers, std above 0")

    def __str__(self) -> str:
        return f"mean {self.mean}, std {self.std}"

    def __call__(self, pixels_N3HW: Tensor) -> Tensor:
        """Return uint8 pixels normalised, float32, on their device."""
        count, channels, height, width = pixels_N3HW.shape
        mean, std = (  # a tensor made on a device would be waited for
            torch.tensor(triple).to(pixels_N3HW.device, non_blocking=True).repeat(width)
            for triple in (self.mean, self.std)
        )
        # Rows of pixels, since loops over three channels take twice as long on a CPU; in place,
        # since each fresh copy takes as long as the arithmetic.
        rows = pixels_N3HW.permute(0, 2, 3, 1).reshape(count, height, width * channels)
        normalised = rows.float().mul_(1 / (255 * std)).sub_(mean / std)
        return normalised.view(count, height, width, channels).permute(0, 3, 1, 2)


IMAGENET = Preprocessing()


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network in evaluation mode; calling it changes nothing.

    spec: its name. weights_id: sha256 of its weights. takes: whether the network is given
    normalised images, or pixels that it normalises itself, of which preprocessing then only tells.
    compiled: whether torch compiles the network when it is first called. inputs, classes, licence:
    what its source knows. parts: what names it beside weights, preprocessing and precision.
    warnings: sentences for people.
    """

    network: nn.Module
    spec: str
    weights_id: str
    preprocessing: Preprocessing
    precision: Precision
    device: torch.device
    compiled: bool = False
    takes: Takes = "images"
    inputs: Inputs = UNKNOWN
    classes: tuple[str, ...] | None = None
    licence: str | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, str]:
        """Return what decides the last bits of logits beside the description."""
        backends = torch.backends
        return {
            "compiled": str(self.compiled).lower(),
            "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "threads": str(torch.get_num_threads()),
            **(
                {
                    "cudnn_benchmark": str(backends.cudnn.benchmark).lower(),
                    "cudnn_tf32": str(backends.cudnn.allow_tf32).lower(),
                }
                if self.device.type == "cuda"
                else {}
            ),
        }

    @property
    def description(self) -> dict[str, Any]:
        """Return what a cache keeps of the teacher; id is its fingerprint."""
        parts = {
            "weights": self.weights_id,
            "mean": self.preprocessing.mean,
            "std": self.preprocessing.std,
            "precision": self.precision,
            **self.parts,
        }
        return {"id": digest(parts), "spec": self.spec, **parts}

    @torch.inference_mode()
    def __call__(self, pixels_N3HW: Tensor) -> Tensor:
        """Return logits (N, C), float32, of uint8 pixels.

        Raises:
            UsageError: the network fails, or gives something else than logits (N, C).
        """
        images = pixels_N3HW.to(self.device, non_blocking=True)
        if self.takes == "images":
            images = self.preprocessing(images)
        images = images.contiguous(memory_format=torch.channels_last)
        half = self.precision != "float32"
        dtype = getattr(torch, self.precision) if half else None
        with torch.autocast(self.device.type, dtype=dtype, enabled=half):
            logits_NC = run_network(
                self.network, images, name=f"teacher {self.spec}", num_classes=None
            )
        return logits_NC.float()

    def num_classes(self, size: int) -> int:
        """Return the number of classes, read off one black image of the given side.

        Raises:
            UsageError: the network does not take this size, or has fewer than two classes.
        """
        try:
            classes = self(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
        except NoMemoryError:
            raise
        except UsageError as error:
            if (other := self.inputs.other_size(size)) is None:
                raise
            raise UsageError(f"{error}; it was {other}") from error
        if classes < 2:
            raise UsageError(f"teacher {self.spec}: has {classes} class, distillation needs two")
        return classes


def weights_digest(network: nn.Module, *, named: bool = True) -> str:
    """Return the sha256 of a network's weights: names, dtypes, shapes and bytes, by name.

    named: whether names count. Libraries rename weights between their versions; where something
    else says what they are for, the digest is of those of the tensors, in their order.
    """
    state = sorted(network.state_dict().items())
    if not named:
        return digest(sorted(_tensors_digest([("", tensor)]) for _, tensor in state))
    return _tensors_digest(state)


def _tensors_digest(state: Iterable[tuple[str, Tensor]]) -> str:
    total = hashlib.sha256()
    for name, tensor in state:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(plain.view(torch.uint8).numpy().data)
    return total.hexdigest()


def load_teacher(
    spec: str,
    weights: Path | None,
    *,
    num_classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    usual: Preprocessing = IMAGENET,
    precision: Precision = "float32",
    device: str = "cpu",
) -> Teacher:
    """Return the teacher that a spec, and a weights file if it names none, make.

    num_classes: given to networks whose weights come from a file of one's own. preprocessing: None
    takes what the source says or, where it says nothing, the usual.

    Raises:
        UsageError: the spec or the weights do not serve or are missing; the device is not there.
    """
    model = open_model(spec, weights, num_classes=num_classes)
    name = f"teacher {spec}"
    if not model.trained:
        raise UsageError(
            f"{name}: without weights it knows nothing; give a weights file, as {model.name}@FILE"
        )
    warnings = [*settle(model.network, name)]
    said = Preprocessing(model.inputs.mean or usual.mean, model.inputs.std or usual.std)
    if preprocessing is not None and model.takes == "pixels":
        raise UsageError(f"{name}: normalises pixels itself; leave --mean and --std out")
    guessed = model.inputs.mean is None and model.takes == "images"
    if guessed and preprocessing is None and model.graph is not None:
        warnings.append(
            f"{name}: does not say how pixels are normalised, {said} is taken; give --mean and "
            "--std if it is another"
        )
    if preprocessing not in (None, said) and model.inputs.mean is not None:
        warnings.append(f"{name}: its source says {said}, this run takes {preprocessing}")
    place = open_device(device)
    model.network.to(place).to(memory_format=torch.channels_last)
    return Teacher(
        network=model.network,
        spec=model.name,
        weights_id=weights_digest(model.network, named=model.graph is None),
        preprocessing=preprocessing or said,
        precision=precision,
        device=place,
        takes=model.takes,
        inputs=model.inputs,
        classes=model.classes,
        licence=model.licence,
        parts={} if model.graph is None else {"graph": model.graph},
        warnings=tuple(warnings),
    )
