"""Optimisers and schedules: torch's own, and SOAP and Shampoo of the extra `optim`.

Weight decay spares vectors and is multiplied by the learning rate, as in torch's AdamW. The code of
Beyer et al. 2022, arXiv:2106.05237 (big_vision), multiplies it by the schedule's factor alone: its
value, divided by its learning rate, is ours.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from kdcache.errors import UsageError
from kdcache.student.config import OptimizerName, ScheduleName, TrainConfig
from kdcache.student.layers import layers_of
from kdcache.student.muon import Muon, hidden_weights


def make_optimizers(network: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Return the optimisers of a step: one, or Muon and the AdamW of what Muon leaves.

    Groups stand by falling learning rate, matrices before vectors: biases and normalisation.
    With a layer decay, each layer has its own groups. Decay differs from AdamW's in that SGD's
    goes through its momentum, and SOAP's comes after the update and not in the first step, which
    takes none.

    Raises:
        UsageError: the network has nothing to train, or the extra is not installed.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        raise UsageError(f"student {config.student}: has no parameters to train")
    parts: list[tuple[OptimizerName, list[nn.Parameter]]] = [(config.optimizer, trained)]
    if config.optimizer == "muon":
        hidden = hidden_weights(network)
        parts = [
            ("muon", [p for p in trained if p in hidden]),
            ("adamw", [p for p in trained if p not in hidden]),
        ]
    rates = _rates(network, config)
    return [
        _make_optimizer(name, _groups(part, rates, weight_decay=config.weight_decay), config=config)
        for name, part in parts
        if part
    ]


def make_schedules(
    optimizers: Sequence[Optimizer], config: TrainConfig, *, num_steps: int
) -> list[LRScheduler]:
    """Return a schedule of each optimiser, to be stepped after each batch.

    A linear warm-up, then half a cosine to zero, a line to zero, or the full rate.
    """
    warmup = min(round(config.warmup * num_steps), num_steps - 1)
    falling = max(num_steps - warmup, 1)
    schedules: list[LRScheduler] = []
    for optimizer in optimizers:
        schedule = _make_schedule(config.schedule, optimizer, num_steps=falling)
        if warmup > 0:
            rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
            schedule = SequentialLR(optimizer, [rising, schedule], milestones=[warmup])
        schedules.append(schedule)
    return schedules


def _rates(network: nn.Module, config: TrainConfig) -> dict[nn.Parameter, float]:
    """Return the learning rate of each parameter: full in the last layer."""
    layers = layers_of(network)
    return {
        parameter: config.learning_rate * config.layer_decay ** (len(layers) - 1 - index)
        for index, layer in enumerate(layers)
        for parameter in layer
    }


def _groups(
    parameters: Iterable[nn.Parameter], rates: dict[nn.Parameter, float], *, weight_decay: float
) -> list[dict[str, Any]]:
    def key(parameter: nn.Parameter) -> tuple[float, bool]:
        return -rates[parameter], parameter.ndim <= 1

    return [
        {"params": list(group), "lr": -rate, "weight_decay": 0.0 if vectors else weight_decay}
        for (rate, vectors), group in groupby(sorted(parameters, key=key), key=key)
    ]


def _make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], *, config: TrainConfig
) -> Optimizer:
    rate, momentum = config.learning_rate, config.momentum
    if name == "adamw":
        return AdamW(groups, lr=rate)
    if name == "sgd":
        return SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
    if name == "muon":
        return Muon(groups, lr=rate, momentum=momentum)
    try:
        from pytorch_optimizer import SOAP

        from kdcache.student.shampoo import Shampoo
    except ImportError as error:
        raise UsageError(
            f"optimizer {name}: needs a package that is missing ({error}): "
            "pip install 'kdcache[optim]'"
        ) from error
    return SOAP(groups, lr=rate) if name == "soap" else Shampoo(groups, lr=rate)


def _make_schedule(name: ScheduleName, optimizer: Optimizer, *, num_steps: int) -> LRScheduler:
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=num_steps)
    if name == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=num_steps)
    return ConstantLR(optimizer, factor=1.0)
