"""What a student knows class by class, in memory and as CSV. Letter: R classes with samples."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import UsageError
from kdcache.files import write_whole


@dataclass(frozen=True, eq=False)
class ClassTable:
    """One row for each class that has samples, in the order of the classes.

    by: what a sample's class is: its label, or, where no sample has one that the teacher knows,
    the teacher's first class. classes, samples: int64 (R,). top1, agreement, kl_nats: float64 (R,),
    means as in Score; None where there are no labels, or no targets.
    """

    by: Literal["label", "teacher"]
    classes: NDArray[np.int64]
    samples: NDArray[np.int64]
    top1: NDArray[np.float64] | None
    agreement: NDArray[np.float64] | None
    kl_nats: NDArray[np.float64] | None

    @property
    def quality(self) -> tuple[str, NDArray[np.float64]]:
        """Return what classes are ranked by, top1 or else agreement: its name and values (R,)."""
        if self.top1 is not None:
            return "top1", self.top1
        assert self.agreement is not None  # a table has labels or targets
        return "agreement", self.agreement

    def worst_first(self) -> NDArray[np.intp]:
        """Return the rows from the worst class to the best; of equals, greater KL is worse."""
        kl = np.zeros(len(self.classes)) if self.kl_nats is None else self.kl_nats
        return np.lexsort((self.classes, -kl, self.quality[1]))


def write_classes(table: ClassTable, path: Path, *, names: Sequence[str] | None = None) -> None:
    """Write a table as CSV: class, name, samples, top1, agreement, kl_nats; empty for None.

    names: of all classes, by number; None leaves that column out.

    Raises:
        UsageError: the file cannot be written.
    """
    columns = {
        "class": table.classes,
        "name": None if names is None else [names[number] for number in table.classes],
        "samples": table.samples,
        "top1": _texts(table, table.top1),
        "agreement": _texts(table, table.agreement),
        "kl_nats": _texts(table, table.kl_nats),
    }
    shown = {name: column for name, column in columns.items() if column is not None}

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(shown)
            writer.writerows(zip(*shown.values(), strict=True))

    try:
        write_whole(path, write)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written: {error.strerror}; name a file in a folder that is there"
        ) from error


def _texts(table: ClassTable, values: NDArray[np.float64] | None) -> list[str]:
    return [""] * len(table.classes) if values is None else [f"{value:.6g}" for value in values]
