"""What an encoding loses, measured on the logits it was made from.

The gradient of the distillation loss in the student's logits is student minus teacher
probabilities. Its relative error is the root of sum |decoded - teacher|^2 over sum |teacher -
uniform|^2: the error against the gradient that an untrained student sees.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.targets.encoding import Encoding
from kdcache.targets.target import TAIL_TEMPERATURES, Fields


@dataclass(frozen=True)
class Fidelity:
    """Sums over rows, so that measurements add up.

    agree: rows with the same largest class. At temperatures 1, 2 and 4: kl, KL(teacher || decoded)
    in nats; error, gradient, squared norms.
    """

    rows: int
    kl: tuple[float, ...]
    agree: int
    error: tuple[float, ...]
    gradient: tuple[float, ...]

    def __add__(self, other: "Fidelity") -> "Fidelity":
        return Fidelity(
            self.rows + other.rows,
            tuple(a + b for a, b in zip(self.kl, other.kl, strict=True)),
            self.agree + other.agree,
            tuple(a + b for a, b in zip(self.error, other.error, strict=True)),
            tuple(a + b for a, b in zip(self.gradient, other.gradient, strict=True)),
        )

    def summary(self) -> dict[str, Any]:
        """Return agreement as a share, mean KL in nats and relative gradient error by T."""
        if self.rows == 0:
            return {}
        least = 1e-20 * self.rows  # uniform but for rounding: nothing to compare with
        names = [f"{temperature:g}" for temperature in TAIL_TEMPERATURES]
        pairs = zip(self.error, self.gradient, strict=True)
        errors = [(e / g) ** 0.5 if g > least else 0.0 for e, g in pairs]
        return {
            "top1_agreement": self.agree / self.rows,
            "kl_nats": {t: kl / self.rows for t, kl in zip(names, self.kl, strict=True)},
            "gradient_error": dict(zip(names, errors, strict=True)),
        }


NO_ROWS = Fidelity(0, (0.0,) * 3, 0, (0.0,) * 3, (0.0,) * 3)


def measure(logits_NC: Tensor, fields: Fields, encoding: Encoding) -> Fidelity:
    """Return how far the decoded fields are from the logits they were encoded from."""
    return from_sums(len(logits_NC), measure_sums(logits_NC, fields, encoding))


def measure_sums(logits_NC: Tensor, fields: Fields, encoding: Encoding) -> Tensor:
    """Return what a Fidelity sums, float64 (10,), on the logits' device, without waiting for it."""
    num_classes = logits_NC.shape[1]
    sums, agree = [], torch.zeros(())
    for temperature in TAIL_TEMPERATURES:
        teacher = (logits_NC.double() / temperature).log_softmax(1)
        target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
        decoded = target.dense(num_classes).double()
        # Classes that the encoding gives no mass at all would make the KL infinite.
        kl = (teacher.exp() * (teacher - decoded.clamp(min=-1e4))).sum()
        if temperature == 1:
            agree = (teacher.argmax(1) == decoded.argmax(1)).sum().double()
        error = (decoded.exp() - teacher.exp()).square().sum()
        sums += [kl, error, (teacher.exp() - 1 / num_classes).square().sum()]
    return torch.stack([agree, *sums])


def from_sums(rows: int, sums: Tensor) -> Fidelity:
    """Return the measurement that measure_sums gave for so many rows."""
    agree, *others = sums.tolist()
    kl, error, gradient = (tuple(others[part::3]) for part in range(3))
    return Fidelity(rows, kl, int(agree), error, gradient)
