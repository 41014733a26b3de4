"""Logits to compact targets and back.

Two encodings. `topk:K` keeps the K largest log-probabilities, as u1 distances below the largest,
and the mass of the rest at three temperatures; `dense:f2` and `dense:u1` keep every class. A row
that could not be used holds the fill values. Letters: N rows, C classes, K kept entries.

Bounds of topk, for entries at most 32 nats below the largest (further ones are stored as 32): a
distance d is off by at most sqrt(d / 32) / 7.96 + 1.3e-4 nats, a tail's logarithm by 5e-4 of
itself + 3e-8. Of dense: a distance in f2 is off by at most 5e-4 of itself + 3e-8, in u1 by 1 / 509
of the row's range. Distances and logarithms beyond 65,504 nats are stored as 65,504.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import UsageError

RANGE_NATS = 32.0
MAX_HALF = 65504.0
TAIL_TEMPERATURES = (1.0, 2.0, 4.0)

Fields = dict[str, Tensor]
Compression = Literal["lz4-bitshuffle", "zstd-bitshuffle", "zstd-shuffle"]


@dataclass(frozen=True)
class FieldSpec:
    """One stored array of an encoding: (tars, views, rows, width)."""

    name: str
    dtype: str
    width: int
    fill: float
    compression: Compression


@dataclass(frozen=True, eq=False)
class SparseTarget:
    """The teacher's distribution over C classes at one temperature.

    indices_NK: int64 classes, or None when all classes are kept in order.
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
        others = max(num_classes - self.indices_NK.shape[1], 1)
        spread = (self.log_tail_N - math.log(others))[:, None].expand(-1, num_classes)
        return spread.scatter(1, self.indices_NK, self.log_probs_NK)


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x <= 0."""
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


@dataclass(frozen=True)
class TopK:
    """The k largest entries and the mass of the rest."""

    k: int

    def __str__(self) -> str:
        return f"topk:{self.k}"

    def specs(self, num_classes: int) -> tuple[FieldSpec, ...]:
        """Return the stored arrays."""
        index = ("u2", 0xFFFF) if num_classes <= 0xFFFF else ("u4", 0xFFFFFFFF)
        return (
            FieldSpec("indices", index[0], self.k, index[1], "lz4-bitshuffle"),
            FieldSpec("values", "u1", self.k, 255, "zstd-bitshuffle"),
            FieldSpec("tails", "f2", len(TAIL_TEMPERATURES), math.nan, "zstd-shuffle"),
        )

    def encode(self, logits_NC: Tensor) -> Fields:
        """Return indices (N, k) int64, values (N, k) uint8, tails (N, 3) float16."""
        log_probs_NC = logits_NC.float().log_softmax(1)
        kept_NK, indices_NK = log_probs_NC.topk(self.k, dim=1)
        below_NK = kept_NK[:, :1] - kept_NK
        values_NK = (255 * (below_NK / RANGE_NATS).sqrt()).round().clamp(max=255)
        tails = []
        for temperature in TAIL_TEMPERATURES:
            scaled_NC = (log_probs_NC / temperature).log_softmax(1)
            kept_N = scaled_NC.gather(1, indices_NK).logsumexp(1)
            rest_N = scaled_NC.scatter(1, indices_NK, -math.inf).logsumexp(1)
            # Close to 1, a sum of many classes is less exact than 1 less the few kept.
            tails.append(torch.where(kept_N < -math.log(2), _log1mexp(kept_N), rest_N))
        return {
            "indices": indices_NK,
            "values": values_NK.to(torch.uint8),
            "tails": torch.stack(tails, 1)
            .clamp(min=-MAX_HALF)
            .half(),  # finite: -inf would give NaN
        }

    def decode(self, fields: Fields, *, num_classes: int, temperature: float) -> SparseTarget:
        """Return the targets at a temperature from 1 to 4.

        Between the stored temperatures 1, 2 and 4 the tail's mass is interpolated: the cubic in 1 /
        T through its logarithm, which at infinite temperature is that of the number of classes.

        Raises:
            UsageError: the temperature is outside 1 to 4.
        """
        self.check_temperature(temperature)
        below_NK = RANGE_NATS * (fields["values"].float() / 255).square()
        log_tail_N = self._log_tail(fields["tails"].float(), below_NK, num_classes, temperature)
        kept_NK = (-below_NK / temperature).log_softmax(1) + _log1mexp(log_tail_N)[:, None]
        return SparseTarget(fields["indices"].long(), kept_NK, log_tail_N)

    def check_temperature(self, temperature: float) -> None:
        """Check that targets can be read at a temperature.

        Raises:
            UsageError: the temperature is outside 1 to 4.
        """
        if not TAIL_TEMPERATURES[0] <= temperature <= TAIL_TEMPERATURES[-1]:
            raise UsageError(
                f"temperature {temperature:g} with {self}: top-k caches serve 1 to 4; "
                "use a dense cache for others"
            )

    def _log_tail(
        self, tails_N3: Tensor, below_NK: Tensor, num_classes: int, temperature: float
    ) -> Tensor:
        if self.k == num_classes:
            return torch.full_like(tails_N3[:, 0], -math.inf)
        if temperature in TAIL_TEMPERATURES:
            return tails_N3[:, TAIL_TEMPERATURES.index(temperature)]
        # Unnormalised log mass of the tail, relative to the largest entry, at each stored 1 / T.
        masses = [
            tail - _log1mexp(tail) + (-below_NK / t).logsumexp(1)
            for t, tail in zip(TAIL_TEMPERATURES, tails_N3.unbind(1), strict=True)
        ]
        masses.append(torch.full_like(masses[0], math.log(num_classes - self.k)))
        nodes = [1 / t for t in TAIL_TEMPERATURES] + [0.0]
        x = 1 / temperature
        mass = torch.zeros_like(masses[0])
        for i, node in enumerate(nodes):
            others = [other for j, other in enumerate(nodes) if j != i]
            mass += masses[i] * math.prod((x - other) / (node - other) for other in others)
        return -torch.nn.functional.softplus((-below_NK / temperature).logsumexp(1) - mass)

    def usable(self, fields: Fields) -> Tensor:
        """Return which rows hold a target, bool (N,)."""
        return ~fields["tails"].isnan().any(1)


@dataclass(frozen=True)
class Dense:
    """Every class: distances below the largest logit as f2, or as u1 of each row's range."""

    dtype: Literal["f2", "u1"]

    def __str__(self) -> str:
        return f"dense:{self.dtype}"

    def specs(self, num_classes: int) -> tuple[FieldSpec, ...]:
        """Return the stored arrays."""
        if self.dtype == "f2":
            return (FieldSpec("logits", "f2", num_classes, math.nan, "zstd-shuffle"),)
        return (
            FieldSpec("codes", "u1", num_classes, 255, "zstd-bitshuffle"),
            FieldSpec("ranges", "f4", 1, math.nan, "zstd-shuffle"),
        )

    def encode(self, logits_NC: Tensor) -> Fields:
        """Return logits (N, C) float16, 0 for the largest; or codes (N, C) uint8, ranges (N, 1)."""
        below_NC = logits_NC.float().amax(1, keepdim=True) - logits_NC.float()
        if self.dtype == "f2":
            return {"logits": -below_NC.clamp(max=MAX_HALF).half()}
        ranges_N1 = below_NC.amax(1, keepdim=True)
        codes_NC = (255 * below_NC / ranges_N1.clamp(min=1e-30)).round()
        return {"codes": codes_NC.to(torch.uint8), "ranges": ranges_N1}

    def decode(self, fields: Fields, *, num_classes: int, temperature: float) -> SparseTarget:
        """Return the targets at any positive temperature."""
        self.check_temperature(temperature)
        if self.dtype == "f2":
            logits_NC = fields["logits"].float()
        else:
            logits_NC = fields["codes"].float() * (fields["ranges"] / -255)
        # In float32 a sum over many classes loses small terms beside a large one.
        log_probs_NC = (logits_NC / temperature).log_softmax(1, dtype=torch.float64).float()
        return SparseTarget(None, log_probs_NC, torch.full_like(log_probs_NC[:, 0], -math.inf))

    def check_temperature(self, temperature: float) -> None:
        """Check that targets can be read at a temperature.

        Raises:
            UsageError: the temperature is not positive.
        """
        if not temperature > 0:  # NaN, too
            raise UsageError(f"temperature {temperature:g}: must be positive")

    def usable(self, fields: Fields) -> Tensor:
        """Return which rows hold a target, bool (N,)."""
        return ~fields["logits" if self.dtype == "f2" else "ranges"].isnan().any(1)


Encoding = TopK | Dense


def parse_encoding(text: str, num_classes: int) -> Encoding:
    """Return the encoding named "topk:K", "dense:f2" or "dense:u1" for that many classes.

    Raises:
        UsageError: the name is none of these, or K is not within 1 to num_classes.
    """
    kind, _, detail = text.partition(":")
    if kind == "dense" and detail in ("f2", "u1"):
        return Dense("f2" if detail == "f2" else "u1")
    if kind == "topk" and detail.isascii() and detail.isdigit():
        if 1 <= int(detail) <= num_classes:
            return TopK(int(detail))
        raise UsageError(f"encoding {text}: K must be 1 to {num_classes}, the number of classes")
    raise UsageError(f"encoding {text!r}: expected topk:K, dense:f2 or dense:u1")


def to_arrays(fields: Fields, specs: tuple[FieldSpec, ...]) -> dict[str, NDArray[np.generic]]:
    """Return the fields as NumPy arrays of the stored dtypes."""
    return {spec.name: fields[spec.name].cpu().numpy().astype(spec.dtype) for spec in specs}
