"""What a teacher said of views, counted; pure.

Invariant: each view counts once in every count that can be made of it.

Letters: M views, C classes, K kept entries.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.cache.layout import Span
from kdcache.targets.target import SparseTarget

NONE = -1  # in the place of a class
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Said:
    """What the teacher said of M views, each named by tar, row and view.

    confidence: probability of its likeliest class, best. second: the next; -1 where none is known.
    entropy: nats. labels: of the image that has the larger share in a view, -1 for none. agreed:
    probability of that label; NaN without one.
    """

    tars: I64
    rows: I64
    views: I64
    confidence: F32
    entropy: F32
    best: I64
    second: I64
    labels: I64
    agreed: F32

    def __len__(self) -> int:
        return len(self.tars)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return all views of several, at least one."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def what_was_said(
    target: SparseTarget, *, tar: int, view: int, rows: I64, labels: I64, num_classes: int
) -> Said:
    """Return what a target of temperature 1 says of M rows of a tar in a view.

    What is not kept is spread evenly over the classes that are not. labels: -1 for none.
    """
    logs_MK, tail_M = target.log_probs_NK.double(), target.log_tail_N.double()
    classes_MK = target.indices_NK
    if classes_MK is None:
        classes_MK = torch.arange(num_classes).expand(len(logs_MK), -1)
    kept_MK = classes_MK < num_classes
    others_M = (num_classes - kept_MK.sum(1)).clamp(min=1)
    each_M = tail_M - others_M.log()
    top = logs_MK.topk(min(2, logs_MK.shape[1]), dim=1)
    best_M2 = classes_MK.gather(1, top.indices)
    best_M2 = torch.where(best_M2 < num_classes, best_M2, NONE)
    second_M = best_M2[:, 1] if best_M2.shape[1] == 2 else torch.full((len(rows),), NONE)
    is_label_MK = classes_MK == torch.from_numpy(labels)[:, None]
    label_M = torch.where(
        is_label_MK.any(1), logs_MK.masked_fill(~is_label_MK, -torch.inf).amax(1), each_M
    )
    label_M = torch.where(torch.from_numpy(labels) < 0, torch.nan, label_M)
    entropy_M = _share_of_entropy(logs_MK, logs_MK).sum(1) + _share_of_entropy(tail_M, each_M)
    count = len(rows)
    return Said(
        tars=np.full(count, tar, np.int64),
        rows=rows,
        views=np.full(count, view, np.int64),
        confidence=_plain(top.values[:, 0].exp()),
        entropy=_plain(entropy_M.clamp(min=0)),
        best=best_M2[:, 0].numpy(),
        second=second_M.numpy(),
        labels=labels,
        agreed=_plain(label_M.exp()),
    )


def _share_of_entropy(logs: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
    """Return -p log q of logarithms, 0 where p is."""
    return torch.where(logs == -torch.inf, 0.0, -logs.exp() * each)


def _plain(values: torch.Tensor) -> F32:
    return values.float().numpy()


def main_labels(labels: I64, partners: I64, shares: NDArray[np.float64]) -> I64:
    """Return the label of the larger part of each view. partners: rows. shares: of the row itself.

    Equal parts count as the row's own.
    """
    return np.where(shares >= 0.5, labels, labels[partners])


def histogram(values: F32, *, top: float, bins: int) -> I64:
    """Return how many values lie in each of equal bins from 0 to top.

    What lies beyond counts in the last bin or the first; NaN, which is no value, in none.
    """
    there = values[~np.isnan(values)]
    places = np.clip(there / top * bins, 0, bins - 1).astype(np.int64)
    return np.bincount(places, minlength=bins)


@dataclass(frozen=True)
class ClassRow:
    """A class in the views that are of it.

    confidence: mean. agreement: share of views in which the teacher named it first. other: what
    stood against it most often, in so many (times) of the views; -1 for nothing.
    """

    number: int
    views: int
    confidence: float
    agreement: float
    other: int
    times: int


def class_rows(groups: I64, others: I64, said: Said) -> list[ClassRow]:
    """Return the classes that views are of, in order. groups: class of each view, -1 for none.

    others: the class that stands against it in each view, -1 for none.
    """
    found = []
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.unique(groups[groups >= 0]))
    for start, end in pairwise([*starts.tolist(), len(order)]):
        views, number = order[start:end], int(groups[order[start]])
        against, times = np.unique(others[views][others[views] >= 0], return_counts=True)
        most = int(times.argmax()) if len(times) else None
        found.append(
            ClassRow(
                number=number,
                views=len(views),
                confidence=float(said.confidence[views].mean()),
                agreement=float((said.best[views] == number).mean()),
                other=NONE if most is None else int(against[most]),
                times=0 if most is None else int(times[most]),
            )
        )
    return found


def extremes(entropy: F32, samples: I64, count: int) -> tuple[list[int], list[int]]:
    """Return the views of least and of most entropy, `count` of each and each sample but once.

    samples: number of each view's sample.
    """
    order = np.argsort(entropy, kind="stable")

    def first(views: I64) -> list[int]:
        _, places = np.unique(samples[views], return_index=True)
        found: list[int] = views[np.sort(places)[:count]].tolist()
        return found

    return first(order), first(order[::-1])


def coverage(
    done: Collection[Span], *, num_tars: int, num_runs: int, most: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the share of spans that are there, in at most so many rows and columns.

    Rows are of tars, columns of runs: each of equally many, to within one.
    """
    height, width = min(num_tars, most[0]), min(num_runs, most[1])
    spans = np.array(sorted(done), np.int64).reshape(-1, 2)
    cells = spans[:, 0] * height // num_tars * width + spans[:, 1] * width // num_runs
    counts = np.bincount(cells, minlength=height * width).reshape(height, width)
    tars = np.bincount(np.arange(num_tars) * height // num_tars)
    runs = np.bincount(np.arange(num_runs) * width // num_runs)
    return counts / np.outer(tars, runs)
