"""Tars to a dataset: every tar is read once, and every key and label is checked.

Invariant: a dataset holds every uid once.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.data.dataset import COLUMNS, ROW, Dataset, TarEntry, tar_digest
from kdcache.data.document import load_dataset, save_dataset
from kdcache.data.ranges import StoredTar, find_stored_tars
from kdcache.data.tars import TarPath, key_at, scan_tar
from kdcache.errors import DataError, UsageError
from kdcache.identity import sample_uid
from kdcache.stores.location import Location, Place
from kdcache.stores.store import Store

__all__ = [
    "Dataset",
    "TarEntry",
    "build_index",
    "check_dataset",
    "find_tars",
    "load_dataset",
    "save_dataset",
]

_REMEDY = "restore the tar, or run kdcache index again"

_Rows = NDArray[np.void]  # of dtype ROW


def find_tars(folder: Place) -> list[TarPath]:
    """Return the tars below a folder, or a location of a store, sorted by path.

    Raises:
        UsageError: there is none, or the store refuses, does not answer or cannot list.
    """
    paths: list[TarPath]
    if isinstance(folder, Location):
        paths = [*find_stored_tars(folder)]
    else:
        paths = [*sorted(path for path in folder.rglob("*.tar") if path.is_file())]
    if not paths:
        raise UsageError(f"{folder}: no *.tar below it; name the folder that holds the tars")
    return paths


def build_index(
    paths: Sequence[TarPath],
    *,
    root: Place,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    label_field: str = "label",
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Return the dataset of tars, in the order given, all below root.

    num_classes: by default the number of classes, else one above the highest label.
    progress: called after each tar with 1.

    Raises:
        UsageError: no path, a path outside root, or num_classes other than the number of classes.
        DataError: a tar is bad, a key is there twice, two keys have one uid, or a label is beyond
            num_classes.
    """
    if not paths:
        raise UsageError("no tars to index; name at least one")
    if classes is not None and num_classes not in (None, len(classes)):
        raise UsageError(f"num_classes is {num_classes}, but {len(classes)} classes are named")
    if classes is not None:
        num_classes = len(classes)
    tars, tables = [], []
    for path in paths:
        name = _name_below(path, root)
        rows = _scan(path, label_field)
        if num_classes is not None:
            _check_labels(path, rows, num_classes=num_classes)
        digest = tar_digest(rows["uids"], rows["contents"])
        tars.append(TarEntry(name, len(rows), _size(path), digest))
        tables.append(rows)
        if progress is not None:
            progress(1)
    rows = np.concatenate(tables)
    if num_classes is None and rows["labels"].max() >= 0:
        num_classes = int(rows["labels"].max()) + 1
    dataset = Dataset(
        root=root,
        tars=tuple(tars),
        classes=None if classes is None else tuple(classes),
        num_classes=num_classes,
        **{name: np.ascontiguousarray(rows[name]) for name in COLUMNS},
    )
    _check_unique(dataset)
    return dataset


def check_dataset(dataset: Dataset, *, label_field: str = "label") -> None:
    """Read all tars again and compare them with the index.

    Raises:
        DataError: naming the first difference.
    """
    for tar in range(len(dataset.tars)):
        path, own = dataset.tar_path(tar), dataset.rows(tar)
        found, expected = _scan(path, label_field), dataset.tars[tar].num_rows
        if len(found) != expected:
            raise DataError(f"{path}: {len(found)} samples, the index has {expected}; {_REMEDY}")
        differs = np.array([found[name] != getattr(dataset, name)[own] for name in COLUMNS])
        if differs.any():
            row = int(differs.any(axis=0).argmax())
            names = [name for name, column in zip(COLUMNS, differs, strict=True) if column[row]]
            key = key_at(path, int(found["offsets"][row]))
            raise DataError(
                f"{path}: {key}, row {row}: other {', '.join(names)} than in the index; {_REMEDY}"
            )


def _size(path: TarPath) -> int:
    if isinstance(path, StoredTar):
        return Store(path.root).size(path.name) or 0
    return path.stat().st_size


def _name_below(path: TarPath, root: Place) -> str:
    if isinstance(path, StoredTar) or isinstance(root, Location):
        if not isinstance(path, StoredTar) or path.root != root:
            raise UsageError(f"{path}: expected a tar below {root}")
        return path.name
    try:
        name = Path(os.path.abspath(path)).relative_to(os.path.abspath(root)).as_posix()
        name.encode()
    except ValueError as error:  # UnicodeEncodeError among them
        raise UsageError(f"{path}: expected a path below {root}, in UTF-8: {error}") from error
    return name


def _scan(path: TarPath, label_field: str) -> _Rows:
    samples = scan_tar(path, label_field=label_field)
    rows = ((sample_uid(s.key), s.content, s.label, s.offset, s.size_bytes) for s in samples)
    return np.fromiter(rows, ROW)


def _check_labels(path: TarPath, rows: _Rows, *, num_classes: int) -> None:
    beyond = rows[rows["labels"] >= num_classes]
    if len(beyond):
        raise DataError(
            f"{path}: {key_at(path, int(beyond[0]['offsets']))}: label {beyond[0]['labels']}, "
            f"expected 0 to {num_classes - 1}; correct it, or the number of classes"
        )


def _check_unique(dataset: Dataset) -> None:
    """Refuse equal uids; keys are not kept, so the two tars are read again to tell why."""
    order = np.argsort(dataset.uids, kind="stable")
    ordered = dataset.uids[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(equal):
        return
    found = []
    for row in order[equal[0] : equal[0] + 2]:
        path = dataset.tar_path(int(np.searchsorted(dataset.starts, row, side="right")) - 1)
        found.append((path, key_at(path, int(dataset.offsets[row]))))
    (first, key), (second, other) = found
    if key == other:
        raise DataError(f"key {key} is in {first} and in {second}; keys must be unique: rename one")
    raise DataError(
        f"key {key} in {first} and key {other} in {second} have one 64-bit uid; rename one"
    )
