"""The compact encodings: entries in the order of their classes, as gaps.

`packed:K` keeps the K largest log-probabilities of each row; `adaptive:E` those whose probability
at temperature 2 is at least E, up to 128, and always the largest. Letters as in target.py.

Sorted by class, K of C classes take log2(C! / (K! (C - K)!)) bits, 25 bytes for 32 of 1000, where
an order by value would take 40; what the order by value would have spared in the values, codes of
a logarithmic scale win back, since most of them are equal to others.

Bounds: a distance d below the largest is off by at most 0.0105 (1 + d) nats, up to 197 nats, but is
at least 0.021, so that the largest stays alone; the log-odds of the tail are off by at most 1 / 16,
from -20 to 11.75.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdcache.errors import UsageError
from kdcache.targets.target import (
    TAIL_TEMPERATURES,
    Fields,
    FieldSpec,
    Layout,
    SparseTarget,
    tail_log_odds,
)

MAX_KEPT = 128
CODES_PER_E = 48  # code = 48 ln(1 + d)
TAIL_STEP, TAIL_LOWEST = 1 / 8, -20.0
NONE = 255  # the code of no entry, and of no tail

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Packed:
    """Entries by class. k: kept of each row at most; least: their probability at temperature 2."""

    k: int
    least: float | None = None

    def __str__(self) -> str:
        return f"packed:{self.k}" if self.least is None else f"adaptive:{self.least!r}"

    def specs(self, num_classes: int) -> tuple[FieldSpec, ...]:
        """Return the stored arrays."""
        index = "u2" if num_classes <= 0x10000 else "u4"
        layout: Layout = "rows" if self.least is None else "ragged"
        entries = (
            FieldSpec("gaps", index, self.k, 0, "zstd-shuffle-1mib", layout),
            FieldSpec("codes", "u1", self.k, NONE, "lz4-bitshuffle", layout),
        )
        tails = FieldSpec("tails", "u1", len(TAIL_TEMPERATURES), NONE, "lz4-bitshuffle")
        counts = FieldSpec("counts", "u1", 1, 0, "zstd", "counts")
        return (*entries, tails) if layout == "rows" else (*entries, tails, counts)

    def encode(self, logits_NC: Tensor) -> Fields:
        """Return gaps (N, k) int64, codes (N, k) uint8, tails (N, 3) uint8."""
        log_probs_NC = logits_NC.float().log_softmax(1)
        num_classes = log_probs_NC.shape[1]
        largest_NK, indices_NK = log_probs_NC.topk(self.k, dim=1)
        kept_NK = torch.ones_like(indices_NK, dtype=torch.bool)
        if self.least is not None:
            scale_N1 = (log_probs_NC / 2).logsumexp(1, keepdim=True)
            kept_NK[:, 1:] = (largest_NK / 2 - scale_N1).exp()[:, 1:] >= self.least
        classes_NK, order_NK = indices_NK.masked_fill(~kept_NK, num_classes).sort(1)
        below_NK = (largest_NK[:, :1] - largest_NK).gather(1, order_NK)
        absent_NK = classes_NK == num_classes
        gaps_NK = classes_NK.diff(dim=1, prepend=torch.full_like(classes_NK[:, :1], -1)) - 1
        codes_NK = (CODES_PER_E * below_NK.log1p()).round().clamp(1, NONE - 1)
        codes_NK = codes_NK.masked_fill(order_NK == 0, 0)  # the largest alone
        kept_NC = torch.zeros_like(log_probs_NC, dtype=torch.bool).scatter(1, indices_NK, kept_NK)
        tails = []
        for temperature in TAIL_TEMPERATURES:
            scaled_NC = log_probs_NC / temperature
            rest_N = scaled_NC.masked_fill(kept_NC, -torch.inf).logsumexp(1)
            tails.append(rest_N - scaled_NC.masked_fill(~kept_NC, -torch.inf).logsumexp(1))
        tails_N3 = ((torch.stack(tails, 1) - TAIL_LOWEST) / TAIL_STEP).round()
        return {
            "gaps": gaps_NK.masked_fill(absent_NK, 0),
            "codes": codes_NK.masked_fill(absent_NK, NONE).to(torch.uint8),
            "tails": tails_N3.clamp(0, NONE - 1).to(torch.uint8),
        }

    def decode(self, fields: Fields, *, num_classes: int, temperature: float) -> SparseTarget:
        """Return the targets at a temperature from 1 to 4.

        Raises:
            UsageError: the temperature is outside 1 to 4.
        """
        self.check_temperature(temperature)
        absent_NK = fields["codes"] == NONE
        indices_NK = (fields["gaps"].long() + 1).cumsum(1) - 1
        below_NK = torch.expm1(fields["codes"].float() / CODES_PER_E)
        below_NK = below_NK.masked_fill(absent_NK, torch.inf)
        others_N = num_classes - (~absent_NK).sum(1)
        log_odds_N = tail_log_odds(
            fields["tails"].float() * TAIL_STEP + TAIL_LOWEST,
            below_NK,
            others_N=others_N,
            temperature=temperature,
        ).masked_fill(others_N == 0, -torch.inf)
        return SparseTarget(
            indices_NK.masked_fill(absent_NK, num_classes),
            (-below_NK / temperature).log_softmax(1) + logsigmoid(-log_odds_N)[:, None],
            logsigmoid(log_odds_N),
        )

    def check_temperature(self, temperature: float) -> None:
        """Check that targets can be read at a temperature.

        Raises:
            UsageError: the temperature is outside 1 to 4.
        """
        check_temperature(str(self), temperature)

    def usable(self, arrays: Arrays) -> NDArray[np.bool_]:
        """Return which rows hold a target, bool (N,)."""
        found: NDArray[np.bool_] = arrays["tails"][:, 0] != NONE
        return found

    def in_range(self, arrays: Arrays, num_classes: int) -> bool:
        """Return whether no kept class is beyond the last, and each usable row has one largest."""
        usable = self.usable(arrays)
        codes_NK = arrays["codes"][usable]
        classes_NK = arrays["gaps"][usable].cumsum(1, dtype=np.int64) + np.arange(self.k)
        largest_N = (codes_NK == 0).sum(1)
        return bool((classes_NK[codes_NK != NONE] < num_classes).all() and (largest_N == 1).all())


def check_temperature(encoding: str, temperature: float) -> None:
    """Check that an encoding with tails can be read at a temperature.

    Raises:
        UsageError: the temperature is outside 1 to 4.
    """
    if not TAIL_TEMPERATURES[0] <= temperature <= TAIL_TEMPERATURES[-1]:
        raise UsageError(
            f"temperature {temperature:g} with {encoding}: top-k caches serve 1 to 4; "
            "use a dense cache for others"
        )


def to_stored(rows: Arrays, specs: tuple[FieldSpec, ...], *, num_rows: int) -> Arrays:
    """Return a tile's arrays as they are stored, with room for num_rows rows.

    rows: arrays (at most num_rows, width).
    """
    stored: Arrays = {}
    kept = rows["codes"] != NONE if any(s.layout == "counts" for s in specs) else None
    for spec in specs:
        if spec.layout == "ragged":
            entries = rows[spec.name][kept]
            stored[spec.name] = np.full(num_rows * spec.width, spec.fill, spec.dtype)
        else:
            entries = rows[spec.name] if kept is None or spec.layout == "rows" else kept.sum(1)
            entries = entries.reshape(-1, spec.width)
            stored[spec.name] = np.full((num_rows, spec.width), spec.fill, spec.dtype)
        stored[spec.name][: len(entries)] = entries
    return stored


def from_stored(stored: Arrays, specs: tuple[FieldSpec, ...], *, num_rows: int) -> Arrays:
    """Return the arrays (num_rows, width) of a tile from those stored.

    Raises:
        ValueError: a row is said to have more entries than there is room for.
    """
    counts_N = stored["counts"][:num_rows, 0].astype(np.int64) if "counts" in stored else None
    places = None if counts_N is None else _places(counts_N, width=specs[0].width)
    rows: Arrays = {}
    for spec in specs:
        if spec.layout == "rows":
            rows[spec.name] = stored[spec.name][:num_rows]
        elif spec.layout == "ragged" and counts_N is not None:
            array = np.full(len(counts_N) * spec.width, spec.fill, spec.dtype)
            array[places] = stored[spec.name][: int(counts_N.sum())]
            rows[spec.name] = array.reshape(-1, spec.width)
    return rows


def _places(counts_N: NDArray[np.int64], *, width: int) -> NDArray[np.int64]:
    """Return where the first entries of each row stand among N x width.

    Three times as fast as a mask.
    """
    if counts_N.max(initial=0) > width:
        raise ValueError(f"a row of {counts_N.max()} entries, at most {width} are kept")
    ends_N = counts_N.cumsum()
    shifts_N = np.arange(len(counts_N)) * width - (ends_N - counts_N)
    places: NDArray[np.int64] = np.arange(counts_N.sum()) + np.repeat(shifts_N, counts_N)
    return places
