"""Networks at work: the device they run on, and the logits in what they give.

N images, C classes, H x W pixels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdcache.data.workers import worker_died
from kdcache.errors import KdcacheError, UsageError
from kdcache.processes import peer_died


class NoMemoryError(UsageError):
    """A network does not fit into memory with that many images."""


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


def run_network(
    network: nn.Module, images_N3HW: Tensor, *, name: str, num_classes: int | None
) -> Tensor:
    """Return a network's logits (N, C) of normalised images, in the dtype that it gives.

    num_classes: what C must be; None takes any.

    Raises:
        NoMemoryError: the device's memory does not hold so many images.
        UsageError: the network fails, or gives something else than floating logits.
    """
    count = len(images_N3HW)
    try:
        output = network(images_N3HW)
    except torch.OutOfMemoryError as error:
        raise NoMemoryError(
            f"{name}: out of memory on {count} images; lower --batch-size"
        ) from error
    except KdcacheError:  # of a teacher that is made of teachers
        raise
    except (Exception, SystemExit) as error:  # the network is the user's own code
        if worker_died(error) or peer_died(error):
            raise
        tall, wide = images_N3HW.shape[2:]
        raise UsageError(
            f"{name}: fails on {tall} x {wide} pixels, the recipe's size, {count} images at once: "
            f"{error!r}"
        ) from error
    logits_NC = logits_of(output)
    found = type(output).__name__
    if logits_NC is not None:
        kind = "" if logits_NC.is_floating_point() else f"{logits_NC.dtype} "
        found = f"{kind}{tuple(logits_NC.shape)}"
        fits = logits_NC.ndim == 2 and num_classes in (None, logits_NC.shape[1])
        if fits and not kind and len(logits_NC) == count:
            return logits_NC
    classes = "classes" if num_classes is None else f"{num_classes} classes"
    raise UsageError(
        f"{name}: gave {found} for {count} images, expected a tensor of logits (images, {classes})"
    )


def logits_of(output: object) -> Tensor | None:
    """Return the logits in what a network gives; None where nothing tells them from the rest.

    They are the output itself, what a mapping calls "logits" (as the outputs of transformers do),
    its only floating (N, C) tensor, or such a tensor as the first of a tuple or list. A tensor
    that is the output, or is called "logits", is returned whatever its shape.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if "logits" in output:
            named = output["logits"]
            return named if isinstance(named, Tensor) else None
        fitting = [value for value in output.values() if _looks_like_logits(value)]
        return fitting[0] if len(fitting) == 1 else None
    if isinstance(output, tuple | list) and output and _looks_like_logits(output[0]):
        first: Tensor = output[0]
        return first
    return None


def _looks_like_logits(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
