"""Logits to compact targets and back.

`topk:K` keeps the K largest log-probabilities in their order, as u1 distances below the largest,
and the mass of the rest at three temperatures; `packed:K` and `adaptive:E` (packed.py) say the same
in fewer bytes; `dense:f2` and `dense:u1` keep every class. A row that could not be used holds the
fill values. Letters: N rows, C classes, K kept entries.

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
from torch.nn.functional import logsigmoid

from kdcache.errors import UsageError
from kdcache.targets.packed import MAX_KEPT, Arrays, Packed, check_temperature
from kdcache.targets.target import (
    TAIL_TEMPERATURES,
    Fields,
    FieldSpec,
    SparseTarget,
    log1mexp,
    tail_log_odds,
)

RANGE_NATS = 32.0
MAX_HALF = 65504.0


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
            tails.append(torch.where(kept_N < -math.log(2), log1mexp(kept_N), rest_N))
        return {
            "indices": indices_NK,
            "values": values_NK.to(torch.uint8),
            "tails": torch.stack(tails, 1)
            .clamp(min=-MAX_HALF)
            .half(),  # finite: -inf would give NaN
        }

    def decode(self, fields: Fields, *, num_classes: int, temperature: float) -> SparseTarget:
        """Return the targets at a temperature from 1 to 4.

        Raises:
            UsageError: the temperature is outside 1 to 4.
        """
        self.check_temperature(temperature)
        below_NK = RANGE_NATS * (fields["values"].float() / 255).square()
        log_tail_N = self._log_tail(fields["tails"].float(), below_NK, num_classes, temperature)
        kept_NK = (-below_NK / temperature).log_softmax(1) + log1mexp(log_tail_N)[:, None]
        return SparseTarget(fields["indices"].long(), kept_NK, log_tail_N)

    def check_temperature(self, temperature: float) -> None:
        """Check that targets can be read at a temperature.

        Raises:
            UsageError: the temperature is outside 1 to 4.
        """
        check_temperature(str(self), temperature)

    def _log_tail(
        self, tails_N3: Tensor, below_NK: Tensor, num_classes: int, temperature: float
    ) -> Tensor:
        if self.k == num_classes:
            return torch.full_like(tails_N3[:, 0], -math.inf)
        if temperature in TAIL_TEMPERATURES:
            return tails_N3[:, TAIL_TEMPERATURES.index(temperature)]
        others_N = torch.full_like(tails_N3[:, 0], num_classes - self.k)
        log_odds_N3 = tails_N3 - log1mexp(tails_N3)
        return logsigmoid(
            tail_log_odds(log_odds_N3, below_NK, others_N=others_N, temperature=temperature)
        )

    def usable(self, arrays: Arrays) -> NDArray[np.bool_]:
        """Return which rows hold a target, bool (N,)."""
        return ~np.isnan(arrays["tails"][:, 0])

    def in_range(self, arrays: Arrays, num_classes: int) -> bool:
        """Return whether no kept class is beyond the last."""
        return bool((arrays["indices"][self.usable(arrays)] < num_classes).all())


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

    def usable(self, arrays: Arrays) -> NDArray[np.bool_]:
        """Return which rows hold a target, bool (N,)."""
        return ~np.isnan(arrays["logits" if self.dtype == "f2" else "ranges"][:, 0])

    def in_range(self, arrays: Arrays, num_classes: int) -> bool:
        """Return whether the arrays are of that many classes."""
        return bool(arrays["logits" if self.dtype == "f2" else "codes"].shape[1] == num_classes)


Encoding = TopK | Packed | Dense


def parse_encoding(text: str, num_classes: int) -> Encoding:
    """Return the encoding of that name for that many classes.

    Names: "topk:K", "packed:K", "adaptive:E", "dense:f2", "dense:u1".

    Raises:
        UsageError: the name is none of these, K is not within 1 to num_classes, or E not within 0
            to 1.
    """
    kind, _, detail = text.partition(":")
    if kind == "dense" and detail in ("f2", "u1"):
        return Dense("f2" if detail == "f2" else "u1")
    if kind in ("topk", "packed") and detail.isascii() and detail.isdigit():
        if len(detail) < 20 and 1 <= int(detail) <= num_classes:
            return TopK(int(detail)) if kind == "topk" else Packed(int(detail))
        raise UsageError(f"encoding {text}: K must be 1 to {num_classes}, the number of classes")
    if kind == "adaptive" and (least := _number(detail)) is not None:
        if 0 < least <= 1:
            return Packed(min(MAX_KEPT, num_classes), least)
        raise UsageError(f"encoding {text}: E, the least probability kept, must be above 0, to 1")
    raise UsageError(
        f"encoding {text!r}: expected topk:K, packed:K, adaptive:E, dense:f2 or dense:u1"
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def to_arrays(fields: Fields, specs: tuple[FieldSpec, ...]) -> dict[str, NDArray[np.generic]]:
    """Return the fields as NumPy arrays of the stored dtypes."""
    return {
        spec.name: fields[spec.name].cpu().numpy().astype(spec.dtype)
        for spec in specs
        if spec.name in fields
    }
