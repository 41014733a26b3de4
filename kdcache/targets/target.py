"""What encodings share: stored arrays, decoded targets, and the mass of classes not kept.

Letters: N rows, C classes, K kept entries.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TAIL_TEMPERATURES = (1.0, 2.0, 4.0)

Fields = dict[str, Tensor]
Compression = Literal[
    "lz4-bitshuffle", "zstd-bitshuffle", "zstd-shuffle", "zstd-shuffle-1mib", "zstd"
]
Layout = Literal["rows", "ragged", "counts"]


@dataclass(frozen=True)
class FieldSpec:
    """One stored array of an encoding.

    layout: "rows" is (tars, views, rows, width). "ragged" is (tars, views, rows x width): the
    entries of one row after the other, as many of each as the array of layout "counts" says.
    """

    name: str
    dtype: str
    width: int
    fill: float
    compression: Compression
    layout: Layout = "rows"


@dataclass(frozen=True, eq=False)
class SparseTarget:
    """The teacher's distribution over C classes at one temperature.

    indices_NK: int64 classes, or None when all classes are kept in order; C, with log-probability
    -inf, where a row keeps fewer than K.
    log_probs_NK: float32 log-probabilities of the kept classes, in nats.
    log_tail_N: float32 logarithm of the probability mass of all others; -inf when all are kept.
    """

    indices_NK: Tensor | None
    log_probs_NK: Tensor
    log_tail_N: Tensor

    def dense(self, num_classes: int) -> Tensor:
        """Return float32 log-probabilities (N, C), the tail spread evenly over classes not kept."""
        if self.indices_NK is None:
            return self.log_probs_NK
        others_N = (num_classes - (self.indices_NK < num_classes).sum(1)).clamp(min=1)
        spread = (self.log_tail_N - others_N.log())[:, None].expand(-1, num_classes + 1)
        return spread.scatter(1, self.indices_NK, self.log_probs_NK)[:, :num_classes]


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x <= 0."""
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def tail_log_odds(
    log_odds_N3: Tensor, below_NK: Tensor, *, others_N: Tensor, temperature: float
) -> Tensor:
    """Return the log-odds (N,) of a class that is not kept, at a temperature from 1 to 4.

    log_odds_N3: the same at temperatures 1, 2 and 4. below_NK: distances of kept entries below the
    largest, nats; inf for none. others_N: number of classes not kept.

    In between, the tail's mass is interpolated: the cubic in 1 / T through its logarithm, which at
    infinite temperature is that of the number of classes.
    """
    if temperature in TAIL_TEMPERATURES:
        return log_odds_N3[:, TAIL_TEMPERATURES.index(temperature)]
    # Unnormalised log mass of the tail, relative to the largest entry, at each stored 1 / T.
    masses = [
        log_odds + (-below_NK / t).logsumexp(1)
        for t, log_odds in zip(TAIL_TEMPERATURES, log_odds_N3.unbind(1), strict=True)
    ]
    masses.append(others_N.clamp(min=1).log())
    nodes = [1 / t for t in TAIL_TEMPERATURES] + [0.0]
    x = 1 / temperature
    mass = torch.zeros_like(masses[0])
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        mass += masses[i] * math.prod((x - other) / (node - other) for other in others)
    return mass - (-below_NK / temperature).logsumexp(1)
