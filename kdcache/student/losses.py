"""Losses of a student, in nats. Letters: N samples, C classes, K kept entries."""

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.student.config import Direction
from kdcache.targets.target import SparseTarget

_NOTHING = -1e4  # a log-probability of 0 whose gradient is 0, too
_FLOOR = math.log(torch.finfo(torch.float32).tiny)  # -87 nats


def sparse_kl(
    student_NC: Tensor,
    target: SparseTarget,
    *,
    temperature: float = 1.0,
    direction: Direction = "forward",
) -> Tensor:
    """Return each sample's KL of teacher and student times temperature squared, float32 (N,).

    student_NC: raw logits, any float dtype; computed in float32.
    target: the teacher at the same temperature; classes that it does not keep count as one bucket.
    direction: "forward" is KL(teacher || student), "reverse" is KL(student || teacher).

    With all classes kept this is the KL of the two distributions. Otherwise it is below it by the
    tail's mass (the student's, if reverse) times the KL within the tail, which is not stored.

    Reverse is infinite where the student has mass and the teacher none: the teacher's
    log-probability therefore counts as no less than -87 nats, that of float32's least number.

    Raises:
        ValueError: temperature is not positive, or the direction is another.

    Source: Hinton et al. 2015, section 2, arXiv:1503.02531; reverse: Gu et al. 2024,
    arXiv:2306.08543; the tail as one bucket is ours.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: must be positive")
    if direction not in get_args(Direction):
        raise ValueError(f"direction {direction!r}: must be forward or reverse")
    terms = _forward_terms if direction == "forward" else _reverse_terms
    student_NC = (student_NC.float() / temperature).log_softmax(1)
    indices_NK = target.indices_NK
    if indices_NK is None:
        return terms(target.log_probs_NK, student_NC).sum(1) * temperature**2
    student_NC = F.pad(student_NC, (0, 1), value=_NOTHING)  # the class of entries not kept
    kl_N = terms(target.log_probs_NK, student_NC.gather(1, indices_NK)).sum(1)
    tail_N = student_NC.scatter(1, indices_NK, -math.inf).logsumexp(1)
    return (kl_N + terms(target.log_tail_N, tail_N)) * temperature**2


def _forward_terms(teacher: Tensor, student: Tensor) -> Tensor:
    """Return p_t (log p_t - log p_s) from log-probabilities; 0 where p_t is 0."""
    terms = F.kl_div(student, teacher, reduction="none", log_target=True)
    return terms.masked_fill(teacher == -math.inf, 0)


def _reverse_terms(teacher: Tensor, student: Tensor) -> Tensor:
    """Return p_s (log p_s - log p_t) from log-probabilities, p_t at least exp(-87)."""
    return F.kl_div(teacher.clamp(min=_FLOOR), student, reduction="none", log_target=True)


def label_loss(
    student_NC: Tensor, labels_N: Tensor, *, partner_labels_N: Tensor, weights_N: Tensor
) -> Tensor:
    """Return each sample's cross-entropy, float32 (N,), mixed as the images are.

    weights_N: share of a sample's own label; its partner's has the rest. Partners of samples whose
    share is 1 do not count, and may have no label.
    """
    # Whether any sample is mixed is not asked: the answer would have to be waited for.
    partner_labels_N = partner_labels_N.where(weights_N < 1, labels_N)
    log_probs_NC = student_NC.float().log_softmax(1)
    own_N = F.nll_loss(log_probs_NC, labels_N, reduction="none")
    partner_N = F.nll_loss(log_probs_NC, partner_labels_N, reduction="none")
    return torch.lerp(partner_N, own_N, weights_N)
