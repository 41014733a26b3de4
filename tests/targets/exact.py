"""References for tests of targets: exact ones, by float64, and what a computation may allocate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.targets.encoding import Encoding
from kdcache.targets.target import SparseTarget

# Calls that wait for a device.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


def exact_target(logits_NC: Tensor, k: int, temperature: float) -> SparseTarget:
    """Return the target that keeps the k largest exactly, as an encoding without any loss would."""
    log_probs = (logits_NC.double() / temperature).log_softmax(1)
    kept, indices = log_probs.topk(k, dim=1)
    tail = log_probs.scatter(1, indices, -torch.inf).logsumexp(1)
    return SparseTarget(indices, kept.float(), tail.float())


def exact_dense(logits_NC: Tensor, temperature: float) -> SparseTarget:
    log_probs = (logits_NC.double() / temperature).log_softmax(1).float()
    return SparseTarget(None, log_probs, torch.full_like(log_probs[:, 0], -torch.inf))


def decoded(logits_NC: Tensor, encoding: Encoding, temperature: float) -> SparseTarget:
    """Return the logits' target as it is read from a cache."""
    fields = encoding.encode(logits_NC)
    return encoding.decode(fields, num_classes=logits_NC.shape[1], temperature=temperature)


def row_kl(teacher_NC: Tensor, target: SparseTarget) -> Tensor:
    """Return each row's KL(teacher || target) from log-probabilities, float64 (N,)."""
    found = target.dense(teacher_NC.shape[1]).double().clamp(min=-1e4)
    return (teacher_NC.exp() * (teacher_NC - found)).sum(1)


def check_sound(target: SparseTarget, num_classes: int) -> None:
    """Check that a target is one: normalised, each class once, absent entries marked."""
    mass = target.log_probs_NK.double().exp().sum(1) + target.log_tail_N.double().exp()
    assert (mass - 1).abs().max() < 1e-5
    assert target.log_probs_NK.dtype == target.log_tail_N.dtype == torch.float32
    indices = target.indices_NK
    if indices is None:
        assert target.log_probs_NK.shape[1] == num_classes
        assert (target.log_tail_N == -torch.inf).all()
        return
    assert indices.dtype == torch.int64
    assert indices.min() >= 0
    assert indices.max() <= num_classes
    assert (target.log_probs_NK[indices == num_classes] == -torch.inf).all()
    for row in indices.tolist():
        present = [index for index in row if index < num_classes]
        assert len(present) == len(set(present))
    keeps_all = (indices < num_classes).sum(1) == num_classes
    assert (target.log_tail_N[keeps_all] == -torch.inf).all()


def off_by(target: SparseTarget, log_probs_NC: Tensor) -> float:
    """Return how far a target is at most from log-probabilities, nats, its tail from their sum."""
    indices = target.indices_NK
    if indices is None:
        return float((target.log_probs_NK - log_probs_NC).abs().max())
    padded = torch.nn.functional.pad(log_probs_NC, (0, 1), value=-torch.inf)
    tail = padded.scatter(1, indices, -torch.inf).logsumexp(1, keepdim=True)
    found = torch.cat([target.log_probs_NK, target.log_tail_N[:, None]], 1).double()
    expected = torch.cat([padded.gather(1, indices), tail], 1)
    return float((found - expected).masked_fill(found == expected, 0.0).abs().max())


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.add(func.name().partition(".")[0])
        made: Iterable[Any] = result if isinstance(result, tuple | list) else [result]
        for tensor in made:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, storage)
        return result


def watched(compute: Callable[[], object]) -> tuple[int, set[str]]:
    """Return the elements of the largest tensor that a computation makes, and its waiting calls."""
    with _Watch() as watch:
        compute()
    return watch.largest, watch.calls & WAITING
