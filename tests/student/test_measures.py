"""Claims about top-5, calibration and the table by class, and about several processes."""

import dataclasses
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.replay.batch import Batch
from kdcache.replay.formats import TargetFormat
from kdcache.student.classes import ClassTable
from kdcache.student.metrics import Score, evaluate
from kdcache.targets.encoding import Dense, parse_encoding
from tests import tiny

CPU = torch.device("cpu")


@dataclasses.dataclass
class Part:
    """Some batches of a stream."""

    batches: list[Batch]
    labels_match: bool = True

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Readout(nn.Module):
    """Logits read off the pixels."""

    def __init__(self, num_classes: int, *, scale: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight = scale * torch.randn(12, num_classes, generator=generator)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return (images_N3HW.flatten(1) - 0.5) @ self.weight


def _batches(
    seed: int, num_classes: int, *, count: int = 53, size: int = 7, labelled: float = 0.8
) -> list[Batch]:
    """Return views of noise; teacher and labels are often of the student's opinion."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 3, 2, 2), dtype=np.uint8))
    logits = Readout(num_classes)(tiny.PLAIN(pixels)).numpy()
    teacher = torch.from_numpy((logits + rng.normal(0, 3, logits.shape)).astype(np.float32))
    labels = (logits + rng.normal(0, 3, logits.shape)).argmax(1)
    labels = torch.from_numpy(np.where(rng.random(count) < labelled, labels, -1))
    form = TargetFormat(Dense("f2"), num_classes)
    fields = form.encoding.encode(teacher)
    nothing = torch.zeros(count, dtype=torch.int64)
    return [
        Batch(
            pixels[rows], labels[rows], nothing[rows], torch.ones(count)[rows],
            nothing[rows], nothing[rows], nothing[rows],
            {name: values[rows] for name, values in fields.items()}, form,
        )
        for rows in torch.arange(count).split(size)
    ]  # fmt: skip


def _without_targets(batches: list[Batch]) -> list[Batch]:
    return [dataclasses.replace(batch, fields=None, format=None) for batch in batches]


def _evaluate(batches: list[Batch], num_classes: int, **options: Any) -> Score:
    stream: Any = Part(batches, **options)
    return evaluate(Readout(num_classes), stream, preprocessing=tiny.PLAIN, device=CPU)


def _calibration_error(probs_NC: np.ndarray, labels_N: np.ndarray) -> float:
    confidence, right = probs_NC.max(1), probs_NC.argmax(1) == labels_N
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [
        (bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean())
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def _arrays(batches: list[Batch], num_classes: int) -> tuple[np.ndarray, ...]:
    """Return logits, labels and the teacher's log-probabilities of all samples."""
    logits = [Readout(num_classes)(tiny.PLAIN(batch.pixels)) for batch in batches]
    teacher = [batch.target(1.0).dense(num_classes) for batch in batches]
    labels = [batch.labels for batch in batches]
    logits, labels, teacher = (torch.cat(x).numpy() for x in (logits, labels, teacher))
    return logits.astype(np.float64), labels, teacher.astype(np.float64)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.sampled_from([0.1, 0.8, 1.0]))
def test_measures_are_those_of_sklearn_and_numpy(
    seed: int, num_classes: int, labelled: float
) -> None:
    batches = _batches(seed, num_classes, labelled=labelled)
    logits, labels, teacher = _arrays(batches, num_classes)
    known = labels >= 0
    found = _evaluate(batches, num_classes)
    assert found.samples == len(labels)
    if not known.any():
        assert (found.top1, found.top5, found.calibration_error) == (None, None, None)
        return
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    assert found.top1 == accuracy_score(labels[known], logits[known].argmax(1))
    if num_classes < 6:
        assert found.top5 is None
    else:
        expected = top_k_accuracy_score(
            labels[known], logits[known], k=5, labels=np.arange(num_classes)
        )
        assert found.top5 == pytest.approx(expected)
    expected = _calibration_error(probs[known], labels[known])
    assert found.calibration_error == pytest.approx(expected, abs=1e-6)
    kl = (np.exp(teacher) * (teacher - np.log(probs))).sum(1)
    assert found.kl_nats == pytest.approx(kl.mean(), rel=1e-5, abs=1e-6)
    assert found.agreement == pytest.approx((logits.argmax(1) == teacher.argmax(1)).mean())
    assert found.teacher_top1 == accuracy_score(labels[known], teacher[known].argmax(1))
    if num_classes < 6:
        assert found.teacher_top5 is None
    else:
        options = {"k": 5, "labels": np.arange(num_classes)}
        expected = top_k_accuracy_score(labels[known], teacher[known], **options)
        assert found.teacher_top5 == pytest.approx(expected)


def _assert_table(
    found: ClassTable | None, classes: np.ndarray, **values: np.ndarray | None
) -> None:
    """Check a table against each sample's class, -1 for none, and values."""
    assert found is not None
    assert found.classes.tolist() == sorted(set(classes.tolist()) - {-1})
    assert found.samples.tolist() == [(classes == c).sum() for c in found.classes]
    for name, value in values.items():
        column = getattr(found, name)
        if value is None:
            assert column is None
        else:
            expected = [value[classes == c].mean() for c in found.classes]
            np.testing.assert_allclose(column, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 9])
def test_the_table_has_a_row_for_each_label_that_occurs(num_classes: int) -> None:
    batches = _batches(0, num_classes)
    logits, labels, teacher = _arrays(batches, num_classes)
    first, log_probs = logits.argmax(1), torch.from_numpy(logits).log_softmax(1).numpy()
    kl = (np.exp(teacher) * (teacher - log_probs)).sum(1)
    agreement = first == teacher.argmax(1)
    found = _evaluate(batches, num_classes).classes
    _assert_table(found, labels, top1=first == labels, agreement=agreement, kl_nats=kl)
    assert found is not None
    assert found.by == "label"
    untaught = _evaluate(_without_targets(batches), num_classes).classes
    _assert_table(untaught, labels, top1=first == labels, agreement=None, kl_nats=None)
    for options in ({"labelled": 0.0}, {}):  # labels of other classes count as none
        other = _evaluate(_batches(0, num_classes, **options), num_classes, labels_match=False)
        rows = teacher.argmax(1)
        _assert_table(other.classes, rows, top1=None, agreement=agreement, kl_nats=kl)
        assert other.classes is not None
        assert other.classes.by == "teacher"
        assert (other.top1, other.top5, other.calibration_error) == (None, None, None)


@pytest.mark.parametrize(("kept", "known"), [(4, False), (5, True), (9, True)])
def test_the_teachers_top5_is_known_where_five_classes_are_kept(kept: int, known: bool) -> None:
    """Its top-1 always is; both are as of all classes."""
    whole = _batches(0, 9)
    form = TargetFormat(parse_encoding(f"topk:{kept}", 9), 9)
    batches = [
        dataclasses.replace(
            batch, fields=form.encoding.encode(batch.target(1.0).dense(9)), format=form
        )
        for batch in whole
    ]
    found, expected = _evaluate(batches, 9), _evaluate(whole, 9)
    assert found.teacher_top1 == expected.teacher_top1 != found.top1
    assert found.teacher_top5 == (expected.teacher_top5 if known else None)
    untaught = _evaluate(_without_targets(whole), 9)
    assert (untaught.teacher_top1, untaught.teacher_top5) == (None, None)
    assert expected.teacher_top5 is not None


def test_with_neither_labels_nor_targets_only_samples_are_counted() -> None:
    found = _evaluate(_without_targets(_batches(0, 9, labelled=0.0)), 9)
    assert found == Score(53)
    assert found.classes is None
    assert _evaluate([], 9) == Score(0)


def test_labels_beyond_the_students_classes_are_refused() -> None:
    batches = _without_targets(_batches(0, 9))
    with pytest.raises(UsageError, match="gave logits of 3 classes, labels go up to"):
        _evaluate(batches, 3)


def test_the_calibration_error_of_millions_is_as_exact_as_that_of_thousands() -> None:
    """Sums in float32 grow by whole sixteenths beyond a million."""
    one, times = _without_targets(_batches(1, 2, labelled=1.0))[0], 300_000
    pixels, labels = one.pixels.repeat(times, 1, 1, 1), one.labels.repeat(times)
    many = dataclasses.replace(one, pixels=pixels, labels=labels)
    found, expected = (_evaluate([batch], 2).calibration_error for batch in (many, one))
    assert found == pytest.approx(expected, abs=1e-6)


# --- several processes ---------------------------------------------------------------------


def _plain(score: Score) -> dict[str, Any]:
    table = dataclasses.asdict(score.classes) if score.classes is not None else {}
    arrays = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in table.items()}
    return score.to_dict() | {f"classes.{name}": value for name, value in arrays.items()}


def _measure_shares(rank: int, folder: Path) -> None:
    """Evaluate shares of 8 batches as one of two processes, and write what came out."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), world_size=2, rank=rank
    )
    batches = _batches(0, 9)
    untaught = _without_targets(batches)
    cuts = ((batches, 5), (batches, 8), (batches, 0), (untaught, 2), ([], 0))
    parts = [share[:cut] if rank == 0 else share[cut:] for share, cut in cuts]
    found = [_plain(_evaluate(part, 9)) for part in parts]
    network = Readout(9)
    if rank == 1:
        network.weight[0, 0] = torch.nan
    stream: Any = Part(batches[rank : rank + 1])
    with pytest.raises(UsageError, match="not finite"):
        evaluate(network, stream, preprocessing=tiny.PLAIN, device=CPU)
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_each_process_has_the_score_of_all_samples(tmp_path: Path) -> None:
    """Shares of 5 and 3 batches, of all and none; without targets; nothing at all; one diverged."""
    children = [tiny.start(_measure_shares, rank, tmp_path) for rank in range(2)]
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    batches = _batches(0, 9)
    taught, untaught = (_plain(_evaluate(b, 9)) for b in (batches, _without_targets(batches)))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for score, expected in zip(
            found, (taught, taught, taught, untaught, _plain(Score(0))), strict=True
        ):
            assert score == {
                name: value if value is None or isinstance(value, str) else pytest.approx(value)
                for name, value in expected.items()
            }


# --- on a GPU ------------------------------------------------------------------------------


class Unwatched(Part):
    """Lets nobody wait for the device once the first batch is done."""

    def __iter__(self) -> Iterator[Batch]:
        try:
            for batch in self.batches:
                yield batch
                torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("labelled", [1.0, 0.8])
def test_batches_do_not_wait_for_the_gpu(labelled: float) -> None:
    batches = _batches(0, 9, labelled=labelled)
    stream: Any = Unwatched(batches)
    device = torch.device("cuda")
    found = evaluate(Readout(9).to(device), stream, preprocessing=tiny.PLAIN, device=device)
    expected = _evaluate(batches, 9).to_dict()
    assert found.to_dict() == pytest.approx(expected, rel=1e-4)
