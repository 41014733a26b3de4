"""Whether a network computes one thing only: each image's logits, whatever else is in its batch."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcache.errors import UsageError


def settle(network: nn.Module, name: str) -> tuple[str, ...]:
    """Put a network into evaluation mode, frozen; return warnings, each a sentence.

    name: of the network, for messages.

    Raises:
        UsageError: part of it stays in training mode, or normalises by the statistics of its
            batch, so that the logits of an image would depend on the images next to it.
    """
    network.eval().requires_grad_(False)
    for place, module in network.named_modules():
        if module.training:
            raise UsageError(
                f"{name}: {_called(place, module)} stays in training mode after eval(); let its "
                "train() and eval() set self.training"
            )
        if isinstance(module, _BatchNorm) and (
            module.running_mean is None or module.running_var is None
        ):
            raise UsageError(
                f"{name}: {_called(place, module)} keeps no running statistics and would use those "
                "of each batch, so that a target would depend on its batch; build it with "
                "track_running_stats=True and load trained weights"
            )
    if _untrained(network):
        return (
            f"{name}: its batch-norm statistics are those of an untrained network (mean 0, "
            "variance 1); were its weights loaded?",
        )
    return ()


def _called(place: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{place} ({kind})" if place else kind


def _untrained(network: nn.Module) -> bool:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return bool(norms) and all(
        norm.running_mean is not None
        and norm.running_var is not None
        and not bool(norm.running_mean.any())
        and bool((norm.running_var == 1).all())
        for norm in norms
    )
