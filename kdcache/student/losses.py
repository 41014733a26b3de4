"""Losses of a student, in nats. Letters: N samples, C classes, K kept entries."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.targets.target import SparseTarget

_NOTHING = -1e4  # a log-probability of 0 whose gradient is 0, too


def sparse_kl(student_NC: Tensor, target: SparseTarget, *, temperature: float = 1.0) -> Tensor:
    """Return each sample's KL(teacher || student) times temperature squared, float32 (N,).

    student_NC: raw logits, any float dtype; computed in float32.
    target: the teacher at the same temperature; classes that it does not keep count as one bucket.

    With all classes kept this is the KL of the two distributions. Otherwise it is below it by the
    tail's mass times the KL within the tail, which is not stored.

    Raises:
        ValueError: temperature is not positive.

    Source: Hinton et al. 2015, section 2, arXiv:1503.02531; the tail as one bucket is ours.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: must be positive")
    student_NC = (student_NC.float() / temperature).log_softmax(1)
    indices_NK = target.indices_NK
    if indices_NK is None:
        return _kl_terms(target.log_probs_NK, student_NC).sum(1) * temperature**2
    num_classes = student_NC.shape[1]
    student_NC = F.pad(student_NC, (0, 1), value=_NOTHING)  # the class of entries not kept
    terms_NK = _kl_terms(target.log_probs_NK, student_NC.gather(1, indices_NK))
    kl_N = terms_NK.masked_fill(indices_NK == num_classes, 0).sum(1)
    tail_N = student_NC.scatter(1, indices_NK, -math.inf).logsumexp(1)
    tail_term_N = _kl_terms(target.log_tail_N, tail_N)
    kl_N = kl_N + tail_term_N.masked_fill(target.log_tail_N == -math.inf, 0)
    return kl_N * temperature**2


def _kl_terms(teacher: Tensor, student: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="none", log_target=True)


def label_loss(
    student_NC: Tensor, labels_N: Tensor, *, partner_labels_N: Tensor, weights_N: Tensor
) -> Tensor:
    """Return each sample's cross-entropy, float32 (N,), mixed as the images are.

    weights_N: share of a sample's own label; its partner's has the rest.
    """
    logits_NC = student_NC.float()
    own_N = F.cross_entropy(logits_NC, labels_N, reduction="none")
    if bool((weights_N == 1).all()):
        return own_N
    partner_N = F.cross_entropy(logits_NC, partner_labels_N, reduction="none")
    return torch.lerp(partner_N, own_N, weights_N)
