"""Targets of several teachers of the same views, combined into one.

"logits" is the weighted mean of logits: the weighted geometric mean of probabilities, normalised.
Since shares add up to 1, the mean of logits and that of log-probabilities are one distribution, at
every temperature, be it applied before or after. "probabilities" is the weighted arithmetic mean at
temperature 1; a temperature is applied to the mean.

Of sparse targets, the classes that any teacher keeps are kept. A class that one teacher does not
keep has the mean of that teacher's tail, as if the tail were uniform; what nobody keeps is the new
tail. Its mass is exact where the teachers' tails are proportional to each other, hence for teachers
that are equal.

Letters: N rows, C classes, K kept entries, of all teachers together in a combination.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.targets.target import SparseTarget

Average = Literal["logits", "probabilities"]

FLOOR = -1e9  # of log-probabilities, so that rows of no mass at all do not turn into NaN


def check_shares(shares: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return the shares of so many teachers, scaled to add up to 1; None stands for equal ones.

    Raises:
        UsageError: there are not as many, or one is not a positive finite number, or is too small
            to count beside the largest.
    """
    if count < 1:
        raise UsageError(f"{count} teachers: name at least one")
    if shares is None:
        return (1 / count,) * count
    if len(shares) != count:
        raise UsageError(f"{len(shares)} shares for {count} teachers: give one for each, or none")
    for place, share in enumerate(shares):
        if not 0 < share < math.inf:  # NaN, too
            raise UsageError(
                f"share {share:g} of teacher {place + 1}: must be a positive finite number; "
                "leave out a teacher that is not to count"
            )
    largest = max(shares)
    total = math.fsum(share / largest for share in shares)
    scaled = tuple(share / largest / total for share in shares)
    if not all(scaled):
        least = scaled.index(0.0)
        raise UsageError(
            f"share {shares[least]:g} of teacher {least + 1} is nothing beside {largest:g}: "
            "leave that teacher out"
        )
    return scaled


def average_logits(parts: Sequence[Tensor], shares: Sequence[float], average: Average) -> Tensor:
    """Return the log-probabilities of the average, float32 (N, C): logits like any others.

    parts: logits (N, C) of each teacher, any float dtype. shares: as check_shares returns them.
    """
    log_probs = [part.double().log_softmax(1) for part in parts]
    return _mean(log_probs, shares, average).log_softmax(1).float()


def combine_targets(
    fulls: Sequence[SparseTarget],
    tempered: Sequence[SparseTarget],
    shares: Sequence[float],
    average: Average,
    *,
    num_classes: int,
    temperature: float,
) -> SparseTarget:
    """Return the average of the teachers' targets at a temperature.

    fulls: each teacher's target at temperature 1. tempered: the same at `temperature`, in the same
    order. shares: as check_shares returns them.

    If one teacher is dense, so is the average, and the others' tails are spread evenly. Otherwise a
    row keeps the classes that any teacher keeps, each once: K is the sum of the teachers' K, less
    entries that say C; if K is C or more, the average is dense. Where teachers exclude each other,
    so that no class is left with any mass, the row is uniform.
    """
    used = tempered if average == "logits" else fulls
    after = 1.0 if average == "logits" else 1 / temperature
    indices = [target.indices_NK for target in used if target.indices_NK is not None]
    if len(indices) < len(used):
        dense = [target.dense(num_classes).double() for target in used]
        return dense_target(after * _mean(dense, shares, average))

    indices_NK = torch.cat(indices, 1)
    first_NK = first_columns(indices_NK)
    columns_K = torch.arange(first_NK.shape[1], device=first_NK.device)
    absent_NK = (first_NK != columns_K) | (indices_NK == num_classes)
    entries, tails, start = [], [], 0
    for target, full, soft in zip(used, fulls, tempered, strict=True):
        # Where a teacher lacks a class, the column of that class is left with its tail's mean.
        lacking_N1 = log_tail_mean(target, target, num_classes=num_classes)[:, None]
        own_NK = first_NK[:, start : start + target.log_probs_NK.shape[1]]
        start += own_NK.shape[1]
        entries.append(
            lacking_N1.expand_as(first_NK).scatter(1, own_NK, target.log_probs_NK.double())
        )
        if average == "logits":
            tails.append(lacking_N1[:, 0])
        else:
            mean_N = log_tail_mean(full, soft, num_classes=num_classes, temperature=temperature)
            tails.append(temperature * mean_N)
    num_others_N = (num_classes - (~absent_NK).sum(1)).double()
    found = normalised(
        indices_NK.masked_fill(absent_NK, num_classes),
        (after * _mean(entries, shares, average)).masked_fill(absent_NK, -math.inf),
        after * _mean(tails, shares, average) + num_others_N.log(),
        num_classes=num_classes,
    )
    if indices_NK.shape[1] < num_classes:
        return found
    return dense_target(found.dense(num_classes))


def _mean(log_probs: Sequence[Tensor], shares: Sequence[float], average: Average) -> Tensor:
    """Return the logarithm of the weighted geometric or arithmetic mean, not normalised."""
    pairs = list(zip(log_probs, shares, strict=True))
    if average == "logits":
        return torch.stack([share * part for part, share in pairs]).sum(0)
    return torch.stack([part + math.log(share) for part, share in pairs]).logsumexp(0)


# --- rows of kept entries ------------------------------------------------------------------


def first_columns(indices_NK: Tensor) -> Tensor:
    """Return for each entry the first column of its row that has the same class, int64 (N, K)."""
    sorted_NK, order_NK = indices_NK.sort(dim=1, stable=True)
    starts_NK = torch.ones_like(sorted_NK, dtype=torch.bool)
    starts_NK[:, 1:] = sorted_NK[:, 1:] != sorted_NK[:, :-1]
    columns_K = torch.arange(sorted_NK.shape[1], device=sorted_NK.device)
    run_NK = (starts_NK * columns_K).cummax(1).values  # where the run of equal classes starts
    return torch.empty_like(order_NK).scatter(1, order_NK, order_NK.gather(1, run_NK))


def log_tail_mean(
    full: SparseTarget, tempered: SparseTarget, *, num_classes: int, temperature: float = 1.0
) -> Tensor:
    """Return the logarithm of the mean of p ** (1 / T) over the classes not kept, float64 (N,).

    full: at temperature 1; p are its probabilities. tempered: at `temperature`, T. Both sparse.
    -inf where there is no tail. A row that keeps nothing is uniform.
    """
    assert full.indices_NK is not None
    num_others_N = num_classes - (full.indices_NK < num_classes).sum(1)
    log_others_N = num_others_N.clamp(min=1).double().log()
    log_mean_N = full.log_tail_N.double() - log_others_N
    if temperature == 1:
        return log_mean_N
    largest_N1, place_N1 = full.log_probs_NK.double().max(1, keepdim=True)
    # What the tempered target was divided by, seen in its largest entry.
    log_sum_N1 = largest_N1 / temperature - tempered.log_probs_NK.double().gather(1, place_N1)
    power_N = tempered.log_tail_N.double() + log_sum_N1[:, 0] - log_others_N
    return power_N.where(largest_N1[:, 0] > -math.inf, log_mean_N / temperature)


def normalised(
    indices_NK: Tensor, entries_NK: Tensor, tail_N: Tensor, *, num_classes: int
) -> SparseTarget:
    """Return the target of unnormalised masses; of no mass at all, the uniform one.

    indices_NK: num_classes where there is no entry. entries_NK, tail_N: logarithms, float64.
    """
    total_N1 = torch.cat([entries_NK, tail_N[:, None]], 1).logsumexp(1, keepdim=True)
    empty_N1 = total_N1 == -math.inf
    return SparseTarget(
        indices_NK.masked_fill(empty_N1, num_classes),
        (entries_NK - total_N1).masked_fill(empty_N1, -math.inf).float(),
        (tail_N - total_N1[:, 0]).masked_fill(empty_N1[:, 0], 0.0).float(),
    )


def dense_target(log_probs_NC: Tensor) -> SparseTarget:
    """Return the dense target of log-probabilities up to a constant."""
    log_probs_NC = log_probs_NC.clamp(min=FLOOR).log_softmax(1).float()
    return SparseTarget(None, log_probs_NC, torch.full_like(log_probs_NC[:, 0], -math.inf))
