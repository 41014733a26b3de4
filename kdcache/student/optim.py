"""Optimiser and schedule: AdamW, cosine with warm-up; torch's own."""

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from kdcache.errors import UsageError
from kdcache.student.config import TrainConfig


def make_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """Return AdamW; weight decay spares vectors: biases and normalisation.

    Raises:
        UsageError: the network has nothing to train.
    """
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if not matrices and not vectors:
        raise UsageError(f"student {config.student}: has no parameters to train")
    return AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


def make_schedule(optimizer: Optimizer, config: TrainConfig, *, num_steps: int) -> LRScheduler:
    """Return a linear warm-up, then a cosine to zero, to be stepped after each batch."""
    warmup = min(round(config.warmup * num_steps), num_steps - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=max(num_steps - warmup, 1))
    if warmup == 0:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
