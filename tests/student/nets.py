"""Networks for the tests, named in specs as `tests.student.nets:NAME`."""

import os

import torch
from torch import Tensor, nn


def small(num_classes: int) -> nn.Module:
    """Return a network with all that a resume must restore: weights, buffers, random numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(72, num_classes),
    )


def large(num_classes: int) -> nn.Module:
    """Return a network whose state is some megabytes."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 1500), nn.Linear(1500, num_classes)
    )


def wide(num_classes: int) -> nn.Module:
    """Return a network with one class too many."""
    return small(num_classes + 1)


def flat(num_classes: int) -> nn.Module:
    """Return a network whose output is no table of logits."""
    return nn.Flatten(0)


def only_16(num_classes: int) -> nn.Module:
    """Return a network for images of 16 x 16 alone."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def failing(num_classes: int) -> nn.Module:
    """Return nothing: a factory that fails."""
    raise RuntimeError("no such luck")


class Diverging(nn.Module):
    """Gives NaN from some training step on, counted across resumes."""

    def __init__(self, num_classes: int, *, after: int) -> None:
        super().__init__()
        self.inner, self.after = small(num_classes), after
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, images_N3HW: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        logits: Tensor = self.inner(images_N3HW)
        return logits * (torch.nan if self.training and self.steps > self.after else 1)


def diverging(num_classes: int) -> nn.Module:
    """Return a network that gives NaN after six steps."""
    return Diverging(num_classes, after=6)


class NoNumbers(nn.Module):
    """Gives NaN for every other image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images_N3HW: Tensor) -> Tensor:
        logits = torch.zeros(len(images_N3HW), self.num_classes)
        logits[::2] = torch.nan
        return logits


def no_numbers(num_classes: int) -> nn.Module:
    """Return a network that gives NaN for every other image."""
    return NoNumbers(num_classes)


class Contrast(nn.Module):
    """Classes by the parts' colours less their mean, so that they differ between images."""

    def __init__(self, num_classes: int, *, noise: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        common, own = torch.randn(2, 12, num_classes, generator=generator)
        self.weight = nn.Parameter(8 * (common + noise * own), requires_grad=False)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        parts = nn.functional.adaptive_avg_pool2d(images_N3HW, 2).flatten(1)
        return (parts - parts.mean(1, keepdim=True)) @ self.weight


def contrast(num_classes: int) -> nn.Module:
    """Return a teacher whose classes differ from image to image."""
    return Contrast(num_classes)


def noisy(num_classes: int) -> nn.Module:
    """Return a student that agrees with the contrast teacher on some images."""
    return Contrast(num_classes, noise=1.0)


def plain(num_classes: int) -> nn.Module:
    """Return a network that treats each image alone: no batch statistics, no random numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(72, num_classes),
    )


class Leaving(nn.Module):
    """Ends its process in the fifth training step, if that is the second of several."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.inner, self.steps = plain(num_classes), 0

    def forward(self, images_N3HW: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps == 5 and os.environ.get("RANK") == "1":
            os._exit(9)
        logits: Tensor = self.inner(images_N3HW)
        return logits


def leaving(num_classes: int) -> nn.Module:
    """Return a network that ends the second process."""
    return Leaving(num_classes)
