"""Teachers made of teachers: several averaged, or one in other classes; and how all are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcache.data.classes import misplaced
from kdcache.errors import UsageError
from kdcache.identity import digest
from kdcache.models.specs import absolute_spec
from kdcache.models.teacher import IMAGENET, Precision, Preprocessing, Teacher, load_teacher
from kdcache.targets.combine import Average, average_logits, check_shares
from kdcache.targets.labels import LabelMap, Mapping, map_logits, resolve


@dataclass(frozen=True)
class TeacherSpec:
    """How a teacher is loaded; what a process is given that is to load one.

    spec, weights: of the network; weights is None where the spec names them. others: specs of those
    that are averaged with it. shares: of each in the mean, spec's first; None gives each the same.
    average: what the mean is of; that of logits is that of log-probabilities. labels: of the
    networks' classes to those of the targets. usual: of each network in turn, where its source
    says nothing; ImageNet's for those not listed. The rest is of all networks, as load_teacher's.
    """

    spec: str
    weights: Path | None = None
    num_classes: int | None = None
    preprocessing: Preprocessing | None = None
    usual: tuple[Preprocessing, ...] = ()
    precision: Precision = "float32"
    compiled: bool = False
    others: tuple[str, ...] = ()
    shares: tuple[float, ...] | None = None
    average: Average = "logits"
    labels: LabelMap | None = None

    def absolute(self) -> "TeacherSpec":
        """Return the same for a process in another folder."""
        return replace(
            self,
            spec=absolute_spec(self.spec),
            others=tuple(map(absolute_spec, self.others)),
            weights=None if self.weights is None else self.weights.absolute(),
        )

    def load(self, device: str) -> Teacher:
        """Return the teacher on a device.

        Raises:
            UsageError: as load_teacher; or shares are not as many as teachers.
        """
        specs = (self.spec, *self.others)
        if self.shares is not None and not self.others:
            raise UsageError("--shares: are of several teachers, found one; leave them out")
        shares = check_shares(self.shares, len(specs))
        if self.others and self.weights is not None:
            raise UsageError(
                "--weights: of which teacher? With several, name each one's in its spec: "
                "SOURCE:NAME@WEIGHTS"
            )
        members = [
            load_teacher(
                spec,
                self.weights,
                num_classes=self.num_classes,
                preprocessing=self.preprocessing,
                usual=usual,
                precision=self.precision,
                device=device,
            )
            for spec, usual in zip(specs, (*self.usual, *[IMAGENET] * len(specs)), strict=False)
        ]
        if self.compiled:
            members = [
                replace(m, network=cast(nn.Module, torch.compile(m.network)), compiled=True)
                for m in members
            ]
        teacher = members[0]
        if self.others:
            teacher = average_teachers(members, shares, average=self.average)
        return teacher if self.labels is None else map_teacher(teacher, self.labels)


class _Averaged(nn.Module):
    """The mean of several teachers, of uint8 pixels."""

    def __init__(
        self, members: Sequence[Teacher], shares: tuple[float, ...], average: Average
    ) -> None:
        super().__init__()
        self.members, self.shares, self.average = members, shares, average

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        parts = [member(pixels_N3HW) for member in self.members]
        for member, logits_NC in zip(self.members, parts, strict=True):
            if logits_NC.shape[1] != parts[0].shape[1]:
                raise UsageError(
                    f"teacher {member.spec}: has {logits_NC.shape[1]} classes, "
                    f"{self.members[0].spec} has {parts[0].shape[1]}; average teachers of the same "
                    "classes, or make a cache with --labels of each and average these in training"
                )
        return average_logits(parts, self.shares, self.average)


def average_teachers(
    members: Sequence[Teacher], shares: tuple[float, ...], *, average: Average = "logits"
) -> Teacher:
    """Return the mean of teachers of the same classes, size and precision; shares sum to 1.

    Raises:
        UsageError: their sources give classes of one name other numbers.
    """
    first = members[0]
    names = [member.classes for member in members if member.classes is not None]
    if any(len(other) == len(names[0]) and misplaced(other, names[0]) for other in names):
        specs = ", ".join(member.spec for member in members)
        raise UsageError(f"teachers {specs}: number classes of one name otherwise; average others")
    licences = {member.licence for member in members}
    parts = {
        "members": [_named(member) for member in members],
        "shares": shares,
        "average": average,
    }
    return replace(
        first,
        network=_Averaged(members, shares, average).eval(),
        spec=" + ".join(member.spec for member in members),
        weights_id=digest([member.weights_id for member in members]),
        takes="pixels",
        classes=names[0] if names else None,
        licence=licences.pop() if len(licences) == 1 else None,
        parts=parts,
        warnings=tuple(sentence for member in members for sentence in member.warnings),
    )


def _named(member: Teacher) -> dict[str, Any]:
    """Return what a mean keeps of a member: its fingerprint, and how it normalises."""
    return {name: member.description[name] for name in ("id", "mean", "std")}


class _Mapped(nn.Module):
    """A teacher in other classes, of uint8 pixels. The mapping is settled by its first logits."""

    def __init__(self, teacher: Teacher, labels: LabelMap) -> None:
        super().__init__()
        self.teacher, self.labels = teacher, labels
        self.mapping: Mapping | None = None

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        logits_NC = self.teacher(pixels_N3HW)
        if self.mapping is None:
            self.mapping = resolve(
                self.labels,
                num_classes=logits_NC.shape[1],
                names=self.teacher.classes,
                source=f"{self.labels.file}, for teacher {self.teacher.spec}",
            ).to(logits_NC.device)
        return map_logits(logits_NC, self.mapping)


def map_teacher(teacher: Teacher, labels: LabelMap) -> Teacher:
    """Return a teacher of the student's classes, whose probabilities are sums of its own."""
    return replace(
        teacher,
        network=_Mapped(teacher, labels).eval(),
        takes="pixels",
        classes=labels.classes,
        parts={**teacher.parts, "labels": labels.id},
    )
