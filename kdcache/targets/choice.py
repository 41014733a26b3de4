"""Which encoding to store: candidates, what each costs and loses, and the one that meets limits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from kdcache.errors import UsageError
from kdcache.targets.encoding import Dense, Encoding, TopK, parse_encoding
from kdcache.targets.fidelity import Fidelity
from kdcache.targets.packed import Packed

KEPT = (1, 2, 3, 5, 10, 20, 32, 50, 64, 100)
LEAST = (0.05, 0.02, 0.01, 0.005, 0.0035, 0.0025, 0.0018, 0.0012, 0.0008, 0.0005, 0.0003)

Temperature = Literal[1, 2, 4]
FRONT_TEMPERATURES: tuple[Temperature, ...] = (1, 2)


@dataclass(frozen=True)
class Measured:
    """What an encoding costs and loses on a sample. bytes_per_view: of the targets alone."""

    encoding: Encoding
    bytes_per_view: float
    fidelity: Fidelity

    def gradient_error(self, temperature: Temperature) -> float:
        """Return the relative gradient error, a share."""
        return float(self.fidelity.summary()["gradient_error"][str(temperature)])

    def kl_nats(self, temperature: Temperature) -> float:
        """Return the mean KL(teacher || decoded)."""
        return float(self.fidelity.summary()["kl_nats"][str(temperature)])


@dataclass(frozen=True)
class Budget:
    """Limits that an encoding must meet, at one temperature; None for no limit.

    max_gradient_error: a share. max_kl: nats. max_bytes: of one view's target.
    """

    max_gradient_error: float | None = None
    max_kl: float | None = None
    max_bytes: float | None = None
    temperature: Temperature = 1

    def __post_init__(self) -> None:
        limits = {
            "gradient error": self.max_gradient_error,
            "KL": self.max_kl,
            "bytes": self.max_bytes,
        }
        for name, limit in limits.items():
            if limit is not None and not 0 < limit < math.inf:
                raise UsageError(f"greatest {name} {limit:g}: must be a number above 0")
        if all(limit is None for limit in limits.values()):
            raise UsageError("nothing to choose by: give a greatest gradient error, KL or bytes")

    def __str__(self) -> str:
        at = f"at T = {self.temperature}"
        parts = []
        if self.max_gradient_error is not None:
            share = f"{100 * self.max_gradient_error:.3g}%"
            parts.append(f"a gradient error of at most {share} {at}")
        if self.max_kl is not None:
            parts.append(f"a KL of at most {self.max_kl:.3g} nats {at}")
        if self.max_bytes is not None:
            parts.append(f"at most {self.max_bytes:g} bytes a view")
        return " and ".join(parts)

    @property
    def aim(self) -> str:
        """Return what is chosen among those that meet it, in words."""
        losses = self.max_gradient_error, self.max_kl
        return "the most faithful" if losses == (None, None) else "the smallest"

    def excess(self, measured: Measured) -> float:
        """Return the largest of what is found over its limit; the limits are met up to 1."""
        pairs = (
            (measured.gradient_error(self.temperature), self.max_gradient_error),
            (measured.kl_nats(self.temperature), self.max_kl),
            (measured.bytes_per_view, self.max_bytes),
        )
        return max(found / limit for found, limit in pairs if limit is not None)


def candidates(num_classes: int) -> tuple[Encoding, ...]:
    """Return a ladder of encodings for a number of classes, of each family from small to large."""
    kept = [k for k in KEPT if k < num_classes]
    adaptive = [parse_encoding(f"adaptive:{least!r}", num_classes) for least in LEAST]
    return (
        *(TopK(k) for k in kept),
        *(Packed(k) for k in kept),
        *adaptive,
        Dense("u1"),
        Dense("f2"),
    )


def pareto(measured: Iterable[Measured]) -> tuple[Measured, ...]:
    """Return the front, from the smallest.

    Left out is what another equals or betters in bytes and in gradient error at T = 1 and T = 2,
    and betters in one of them.
    """
    cost = {
        one: (one.bytes_per_view, *(one.gradient_error(t) for t in FRONT_TEMPERATURES))
        for one in measured
    }
    front = [
        one
        for one, mine in cost.items()
        if not any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in cost.values()
        )
    ]
    return tuple(sorted(front, key=lambda one: cost[one]))


def choose(measured: Sequence[Measured], budget: Budget) -> Measured:
    """Return the encoding that meets a budget.

    With a limit on error or KL it is the smallest that meets all limits; with one on bytes alone,
    the one of the least gradient error at the budget's temperature.

    Raises:
        UsageError: none meets it; names the closest.
    """
    meeting = [one for one in measured if budget.excess(one) <= 1]
    if not meeting:
        closest = min(measured, key=budget.excess)
        raise UsageError(f"no encoding has {budget}; the closest is {describe(closest, budget)}")

    def error(one: Measured) -> float:
        return one.gradient_error(budget.temperature)

    if budget.aim == "the smallest":
        return min(meeting, key=lambda one: (one.bytes_per_view, error(one)))
    return min(meeting, key=lambda one: (error(one), one.bytes_per_view))


def describe(measured: Measured, budget: Budget) -> str:
    """Return an encoding's name, bytes a view and losses at a budget's temperature, in words."""
    t = budget.temperature
    return (
        f"{measured.encoding}: {measured.bytes_per_view:.1f} bytes a view, gradient error "
        f"{measured.gradient_error(t):.2%}, KL {measured.kl_nats(t):.2g} nats at T = {t}"
    )
