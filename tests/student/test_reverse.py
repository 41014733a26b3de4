"""Claims about the two directions of the KL: reverse is KL(student || teacher)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from kdcache.student.config import Direction
from kdcache.student.losses import sparse_kl
from kdcache.targets.encoding import Dense, parse_encoding
from kdcache.targets.target import SparseTarget

N = 6
FLOOR = -87.33654475055310  # the logarithm of float32's least normal number
seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 4.0, 30.0])
directions = pytest.mark.parametrize("direction", ["forward", "reverse"])


def _logits(seed: int, num_classes: int, *, scale: float = 3.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, scale, (N, num_classes)))


def _target(teacher_NC: Tensor, kept: list[int], temperature: float) -> SparseTarget:
    """Return the exact target whose rows keep that many of their largest classes."""
    num_classes = teacher_NC.shape[1]
    log_probs_NC = (teacher_NC / temperature).log_softmax(1)
    kept_NK, indices_NK = log_probs_NC.topk(max(kept), dim=1)
    absent_NK = torch.arange(max(kept)) >= torch.tensor(kept)[:, None]
    padded = F.pad(log_probs_NC, (0, 1), value=-math.inf)
    indices_NK = indices_NK.masked_fill(absent_NK, num_classes)
    rest_N = padded.scatter(1, indices_NK, -math.inf).logsumexp(1)
    return SparseTarget(
        indices_NK, kept_NK.masked_fill(absent_NK, -math.inf).float(), rest_N.float()
    )


def _buckets(target: SparseTarget, student_NC: Tensor, temperature: float) -> list[list[Tensor]]:
    """Return each row's log-probabilities in float64 of its classes and bucket: (t, s)."""
    assert target.indices_NK is not None
    log_probs_NC, rows = (student_NC.double() / temperature).log_softmax(1), []
    num_classes = student_NC.shape[1]
    for n, log_probs in enumerate(log_probs_NC):
        present = target.indices_NK[n] < num_classes
        classes = target.indices_NK[n][present].tolist()
        others = sorted(set(range(num_classes)) - set(classes))
        t, s = target.log_probs_NK[n][present].double(), log_probs[classes]
        if others:
            t = torch.cat([t, target.log_tail_N[n : n + 1].double()])
            s = torch.cat([s, log_probs[others].logsumexp(0, keepdim=True)])
        rows.append([t, s])
    return rows


def _reference(target: SparseTarget, student_NC: Tensor, temperature: float) -> Tensor:
    """Return KL(student || teacher) over buckets by torch's kl_div, in float64."""
    return torch.stack(
        [
            F.kl_div(t.clamp(min=FLOOR), s, reduction="sum", log_target=True)
            for t, s in _buckets(target, student_NC, temperature)
        ]
    ).mul(temperature**2)


def _check(target: SparseTarget, student_NC: Tensor, temperature: float) -> None:
    """Compare reverse's value and gradient with the reference's."""
    leaves = student_NC.float().requires_grad_(), student_NC.clone().requires_grad_()
    found = sparse_kl(leaves[0], target, temperature=temperature, direction="reverse")
    expected = _reference(target, leaves[1], temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * temperature**2)
    gradients = [
        torch.autograd.grad(loss.sum(), leaf)[0].double()
        for loss, leaf in zip((found, expected), leaves, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=2e-5 * max(temperature, 1.0))


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 30), temperatures, st.data())
def test_reverse_is_torchs_over_rows_that_keep_any_number_of_classes(
    seed: int, num_classes: int, temperature: float, data: st.DataObject
) -> None:
    teacher, student = _logits(seed, num_classes), _logits(seed + 1, num_classes)
    kept = data.draw(st.lists(st.integers(1, num_classes), min_size=N, max_size=N))
    _check(_target(teacher, kept, temperature), student, temperature)


@pytest.mark.parametrize("kept", [False, True])
def test_with_all_classes_reverse_is_that_of_torch_distributions(kept: bool) -> None:
    teacher, student = _logits(0, 9), _logits(1, 9)
    target = _target(teacher, [9] * N, 1.0)
    if not kept:
        nothing = torch.full((N,), -math.inf)
        target = SparseTarget(None, teacher.log_softmax(1).float(), nothing)
    expected = kl_divergence(Categorical(logits=student), Categorical(logits=teacher))
    found = sparse_kl(student, target, direction="reverse").double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["topk:2", "packed:2", "adaptive:0.02", "adaptive:1e-9"])
@pytest.mark.parametrize("temperature", [1.0, 1.7, 4.0])
def test_reverse_reads_what_encodings_keep(text: str, temperature: float) -> None:
    """A sure row, whose classes and tail are far below the floor, an even one, and others."""
    teacher = _logits(0, 40) * torch.tensor([400.0, 0.0, 0.5, 1.0, 2.0, 4.0])[:, None]
    encoding = parse_encoding(text, 40)
    target = encoding.decode(encoding.encode(teacher), num_classes=40, temperature=temperature)
    _check(target, _logits(1, 40, scale=1.0), temperature)


@directions
@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 30), temperatures, st.data())
def test_it_is_no_less_than_pinsker_says_and_so_0_only_if_equal(
    direction: Direction, seed: int, num_classes: int, temperature: float, data: st.DataObject
) -> None:
    scale = data.draw(st.sampled_from([0.01, 1.0, 5.0]))
    teacher = _logits(seed, num_classes)
    student = teacher + _logits(seed + 1, num_classes, scale=scale)
    kept = data.draw(st.lists(st.integers(1, num_classes), min_size=N, max_size=N))
    target = _target(teacher, kept, temperature)
    options = {"temperature": temperature, "direction": direction}
    found = sparse_kl(student, target, **options) / temperature**2
    apart = [(t.exp() - s.exp()).abs().sum() for t, s in _buckets(target, student, temperature)]
    assert bool((found >= torch.stack(apart).square() / 2 - 2e-6).all())
    equal = sparse_kl(teacher, target, **options) / temperature**2
    assert float(equal.abs().max()) <= 2e-6


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 20), st.data())
def test_near_equality_both_directions_agree_to_second_order(
    seed: int, num_classes: int, data: st.DataObject
) -> None:
    teacher, change = _logits(seed, num_classes), _logits(seed + 1, num_classes, scale=0.02)
    kept = data.draw(st.lists(st.integers(1, num_classes), min_size=N, max_size=N))
    target = _target(teacher, kept, 1.0)
    forward, reverse = (
        sparse_kl(teacher + change, target, direction=d) for d in ("forward", "reverse")
    )
    assert float(forward.max()) < 0.01
    assert bool(((forward - reverse).abs() <= 0.1 * forward + 1e-6).all())


@directions
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5, 1e30])
def test_extremes_keep_loss_and_gradient_finite(direction: Direction, k: int, size: float) -> None:
    """Students of any size; rows whose tail, or whose kept classes but one, have no mass."""
    teacher = _logits(0, 5)
    teacher[2:4, 1:] -= 1e4
    target = _target(teacher, [k, 1, k, 1, 2, 5], 1.0)
    assert target.log_tail_N.isinf().any()
    student = torch.zeros(N, 5)
    student[torch.arange(N), torch.arange(N) % 5] = size
    student[1::2] *= -1
    student.requires_grad_()
    for each in (
        target,
        SparseTarget(None, teacher.log_softmax(1).float().exp().log(), target.log_tail_N),
    ):
        loss = sparse_kl(student, each, direction=direction)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert bool(loss.isfinite().all())
        assert bool((loss >= -1e-5).all())
        assert bool(gradient.isfinite().all())


def test_mass_where_the_teacher_has_none_costs_87_nats() -> None:
    """Stored as -inf, as a tail that is too small, or as far less than float32 can say."""
    student = torch.tensor([[0.0, 50.0, 0.0]])
    one = torch.tensor([[0]])
    targets = [
        SparseTarget(None, torch.tensor([[0.0, -math.inf, -math.inf]]), torch.tensor([-math.inf])),
        SparseTarget(one, torch.tensor([[0.0]]), torch.tensor([-math.inf])),
        Dense("f2").decode(
            {"logits": torch.tensor([[0.0, -6e4, -6e4]])}, num_classes=3, temperature=1.0
        ),
    ]
    for target in targets:
        found = sparse_kl(student, target, direction="reverse")
        assert float(found) == pytest.approx(-FLOOR, rel=1e-5)


def test_another_direction_is_refused() -> None:
    target = _target(_logits(0, 4), [4] * N, 1.0)
    with pytest.raises(ValueError, match="direction 'sideways'"):
        sparse_kl(torch.zeros(N, 4), target, direction="sideways")  # type: ignore[arg-type]
