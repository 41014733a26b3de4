"""Logits like those of an ImageNet teacher: the reference distribution for measuring encodings.

Classes are unit vectors in groups, which are in families. A row is a view: its class, more or less
of it, a few things beside it, and noise. A logit is a similarity, a bias of its class and a
Student-t error; one scale, found by bisection, gives the mean largest probability that is asked
for. No real teacher was used: the constants were chosen so that "ce" has about 7% of its mass
outside the ten largest, and topk:32 loses 0.8% of the gradient at T = 1, 2.7% at T = 2.

    python -m pipelines.bench.logits     prints what each kind is like
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_ENTRIES = 2**24  # rows of 1,000 classes up to 16,777, then the first ones
CHUNK_ROWS = 256  # drawn at once, which bounds memory
NUM_BESIDE = 6


@dataclass(frozen=True)
class Kind:
    """A teacher.

    confidence: mean of the largest probability, without smoothing. smoothing: mass that labels
    spread over all classes. width: dimensions of the vectors.
    """

    num_classes: int
    confidence: float
    smoothing: float = 0.0
    num_families: int = 12
    width: int = 160


KINDS = {
    "ce": Kind(1000, 0.69),
    "smoothed": Kind(1000, 0.85, smoothing=0.1),
    "flat": Kind(1000, 0.39),
    "ce21k": Kind(21_841, 0.44, num_families=60, width=320),
}


def simulate_logits(kind: str, *, num_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Return logits (num_rows, classes) of a kind, fixed by the seed."""
    chosen = KINDS[kind]
    rng = np.random.default_rng(seed)
    vectors_CW = _class_vectors(rng, chosen)
    bias_C = (0.02 * rng.standard_normal(chosen.num_classes)).astype(np.float32)
    logits_NC = np.empty((num_rows, chosen.num_classes), np.float32)
    for start in range(0, num_rows, CHUNK_ROWS):
        out_NC = logits_NC[start : start + CHUNK_ROWS]
        out_NC[:] = _views(rng, vectors_CW, num_rows=len(out_NC)) @ vectors_CW.T + bias_C
        out_NC += 0.027 * rng.standard_t(6, out_NC.shape)
    rows = CALIBRATION_ENTRIES // chosen.num_classes
    logits_NC *= _scale(logits_NC[:rows], chosen.confidence)
    if chosen.smoothing:
        for start in range(0, num_rows, CHUNK_ROWS):
            _smooth(rng, logits_NC[start : start + CHUNK_ROWS], chosen.smoothing)
    return logits_NC


def log_softmax(logits_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities (N, C)."""
    below_NC: NDArray[np.float32] = logits_NC - logits_NC.max(1, keepdims=True)
    below_NC -= np.log(np.exp(below_NC).sum(1, keepdims=True))
    return below_NC


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32)


def _class_vectors(rng: np.random.Generator, kind: Kind) -> NDArray[np.float32]:
    """Return unit vectors (C, W): a quarter family, half group, a quarter the class's own."""
    num_groups = kind.num_classes // 10
    families = _unit(rng.standard_normal((kind.num_families, kind.width)))
    groups = _unit(rng.standard_normal((num_groups, kind.width)))
    own = _unit(rng.standard_normal((kind.num_classes, kind.width)))
    group_C = rng.integers(0, num_groups, kind.num_classes)
    family_C = rng.integers(0, kind.num_families, num_groups)[group_C]
    return _unit(0.5 * families[family_C] + np.sqrt(0.5) * groups[group_C] + 0.5 * own)


def _views(
    rng: np.random.Generator, vectors_CW: NDArray[np.float32], *, num_rows: int
) -> NDArray[np.float32]:
    """Return what is seen in each view (N, W)."""
    num_classes, width = vectors_CW.shape
    area_N = rng.uniform(0.08, 1.0, num_rows)  # the crop's share of the image
    strength_N = rng.normal(1.0, 0.18, num_rows).clip(0.35, 1.5)
    seen_N = (area_N**0.2 + 0.06 * rng.standard_normal(num_rows)).clip(0.2, 1.2)
    seen_N[rng.random(num_rows) < 0.06] = 0.15  # the crop misses it
    own_NW = (strength_N * seen_N)[:, None] * vectors_CW[rng.integers(0, num_classes, num_rows)]
    beside_NB = rng.integers(0, num_classes, (num_rows, NUM_BESIDE))
    share_NB = rng.exponential(0.18, beside_NB.shape)
    share_NB *= rng.random(beside_NB.shape) < 0.5 * (0.4 + 0.6 * area_N)[:, None]
    beside_NW = np.einsum("nb,nbw->nw", share_NB, vectors_CW[beside_NB])
    noise_N = 0.5 + 0.2 * (1 - area_N)
    noise_NW = (noise_N / np.sqrt(width))[:, None] * rng.standard_normal((num_rows, width))
    seen_NW: NDArray[np.float64] = own_NW + beside_NW + noise_NW
    return seen_NW.astype(np.float32)


def _scale(logits_NC: NDArray[np.float32], confidence: float) -> float:
    """Return the factor that gives logits a mean largest probability."""
    low, high = 0.0, 9.0  # of the logarithm
    for _ in range(20):
        middle = (low + high) / 2
        found = float(np.exp(log_softmax(np.exp(middle) * logits_NC).max(1)).mean())
        low, high = (middle, high) if found < confidence else (low, middle)
    return float(np.exp(low))


def _smooth(rng: np.random.Generator, logits_NC: NDArray[np.float32], smoothing: float) -> None:
    """Mix a nearly even floor of that mass into the distributions of logits, in place."""
    num_classes = logits_NC.shape[1]
    floor_NC = np.log(smoothing / num_classes) + 0.5 * rng.standard_normal(logits_NC.shape) - 0.125
    logits_NC[:] = np.logaddexp(np.log1p(-smoothing) + log_softmax(logits_NC), floor_NC)


def outside(logits_NC: NDArray[np.float32], k: int) -> float:
    """Return the mean probability outside the k largest classes."""
    probs_NC = np.exp(log_softmax(logits_NC))
    return float(1 - np.partition(probs_NC, -k, axis=1)[:, -k:].sum(1).mean())


if __name__ == "__main__":
    for name in KINDS:
        sample = simulate_logits(name, num_rows=2048)
        masses = ", ".join(f"{outside(sample, k):.4f} outside {k}" for k in (5, 10, 32, 100))
        print(f"{name}: {1 - outside(sample, 1):.3f} in the largest, {masses}")
