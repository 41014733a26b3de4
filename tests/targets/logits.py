"""Logits for the tests: like those of an image classifier, and of every extreme."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

SCALES = (0.1, 1.0, 5.0, 20.0, 50.0)
LARGE = (21_841, 65_535, 65_536, 70_000)


def classifier_logits(
    num_rows: int, *, num_classes: int = 1000, confidence: float = 0.7, seed: int = 0
) -> Tensor:
    """Return float32 logits (N, C) whose mean largest probability is `confidence`.

    Classes are unit vectors in groups of ten; an image is its class, a share of a few others, and
    noise; a logit is a similarity and noise by Student's t, scaled by bisection.
    """
    draw, width = torch.Generator().manual_seed(seed), 160

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    groups = normal(-(-num_classes // 10), width).repeat_interleave(10, 0)[:num_classes]
    classes = torch.nn.functional.normalize(1.7 * groups + normal(num_classes, width))
    images = 0.5 / math.sqrt(width) * normal(num_rows, width)
    for share in (1.0, 0.35, 0.2, 0.1):
        chosen = torch.randint(num_classes, (num_rows,), generator=draw)
        images += share * (1 + 0.2 * normal(num_rows, 1)).clamp(min=0.35) * classes[chosen]
    spread = normal(6, num_rows, num_classes).square().mean(0).sqrt()
    logits = images @ classes.T + 0.025 * normal(num_rows, num_classes) / spread
    low, high = 0.1, 400.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        found = float((logits * middle).softmax(1).amax(1).mean())
        low, high = (middle, high) if found < confidence else (low, middle)
    return logits * low


def _random(num_rows: int, num_classes: int, scale: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_classes, generator=draw) * scale


def _tied(num_rows: int, num_classes: int, scale: float, seed: int) -> Tensor:
    return (_random(num_rows, num_classes, 1.0, seed).round() * scale).clamp(-3 * scale, scale)


def _one_hot(num_rows: int, num_classes: int, scale: float, seed: int) -> Tensor:
    logits = 0.01 * _random(num_rows, num_classes, 1.0, seed)
    logits[torch.arange(num_rows), torch.arange(num_rows) % num_classes] += 8 * scale
    return logits


def _shifted(num_rows: int, num_classes: int, scale: float, seed: int) -> Tensor:
    return _random(num_rows, num_classes, scale, seed) + 300


SHAPES = (_random, _tied, _one_hot, _shifted)

class_counts = st.integers(2, 40) | st.sampled_from((600, 1000)) | st.sampled_from(LARGE)


@st.composite
def some_logits(draw: st.DrawFn) -> Tensor:
    """Draw float32 logits (1 to 3, C), C from 2 to 70,000."""
    shape, scale = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(SCALES))
    return shape(draw(st.integers(1, 3)), draw(class_counts), scale, draw(st.integers(0, 10_000)))


@st.composite
def logits_and_k(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Draw logits (N, C) and a number of entries to keep, from 1 to C."""
    logits = draw(some_logits())
    num_classes = logits.shape[1]
    some = st.integers(1, num_classes) if num_classes <= 40 else st.sampled_from((1, 10, 50, 500))
    return logits, draw(some | st.just(num_classes) if num_classes <= 1000 else some)
