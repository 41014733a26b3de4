"""Factories of teachers of every kind: of many classes, of odd outputs, unsteady ones."""

from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny


class _Wrapped(nn.Module):
    """The exact teacher; `give` makes what is returned of its logits."""

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.inner = tiny.Exact(num_classes, seed)

    def forward(self, images_N3HW: Tensor) -> Any:
        return self.give(self.inner(images_N3HW))

    def give(self, logits_NC: Tensor) -> Any:
        return logits_NC


class _Half(_Wrapped):
    def give(self, logits_NC: Tensor) -> Any:
        return logits_NC.half()


class _Brain(_Wrapped):
    def give(self, logits_NC: Tensor) -> Any:
        return logits_NC.bfloat16()


class _Dict(_Wrapped):
    def give(self, logits_NC: Tensor) -> Any:
        return {"logits": logits_NC, "features": logits_NC[:, :2]}


class _Tuple(_Wrapped):
    def give(self, logits_NC: Tensor) -> Any:
        return logits_NC, logits_NC.mean()


class _Noisy(_Wrapped):
    def give(self, logits_NC: Tensor) -> Any:
        return logits_NC + torch.rand_like(logits_NC)


class _OfBatch(_Wrapped):
    def give(self, logits_NC: Tensor) -> Any:
        return logits_NC - logits_NC.mean(0)


class _Stuck(_Wrapped):
    def train(self, mode: bool = True) -> "_Stuck":
        return self


class _BatchNorm(nn.Module):
    def __init__(self, num_classes: int, *, tracking: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=tracking)
        self.inner = tiny.Exact(num_classes, 0)

    def forward(self, images_N3HW: Tensor) -> Any:
        return self.inner(self.norm(images_N3HW))


def plain(num_classes: int = 5) -> nn.Module:
    return _Wrapped(num_classes)


def half(num_classes: int = 5) -> nn.Module:
    return _Half(num_classes)


def brain(num_classes: int = 5) -> nn.Module:
    return _Brain(num_classes)


def gives_dict(num_classes: int = 5) -> nn.Module:
    return _Dict(num_classes)


def gives_tuple(num_classes: int = 5) -> nn.Module:
    return _Tuple(num_classes)


def noisy(num_classes: int = 5) -> nn.Module:
    return _Noisy(num_classes)


def of_batch(num_classes: int = 5) -> nn.Module:
    return _OfBatch(num_classes)


def stuck(num_classes: int = 5) -> nn.Module:
    return _Stuck(num_classes)


def untracked(num_classes: int = 5) -> nn.Module:
    return _BatchNorm(num_classes, tracking=False)


def untrained(num_classes: int = 5) -> nn.Module:
    return _BatchNorm(num_classes, tracking=True)
