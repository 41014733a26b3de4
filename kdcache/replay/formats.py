"""How targets are read from their fields: of one cache, or of several that are averaged."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from kdcache.targets.combine import Average, combine_targets
from kdcache.targets.encoding import Encoding
from kdcache.targets.labels import Mapping, map_target
from kdcache.targets.target import Fields, SparseTarget

Arrays = dict[str, NDArray[Any]]
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class TargetFormat:
    """Targets as one cache holds them."""

    encoding: Encoding
    num_classes: int

    def decode(self, fields: Fields, *, temperature: float) -> SparseTarget:
        """Return the teacher's distribution for each row of encoded targets (N, width).

        Raises:
            UsageError: the encoding does not serve this temperature.
        """
        return self.encoding.decode(fields, num_classes=self.num_classes, temperature=temperature)

    def check_temperature(self, temperature: float) -> None:
        """Check that targets can be read at a temperature.

        Raises:
            UsageError: they cannot.
        """
        self.encoding.check_temperature(temperature)

    def in_range(self, arrays: Arrays) -> bool:
        """Return whether encoded targets name no class beyond the last."""
        return self.encoding.in_range(arrays, self.num_classes)


@dataclass(frozen=True, eq=False)
class JoinedFormat:
    """Targets of several teachers, averaged, then in the student's classes.

    The fields of part i are named "i.NAME". shares: of each part in the mean, sum 1. mapping: of
    the teachers' classes to the student's; None leaves them.
    """

    parts: tuple[TargetFormat, ...]
    shares: tuple[float, ...]
    average: Average
    mapping: Mapping | None

    @property
    def num_classes(self) -> int:
        """Return the student's classes."""
        return self.parts[0].num_classes if self.mapping is None else self.mapping.num_student

    def decode(self, fields: Fields, *, temperature: float) -> SparseTarget:
        """Return the distribution to learn for each row of encoded targets (N, width).

        Raises:
            UsageError: an encoding does not serve this temperature.
        """
        split = [_part(fields, number) for number in range(len(self.parts))]
        fulls, tempered = (
            [p.decode(f, temperature=t) for p, f in zip(self.parts, split, strict=True)]
            for t in (1.0, temperature)
        )
        joined = self._join(fulls, tempered, temperature)
        if self.mapping is None:
            return joined
        full = joined if temperature == 1 else self._join(fulls, fulls, 1.0)
        mapping = _on_device(self.mapping, full.log_tail_N.device)
        return map_target(full, joined, mapping, temperature=temperature)

    def _join(
        self, fulls: list[SparseTarget], tempered: list[SparseTarget], temperature: float
    ) -> SparseTarget:
        if len(self.parts) == 1:
            return tempered[0]
        return combine_targets(
            fulls,
            tempered,
            self.shares,
            self.average,
            num_classes=self.parts[0].num_classes,
            temperature=temperature,
        )

    def check_temperature(self, temperature: float) -> None:
        """Check that targets can be read at a temperature.

        Raises:
            UsageError: they cannot.
        """
        for part in self.parts:
            part.check_temperature(temperature)

    def in_range(self, arrays: Arrays) -> bool:
        """Return whether encoded targets name no class beyond the last."""
        return all(part.in_range(_part(arrays, n)) for n, part in enumerate(self.parts))


@lru_cache(maxsize=8)
def _on_device(mapping: Mapping, device: torch.device) -> Mapping:
    """Return a mapping that was copied once: a copy in each step would have to be waited for."""
    return mapping.to(device)


def field_name(part: int, name: str) -> str:
    """Return what a field of a part is called among those of all."""
    return f"{part}.{name}"


def _part(fields: dict[str, Value], number: int) -> dict[str, Value]:
    prefix = field_name(number, "")
    return {n.removeprefix(prefix): f for n, f in fields.items() if n.startswith(prefix)}
