"""What an encoding loses, measured on the logits it was made from.

The gradient of the distillation loss in the student's logits is student minus teacher
probabilities. Its relative error is the root of sum |decoded - teacher|^2 over sum |teacher -
uniform|^2: the error against the gradient that an untrained student sees.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdcache.targets.encoding import TAIL_TEMPERATURES, Encoding, Fields


@dataclass(frozen=True)
class Fidelity:
    """Sums over rows, so that measurements add up.

    kl: KL(teacher || decoded) at temperature 1, nats. agree: rows with the same largest class.
    error, gradient: squared norms at temperatures 1, 2 and 4.
    """

    rows: int
    kl: float
    agree: int
    error: tuple[float, ...]
    gradient: tuple[float, ...]

    def __add__(self, other: "Fidelity") -> "Fidelity":
        return Fidelity(
            self.rows + other.rows,
            self.kl + other.kl,
            self.agree + other.agree,
            tuple(a + b for a, b in zip(self.error, other.error, strict=True)),
            tuple(a + b for a, b in zip(self.gradient, other.gradient, strict=True)),
        )

    def summary(self) -> dict[str, Any]:
        """Return mean KL in nats, agreement as a share, relative gradient error by temperature."""
        if self.rows == 0:
            return {}
        least = 1e-20 * self.rows  # uniform but for rounding: nothing to compare with
        pairs = zip(TAIL_TEMPERATURES, self.error, self.gradient, strict=True)
        return {
            "kl_nats": self.kl / self.rows,
            "top1_agreement": self.agree / self.rows,
            "gradient_error": {f"{t:g}": (e / g) ** 0.5 if g > least else 0.0 for t, e, g in pairs},
        }


NO_ROWS = Fidelity(0, 0.0, 0, (0.0,) * 3, (0.0,) * 3)


def measure(logits_NC: Tensor, fields: Fields, encoding: Encoding) -> Fidelity:
    """Return how far the decoded fields are from the logits they were encoded from."""
    num_classes = logits_NC.shape[1]
    error, gradient = [], []
    kl, agree = 0.0, 0
    for temperature in TAIL_TEMPERATURES:
        teacher = (logits_NC.double() / temperature).log_softmax(1)
        target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
        decoded = target.dense(num_classes).double()
        if temperature == 1:
            # Classes that the encoding gives no mass at all would make the KL infinite.
            kl = float((teacher.exp() * (teacher - decoded.clamp(min=-1e4))).sum())
            agree = int((teacher.argmax(1) == decoded.argmax(1)).sum())
        error.append(float((decoded.exp() - teacher.exp()).square().sum()))
        gradient.append(float((teacher.exp() - 1 / num_classes).square().sum()))
    return Fidelity(len(logits_NC), kl, agree, tuple(error), tuple(gradient))
