import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.student.losses import label_loss, sparse_kl
from kdcache.targets.encoding import Dense, TopK, parse_encoding
from kdcache.targets.packed import Packed
from kdcache.targets.target import SparseTarget

N = 6
seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([0.5, 1.0, 1.7, 2.0, 4.0, 30.0])


def _logits(seed: int, num_classes: int, *, scale: float = 4.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, scale, (N, num_classes)))


def _target(teacher_NC: Tensor, k: int, temperature: float) -> SparseTarget:
    """Return the exact target of the k largest classes, without any encoding."""
    log_probs_NC = (teacher_NC.double() / temperature).log_softmax(1)
    kept_NK, indices_NK = log_probs_NC.topk(k, dim=1)
    rest = log_probs_NC.scatter(1, indices_NK, -math.inf).logsumexp(1)
    return SparseTarget(indices_NK, kept_NK.float(), rest.float())


def _dense_kl(teacher_NC: Tensor, student_NC: Tensor, temperature: float) -> Tensor:
    """Return torch's KL in float64, times temperature squared."""
    p, q = ((x.double() / temperature).log_softmax(1) for x in (teacher_NC, student_NC))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1) * temperature**2


def _tail_kl(teacher_NC: Tensor, student_NC: Tensor, k: int, temperature: float) -> Tensor:
    """Return the teacher's mass outside its k largest classes times the KL within these."""
    out = []
    for t, s in zip(teacher_NC.double().numpy(), student_NC.double().numpy(), strict=True):
        p, q = (np.exp(x / temperature - (x / temperature).max()) for x in (t, s))
        tail = np.argsort(-t, kind="stable")[k:]
        mass = p[tail].sum() / p.sum()
        p, q = p[tail] / p[tail].sum(), q[tail] / q[tail].sum()
        out.append(mass * float((p * np.log(p / q)).sum()))
    return torch.tensor(out, dtype=torch.float64) * temperature**2


def _gradient(loss: Callable[[Tensor], Tensor], student_NC: Tensor) -> Tensor:
    leaf = student_NC.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).mean(), leaf)
    return gradient


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(2, 40), temperatures)
def test_with_all_classes_kept_it_is_torchs_dense_kl(
    seed: int, num_classes: int, temperature: float
) -> None:
    teacher, student = _logits(seed, num_classes), _logits(seed + 1, num_classes)
    expected = _dense_kl(teacher, student, temperature)
    found = sparse_kl(
        student.float(), _target(teacher, num_classes, temperature), temperature=temperature
    )
    assert found.dtype == torch.float32
    assert found.shape == (N,)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * temperature**2)


def test_its_mean_is_torchs_batchmean() -> None:
    teacher, student = _logits(0, 10).float(), _logits(1, 10).float()
    expected = F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
    )
    found = sparse_kl(student, _target(teacher, 10, 1.0)).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 40), temperatures)
def test_a_dense_target_gives_the_dense_kl(seed: int, num_classes: int, temperature: float) -> None:
    teacher, student = _logits(seed, num_classes), _logits(seed + 1, num_classes)
    log_probs_NC = (teacher / temperature).log_softmax(1).float()
    target = SparseTarget(None, log_probs_NC, torch.full((N,), -math.inf))
    found = sparse_kl(student.float(), target, temperature=temperature)
    expected = _dense_kl(teacher, student, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * temperature**2)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(3, 40), temperatures, st.data())
def test_with_fewer_classes_it_lacks_the_kl_within_the_tail_and_nothing_else(
    seed: int, num_classes: int, temperature: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, num_classes - 1))
    teacher, student = _logits(seed, num_classes), _logits(seed + 1, num_classes)
    target = _target(teacher, k, temperature)
    found = sparse_kl(student.float(), target, temperature=temperature).double()
    dense = _dense_kl(teacher, student, temperature)
    expected = dense - _tail_kl(teacher, student, k, temperature)
    slack = 3e-6 * temperature**2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=slack)
    assert bool((found >= -slack).all())
    assert bool((found <= dense * (1 + 1e-5) + slack).all())


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_gradient_is_that_of_the_bucketed_kl(k: int, temperature: float) -> None:
    """The reference is autograd in float64 through explicit sums of probabilities."""
    teacher, student = _logits(0, 7), _logits(1, 7)
    target = _target(teacher, k, temperature)

    def buckets(logits_NC: Tensor) -> Tensor:
        probs = (logits_NC / temperature).softmax(1)
        kept = probs.gather(1, teacher.topk(k, dim=1).indices)
        rest = 1 - kept.sum(1, keepdim=True)
        return kept if k == 7 else torch.cat([kept, rest], 1)

    def reference(logits_NC: Tensor) -> Tensor:
        p, q = buckets(teacher), buckets(logits_NC)
        return (p * (p / q).log()).sum(1) * temperature**2

    found = _gradient(lambda x: sparse_kl(x, target, temperature=temperature), student.float())
    expected = _gradient(reference, student)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 30), temperatures)
def test_its_gradient_is_the_dense_one_with_all_classes_kept(
    seed: int, num_classes: int, temperature: float
) -> None:
    teacher, student = _logits(seed, num_classes), _logits(seed + 1, num_classes)
    target = _target(teacher, num_classes, temperature)
    found = _gradient(lambda x: sparse_kl(x, target, temperature=temperature), student.float())
    expected = _gradient(lambda x: _dense_kl(teacher, x, temperature), student)
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-4, atol=1e-6 * max(1.0, temperature)
    )


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(2, 30), temperatures, st.data())
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(
    seed: int, num_classes: int, temperature: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, num_classes))
    teacher = _logits(seed, num_classes).float()
    target = _target(teacher, k, temperature)
    loss = sparse_kl(teacher, target, temperature=temperature)
    assert float(loss.abs().max()) <= 2e-6 * temperature**2
    gradient = _gradient(lambda x: sparse_kl(x, target, temperature=temperature), teacher)
    assert float(gradient.abs().max()) <= 1e-6 * max(temperature, 1.0)


def test_logits_of_the_tail_get_the_gradient_of_their_sum_alone() -> None:
    """Within the tail the student is free: its shares of the gradient are its own probabilities."""
    teacher, student = _logits(0, 9), _logits(1, 9)
    target = _target(teacher, 4, 1.0)
    gradient = _gradient(lambda x: sparse_kl(x, target), student.float()).double() * N
    probs = student.softmax(1)
    tail = torch.ones(N, 9, dtype=torch.bool).scatter(1, teacher.topk(4, dim=1).indices, False)
    share = gradient[tail].reshape(N, 5) / probs[tail].reshape(N, 5)
    torch.testing.assert_close(share, share[:, :1].expand(N, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e3, 1e5, 1e30])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_extreme_logits_keep_loss_and_gradient_finite(size: float, k: int) -> None:
    teacher = _logits(0, 5)
    student = torch.zeros(N, 5)
    student[torch.arange(N), torch.arange(N) % 5] = size
    student[1::2] *= -1
    target = _target(teacher, k, 1.0)
    loss = sparse_kl(student, target)
    gradient = _gradient(lambda x: sparse_kl(x, target), student)
    assert bool(loss.isfinite().all())
    assert bool((loss >= -1e-6).all())
    assert float(loss.max()) > size / 1e3
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) <= 1 / N + 1e-6


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("size", [100.0, 6e4, 1e6])
def test_extreme_teachers_keep_loss_and_gradient_finite(k: int, size: float) -> None:
    """Teachers far surer than float16 can say, through the real encodings."""
    teacher, student = torch.zeros(N, 5), _logits(1, 5).float()
    teacher[torch.arange(N), torch.arange(N) % 5] = size
    for encoding in (TopK(k), Packed(k), Packed(5, 0.1), Dense("f2"), Dense("u1")):
        fields = encoding.encode(teacher)
        target = encoding.decode(fields, num_classes=5, temperature=1.0)
        loss = sparse_kl(student, target)
        expected = F.cross_entropy(student, torch.arange(N) % 5, reduction="none")
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        gradient = _gradient(lambda x, t=target: sparse_kl(x, t), student)
        assert bool(gradient.isfinite().all())


# --- rows that keep different numbers of classes -------------------------------------------


def _mixed_rows(num_classes: int) -> Tensor:
    """Return logits (6, C): a sure row, an even one, and four between."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 1, (N, num_classes)))
    logits *= torch.tensor([60.0, 0.0, 0.5, 2.0, 4.0, 8.0])[:, None]
    return logits


def _bucketed_kl(target: SparseTarget, student_NC: Tensor, temperature: float) -> Tensor:
    """Return each row's KL over its kept classes and one bucket, from dense probabilities."""
    assert target.indices_NK is not None
    out = []
    num_classes = student_NC.shape[1]
    probs_NC = (student_NC.double() / temperature).softmax(1)
    for row, probs in enumerate(probs_NC):
        present = target.indices_NK[row] < num_classes
        classes = target.indices_NK[row][present]
        p = target.log_probs_NK[row][present].double().exp()
        q = probs[classes]
        if len(classes) < num_classes:
            others = torch.ones(num_classes, dtype=torch.bool)
            others[classes] = False
            p = torch.cat([p, target.log_tail_N[row].double().exp()[None]])
            q = torch.cat([q, probs[others].sum()[None]])
        out.append((p * (p / q).log()).sum())
    return torch.stack(out) * temperature**2


@pytest.mark.parametrize("num_classes", [6, 100, 128, 129, 600])
@pytest.mark.parametrize("text", ["adaptive:1", "adaptive:0.02", "adaptive:0.002", "adaptive:1e-9"])
@pytest.mark.parametrize("temperature", [1.0, 1.7, 4.0])
def test_adaptive_rows_count_the_classes_they_keep_and_one_bucket(
    num_classes: int, text: str, temperature: float
) -> None:
    encoding = parse_encoding(text, num_classes)
    fields = encoding.encode(_mixed_rows(num_classes))
    target = encoding.decode(fields, num_classes=num_classes, temperature=temperature)
    student = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (N, num_classes)))
    found = sparse_kl(student.float(), target, temperature=temperature)
    expected = _bucketed_kl(target, student, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * temperature**2)
    gradient = _gradient(lambda x: sparse_kl(x, target, temperature=temperature), student.float())
    exact = _gradient(lambda x: _bucketed_kl(target, x, temperature), student)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-5)


def test_the_rows_of_that_test_keep_from_one_class_to_all() -> None:
    kept = []
    for text in ("adaptive:1", "adaptive:0.02", "adaptive:1e-9"):
        codes = parse_encoding(text, 6).encode(_mixed_rows(6))["codes"]
        kept.append((codes != 255).sum(1).tolist())
    assert kept[0] == [1] * N
    assert {1, 6} < set(kept[1])
    assert kept[2][1:5] == [6] * 4


@pytest.mark.parametrize("num_classes", [5, 200])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5, 1e30])
def test_extreme_logits_keep_adaptive_losses_and_gradients_finite(
    num_classes: int, size: float
) -> None:
    teacher = _mixed_rows(num_classes)
    teacher[0, 0] = 1e4
    student = torch.zeros(N, num_classes)
    student[torch.arange(N), torch.arange(N) % num_classes] = size
    student[1::2] *= -1
    for text in ("adaptive:0.5", "adaptive:0.004", "adaptive:1e-9"):
        encoding = parse_encoding(text, num_classes)
        target = encoding.decode(encoding.encode(teacher), num_classes=num_classes, temperature=1.0)
        loss = sparse_kl(student, target)
        gradient = _gradient(lambda x, t=target: sparse_kl(x, t), student)
        assert bool(loss.isfinite().all())
        assert bool((loss >= -1e-5).all())
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) <= 1 / N + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("k", [3, 8])
def test_students_of_other_precisions_are_computed_in_float32(dtype: torch.dtype, k: int) -> None:
    teacher, student = _logits(0, 8), _logits(1, 8).to(dtype)
    target = _target(teacher, k, 2.0)
    found = sparse_kl(student, target, temperature=2.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, sparse_kl(student.float(), target, temperature=2.0))
    gradient = _gradient(lambda x: sparse_kl(x, target, temperature=2.0), student)
    assert gradient.dtype == dtype
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


def test_under_autocast_it_is_still_float32() -> None:
    target = _target(_logits(0, 8), 3, 1.0)
    student = _logits(1, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sparse_kl(student, target)
    assert torch.equal(found, sparse_kl(student, target))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    target = _target(_logits(0, 4), 4, 1.0)
    with pytest.raises(ValueError, match="must be positive"):
        sparse_kl(torch.zeros(N, 4), target, temperature=temperature)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 20))
def test_the_label_loss_weighs_both_cross_entropies(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = _logits(seed, num_classes)
    own, partner = (torch.from_numpy(rng.integers(0, num_classes, N)) for _ in range(2))
    weights = torch.from_numpy((rng.integers(0, 257, N) / 256).astype(np.float32))
    log_probs = logits.log_softmax(1).numpy()
    rows = np.arange(N)
    w = weights.double().numpy()
    expected = -w * log_probs[rows, own.numpy()] - (1 - w) * log_probs[rows, partner.numpy()]
    found = label_loss(logits.float(), own, partner_labels_N=partner, weights_N=weights)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_without_mixing_the_label_loss_is_torchs_cross_entropy_whatever_the_partners() -> None:
    logits, own = _logits(0, 5).float(), torch.arange(N) % 5
    partner = torch.full((N,), -1)
    found = label_loss(logits, own, partner_labels_N=partner, weights_N=torch.ones(N))
    assert torch.equal(found, F.cross_entropy(logits, own, reduction="none"))


def test_unmixed_samples_have_their_own_gradient_alone() -> None:
    own, partner = torch.arange(N) % 5, torch.full((N,), -1)
    weights = torch.ones(N)
    weights[0], partner[0] = 0.25, 4
    found = _gradient(
        lambda x: label_loss(x, own, partner_labels_N=partner, weights_N=weights),
        _logits(0, 5).float(),
    )
    expected = _gradient(lambda x: F.cross_entropy(x, own, reduction="none"), _logits(0, 5).float())
    assert torch.equal(found[1:], expected[1:])
    assert not torch.allclose(found[0], expected[0])


def test_a_partner_that_counts_must_have_a_label() -> None:
    partner, weights = torch.full((N,), -1), torch.full((N,), 0.5)
    with pytest.raises(IndexError):
        label_loss(
            torch.zeros(N, 5), torch.arange(N) % 5, partner_labels_N=partner, weights_N=weights
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_loss_waits_for_the_gpu() -> None:
    teacher = _target(_logits(0, 9), 4, 1.0)
    tensors = [teacher.indices_NK, teacher.log_probs_NK, teacher.log_tail_N]
    target = SparseTarget(*(x.cuda() for x in tensors if x is not None))
    student, own, ones = _logits(1, 9).float().cuda(), torch.arange(N).cuda(), torch.ones(N).cuda()
    options = {"partner_labels_N": own.flip(0), "weights_N": ones}
    label_loss(student, own, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [
            label_loss(student, own, **options),
            sparse_kl(student, target),
            sparse_kl(student, target, direction="reverse"),
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(loss.isfinite().all()) for loss in losses)


def test_the_label_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    logits, own = _logits(0, 5).half(), torch.arange(N) % 5
    weights = torch.full((N,), 0.25)
    options = {"partner_labels_N": own.flip(0), "weights_N": weights}
    found = label_loss(logits, own, **options)
    assert torch.equal(found, label_loss(logits.float(), own, **options))
