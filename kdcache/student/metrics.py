"""How good a student is, against labels and against its teacher, over all and class by class.

Numbers stay on the device until the end. With torch.distributed, each process brings its own
samples, or none; all get the score of all of them, since torchmetrics' states are added up.

Sums by class are a metric of our own: torchmetrics' average=None counts in classes x classes bins,
which takes 9 s and 3.5 GB a batch at 21,843 classes.

Letters: N samples, C classes, V values of a sample, M samples with a label.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MaxMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from kdcache.errors import UsageError
from kdcache.models.running import run_network
from kdcache.replay.batch import Batch
from kdcache.replay.stream import ReplayStream
from kdcache.student.classes import ClassTable
from kdcache.student.losses import sparse_kl
from kdcache.targets.target import SparseTarget

BINS = 15  # of the confidence, for the calibration error
TOP = 5
# The values of a sample; the last two are the teacher's.
_SAMPLES, _RIGHT, _AGREEING, _KL, _BROKEN, _TAUGHT_RIGHT, _TAUGHT_TOP = VALUES = range(7)


@dataclass(frozen=True)
class Score:
    """Means over a dataset; None where it has no labels, or no targets.

    top1: share of labelled samples whose label is the student's first class. top5: among its first
    five; None below six classes. kl_nats: KL(teacher || student) at temperature 1. agreement: share
    on which student and teacher name the same class first. calibration_error: mean distance between
    confidence and top-1 in 15 bins of the confidence, at temperature 1. teacher_top1, teacher_top5:
    the teacher's own; None, too, where targets keep fewer than five classes. classes: the same
    class by class; None with neither labels nor targets.

    Source of calibration_error: Guo et al. 2017, section 2, arXiv:1706.04599.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    kl_nats: float | None = None
    agreement: float | None = None
    calibration_error: float | None = None
    teacher_top1: float | None = None
    teacher_top5: float | None = None
    classes: ClassTable | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the scalars as plain values."""
        return {name: value for name, value in vars(self).items() if name != "classes"}


class ClassSums(Metric):
    """Sums of the samples' values by class, over all processes: float64 (classes, V)."""

    full_state_update = False
    sums_CV: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_classes, len(VALUES), dtype=torch.float64)
        self.add_state("sums_CV", zeros, dist_reduce_fx="sum")

    def update(self, classes_N: Tensor, values_NV: Tensor) -> None:
        """Add each sample's values to its class."""
        self.sums_CV.index_add_(0, classes_N, values_NV)

    def compute(self) -> Tensor:
        """Return the sums."""
        return self.sums_CV


@dataclass(frozen=True, eq=False)
class _Metrics:
    """The metrics of one evaluation. by_label: its last row is of the samples without a label."""

    by_label: ClassSums
    by_teacher: ClassSums
    top5: MulticlassAccuracy | None
    calibration: MulticlassCalibrationError

    @classmethod
    def of(cls, num_classes: int, device: torch.device) -> Self:
        """Return fresh metrics on a device."""
        options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        top5 = MulticlassAccuracy(top_k=TOP, average="micro", **options).to(device)
        return cls(
            by_label=ClassSums(num_classes + 1).to(device),
            by_teacher=ClassSums(num_classes).to(device),
            top5=top5 if num_classes > TOP else None,
            calibration=MulticlassCalibrationError(n_bins=BINS, **options).to(device),
        )


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    stream: ReplayStream,
    *,
    preprocessing: Callable[[Tensor], Tensor],
    device: torch.device,
    num_batches: int | None = None,
    name: str = "the student",
    labelled: bool = True,
) -> Score:
    """Return a student's score on the rest of a stream; it is left in evaluation mode.

    preprocessing: of uint8 pixels. num_batches: after which to end; None for all. name: of the
    network, in messages. labelled: whether labels are of its classes.

    Where torch.distributed is initialised, all processes call this, each with its own part of the
    samples, which may be empty.

    Raises:
        UsageError: the student gives something else than finite logits of the targets' classes, or
            of the labels' where there are no targets.
    """
    network.eval()
    metrics: _Metrics | None = None
    num_classes = 0
    for batch in islice(stream, num_batches):
        if not (labelled and stream.labels_match):
            batch = replace(batch, labels=torch.full_like(batch.labels, -1))
        moved = batch.to(device)
        expected = None if moved.format is None else moved.format.num_classes
        images = preprocessing(moved.pixels)
        logits_NC = run_network(network, images, name=name, num_classes=expected).float()
        num_classes = logits_NC.shape[1]
        most = int(batch.labels.max())  # here, not on the device, which would have to be waited for
        if most >= num_classes:
            raise UsageError(
                f"{name} gave logits of {num_classes} classes, labels go up to {most}; "
                "name one of the dataset's classes"
            )
        metrics = metrics or _Metrics.of(num_classes, device)
        _update(metrics, logits_NC, batch=moved, labelled=int((batch.labels >= 0).sum()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method")  # this part may be empty
        widest = MaxMetric().to(device)
        widest.update(num_classes)
        num_classes = int(widest.compute())  # in all processes, also in those that know it
        return _score(metrics or _Metrics.of(num_classes, device))


def _update(metrics: _Metrics, logits_NC: Tensor, *, batch: Batch, labelled: int) -> None:
    """Add a batch, on the device. labelled: how many of its samples have a label."""
    num_classes = logits_NC.shape[1]
    first_N = logits_NC.argmax(1)
    zeros_N = torch.zeros_like(logits_NC[:, 0])
    agreeing_N, kl_N, best_N, in_top_N = zeros_N, zeros_N, None, zeros_N
    if batch.fields is not None:
        target = batch.target(1.0)
        log_probs_NC = target.dense(num_classes)
        best_N = log_probs_NC.argmax(1)
        agreeing_N, kl_N = first_N == best_N, sparse_kl(logits_NC, target)
        in_top_N = _in_top(log_probs_NC, target, labels_N=batch.labels)
    right_N, broken_N = first_N == batch.labels, ~logits_NC.isfinite().all(1)
    taught_N = zeros_N if best_N is None else best_N == batch.labels
    ones_N = torch.ones_like(zeros_N)
    values = (ones_N, right_N, agreeing_N, kl_N, broken_N, taught_N, in_top_N)
    values_NV = torch.stack([value.double() for value in values], 1)
    known_N = batch.labels >= 0
    metrics.by_label.update(batch.labels.masked_fill(~known_N, num_classes), values_NV)
    if best_N is not None:
        metrics.by_teacher.update(best_N, values_NV)
    if labelled:
        known_M = known_N.nonzero_static(size=labelled)[:, 0]
        logits_MC, labels_M = logits_NC[known_M], batch.labels[known_M]
        metrics.calibration.update(logits_MC.softmax(1), labels_M)
        if metrics.top5 is not None:
            metrics.top5.update(logits_MC, labels_M)


def _in_top(log_probs_NC: Tensor, target: SparseTarget, *, labels_N: Tensor) -> Tensor:
    """Return whether labels are among the teacher's first five classes, as 0 and 1 (N,).

    NaN, which sums keep, where a target does not say: fewer classes are kept, or there are no more.
    """
    num_classes = log_probs_NC.shape[1]
    if num_classes <= TOP:
        return torch.full_like(log_probs_NC[:, 0], torch.nan)
    found_N = (log_probs_NC.topk(TOP).indices == labels_N[:, None]).any(1).to(log_probs_NC.dtype)
    if target.indices_NK is None:
        return found_N
    return found_N.masked_fill((target.indices_NK < num_classes).sum(1) < TOP, torch.nan)


def _score(metrics: _Metrics) -> Score:
    """Return the score over all processes.

    Raises:
        UsageError: logits were not finite, in whichever process.
    """
    by_label, by_teacher = (
        sums.compute().cpu().numpy() for sums in (metrics.by_label, metrics.by_teacher)
    )
    total, labelled, taught = by_label.sum(0), by_label[:-1].sum(0), by_teacher.sum(0)
    if total[_BROKEN]:
        raise UsageError(
            "the student gave logits that are not finite; train with a lower learning rate"
        )
    is_taught, top_is_known = bool(taught[_SAMPLES]), not np.isnan(labelled[_TAUGHT_TOP])
    top5 = calibration = None
    if labelled[_SAMPLES]:
        top5 = None if metrics.top5 is None else float(metrics.top5.compute())
        # In float32, a bin of 4 million samples is wrong by 0.015.
        calibration = float(metrics.calibration.set_dtype(torch.float64).compute())
    return Score(
        samples=int(total[_SAMPLES]),
        top1=_mean(labelled, _RIGHT),
        top5=top5,
        kl_nats=_mean(taught, _KL),
        agreement=_mean(taught, _AGREEING),
        calibration_error=calibration,
        teacher_top1=_mean(labelled, _TAUGHT_RIGHT) if is_taught else None,
        teacher_top5=_mean(labelled, _TAUGHT_TOP) if is_taught and top_is_known else None,
        classes=_table(by_label[:-1], by_teacher),
    )


def _mean(sums_V: NDArray[np.float64], value: int) -> float | None:
    return float(sums_V[value] / sums_V[_SAMPLES]) if sums_V[_SAMPLES] else None


def _table(by_label: NDArray[np.float64], by_teacher: NDArray[np.float64]) -> ClassTable | None:
    labelled, taught = bool(by_label.any()), bool(by_teacher.any())
    if not labelled and not taught:
        return None
    sums_CV = by_label if labelled else by_teacher
    classes = np.flatnonzero(sums_CV[:, _SAMPLES])
    samples, right, agreeing, kl, *_ = sums_CV[classes].T
    return ClassTable(
        by="label" if labelled else "teacher",
        classes=classes,
        samples=samples.astype(np.int64),
        top1=right / samples if labelled else None,
        agreement=agreeing / samples if taught else None,
        kl_nats=kl / samples if taught else None,
    )
