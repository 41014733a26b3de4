"""How steady a teacher is: what its logits of equal images differ by from call to call.

A target should be the teacher's answer to one image. Kernels that add in another order for another
batch size change the last bits of it; dropout left on, or statistics of a batch, change it wholly.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.models.teacher import Teacher

PROBED = 4  # images
STEADY_NATS = 0.01  # more than any precision's rounding


@dataclass(frozen=True)
class Steadiness:
    """Greatest differences of a teacher's log-probabilities on a few random images, in nats.

    repeat: of two equal calls. batch: of an image alone and among others.
    """

    repeat_nats: float
    batch_nats: float

    @property
    def deterministic(self) -> bool:
        """Return whether nothing differed."""
        return self.repeat_nats == self.batch_nats == 0

    @property
    def steady(self) -> bool:
        """Return whether differences are those of rounding."""
        return max(self.repeat_nats, self.batch_nats) <= STEADY_NATS

    def to_dict(self) -> dict[str, Any]:
        """Return what a cache keeps of it."""
        return asdict(self)

    def __str__(self) -> str:
        if self.deterministic:
            return "deterministic on a probe of 4 images, alone and in a batch"
        text = f"log-probabilities differ {differences(self.repeat_nats, self.batch_nats)}"
        return text if self.steady else f"NOT STEADY: {text}; no two caches of it will be equal"


def differences(repeat_nats: float, batch_nats: float) -> str:
    """Return by how much, and when, something differs: what follows that word."""
    batch = f"{batch_nats:.2g} nats with the batch"
    if repeat_nats == 0:
        return f"by up to {batch}, and not from call to call"
    return f"by up to {repeat_nats:.2g} nats from call to call, {batch}"


def measure_steadiness(teacher: Teacher, size: int) -> Steadiness:
    """Return how steady a teacher is on random images of a size.

    Raises:
        UsageError: the teacher fails, or gives logits that are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (PROBED, 3, size, size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    first, again = _log_probs(teacher, pixels), _log_probs(teacher, pixels)
    alone = torch.cat([_log_probs(teacher, image) for image in torch.split(pixels, 1)])
    return Steadiness(_difference(first, again), _difference(first, alone))


def _log_probs(teacher: Teacher, pixels_N3HW: Tensor) -> Tensor:
    logits_NC = teacher(pixels_N3HW)
    if not bool(logits_NC.isfinite().all()):
        raise UsageError(
            f"teacher {teacher.spec}: gave logits that are not finite for random images; check its "
            "weights, or use --precision float32"
        )
    return logits_NC.double().log_softmax(1)


def _difference(ours_NC: Tensor, theirs_NC: Tensor) -> float:
    return float((ours_NC - theirs_NC).abs().max())
