"""How good a student is: top-1 against labels, KL to the teacher and agreement with it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torchmetrics.aggregation import MeanMetric

from kdcache.errors import UsageError
from kdcache.models.specs import run_network
from kdcache.models.teacher import Preprocessing
from kdcache.replay.stream import ReplayStream
from kdcache.student.losses import sparse_kl


@dataclass(frozen=True)
class Score:
    """Means over a dataset; None where it has no labels, or no targets.

    top1: share of labelled samples whose label is the student's first class. kl_nats: KL(teacher ||
    student) at temperature 1. agreement: share on which student and teacher name the same class
    first.
    """

    samples: int
    top1: float | None
    kl_nats: float | None
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    stream: ReplayStream,
    *,
    preprocessing: Preprocessing,
    device: torch.device,
) -> Score:
    """Return a student's score on the rest of a stream; it is left in evaluation mode.

    Raises:
        UsageError: the student gives something else than finite logits of the targets' classes.
    """
    network.eval()
    top1, kl, agreement = (MeanMetric().to(device) for _ in range(3))
    samples = labelled = taught = 0
    for batch in stream:
        moved = batch.to(device)
        classes = None if moved.format is None else moved.format.num_classes
        images = preprocessing(moved.pixels)
        logits_NC = run_network(network, images, name="the student", num_classes=classes)
        if not bool(logits_NC.isfinite().all()):
            raise UsageError(
                "the student gave logits that are not finite; train with a lower learning rate"
            )
        first_N = logits_NC.argmax(1)
        known_N = (moved.labels >= 0) & stream.labels_match
        top1.update((first_N == moved.labels)[known_N])
        samples, labelled = samples + len(batch), labelled + int(known_N.sum())
        if moved.fields is not None:
            target = moved.target(1.0)
            taught += len(batch)
            kl.update(sparse_kl(logits_NC, target))
            best_N = target.dense(logits_NC.shape[1]).argmax(1)
            agreement.update(first_N == best_N)
    return Score(
        samples,
        float(top1.compute()) if labelled else None,
        float(kl.compute()) if taught else None,
        float(agreement.compute()) if taught else None,
    )
