"""What a student minimises: the KL to the teacher, the labels' cross-entropy, or both."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.models.teacher import Teacher
from kdcache.replay.batch import Batch
from kdcache.student.config import TrainConfig
from kdcache.student.losses import label_loss, sparse_kl
from kdcache.targets.target import SparseTarget


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a run. teacher: looks at each batch itself; None where targets are stored."""

    config: TrainConfig
    teacher: Teacher | None = None

    def __call__(self, logits_NC: Tensor, batch: Batch) -> Tensor:
        """Return each sample's loss (N,), float32, nats."""
        config = self.config
        if config.learn == "labels":
            return _label_loss(logits_NC, batch)
        kl_N = sparse_kl(
            logits_NC,
            self._target(batch),
            temperature=config.temperature,
            direction=config.direction,
        )
        if config.label_weight == 0:
            return kl_N
        return torch.lerp(kl_N, _label_loss(logits_NC, batch), config.label_weight)

    def _target(self, batch: Batch) -> SparseTarget:
        if self.teacher is None:
            return batch.target(self.config.temperature)
        log_probs_NC = (self.teacher(batch.pixels) / self.config.temperature).log_softmax(1)
        return SparseTarget(None, log_probs_NC, torch.full_like(log_probs_NC[:, 0], -math.inf))


def _label_loss(logits_NC: Tensor, batch: Batch) -> Tensor:
    return label_loss(
        logits_NC,
        batch.labels,
        partner_labels_N=batch.partner_labels,
        weights_N=batch.weights,
    )
