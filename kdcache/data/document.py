"""A dataset on disk: `dataset.json` for people, `dataset.npz` beside it with a row for each sample.

Invariant: each file is replaced whole, and a pair that does not belong together is refused.
"""

import hashlib
import io
import os
import posixpath
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from kdcache.data.dataset import COLUMNS, ROW, Dataset, TarEntry, tar_digest
from kdcache.errors import CorruptError, DataError, UsageError
from kdcache.files import write_whole
from kdcache.stores.disk import Piece, read_piece
from kdcache.stores.location import Location, Place, parse_place
from kdcache.stores.store import Store

FORMAT: Literal[1] = 1
FILE_NAME = "dataset.json"

_AGAIN = "run kdcache index again"


class _Format(BaseModel):
    format: int


class _Samples(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    file: str
    sha256: str


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    id: str
    classes: tuple[str, ...] | None
    num_classes: int | None
    root: str
    tars: tuple[TarEntry, ...]
    samples: _Samples


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Write a dataset to a folder, or to a .json file and the .npz file beside it.

    A writer killed between the two files leaves a pair that load_dataset refuses.

    Raises:
        UsageError: the files cannot be written.
    """
    path = _json_path(path)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: getattr(dataset, name) for name in COLUMNS})
    data = buffer.getvalue()
    samples = path.with_suffix(".npz")
    if isinstance(dataset.root, Location):
        root = str(dataset.root)  # without credentials
    else:
        root = Path(os.path.relpath(dataset.root.resolve(), path.parent.resolve())).as_posix()
    document = _Document(
        format=FORMAT,
        id=dataset.id,
        classes=dataset.classes,
        num_classes=dataset.num_classes,
        root=root,
        tars=dataset.tars,
        samples=_Samples(file=samples.name, sha256=hashlib.sha256(data).hexdigest()),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(samples, lambda partial: partial.write_bytes(data))
        text = document.model_dump_json(indent=1) + "\n"
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; free space or name another folder") from error


def load_dataset(place: Place) -> Dataset:
    """Return the dataset saved in a folder or as a .json file; its tars are not read.

    place: on disk or in a store. Tars of a dataset that is in a store are there, too; those of one
    on disk are where it says, which may be a store.

    Raises:
        UsageError: there is none, or a newer kdcache wrote it.
        CorruptError: the files are damaged, or do not belong together.
        DataError: a tar's name leads out of the dataset's root.
    """
    path = _json_place(place)
    document = _read_document(path)
    root = _root(path, document)
    for name in (document.samples.file, *(tar.name for tar in document.tars)):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name:
            raise DataError(
                f"{path}: file name {name!r}, expected one below its folder; "
                "take the dataset from a source that you trust, or run kdcache index again"
            )
    dataset = Dataset(
        root=root,
        tars=document.tars,
        classes=document.classes,
        num_classes=document.num_classes,
        **_read_columns(path.parent, document),
    )
    most, classes = int(dataset.labels.max(initial=-1)), document.classes
    counts = {len(classes)} if classes is not None else set()
    if document.num_classes is not None:
        counts |= {document.num_classes}
    if len(counts) > 1 or any(count <= most for count in counts) or 0 in counts:
        raise CorruptError(f"{path}: {document.num_classes} classes, labels up to {most}; {_AGAIN}")
    for tar, entry in enumerate(dataset.tars):
        own = dataset.rows(tar)
        if tar_digest(dataset.uids[own], dataset.contents[own]) != entry.digest:
            raise CorruptError(
                f"{path}: {entry.name}: other digest than its samples have; {_AGAIN}"
            )
    if dataset.id != document.id:
        raise CorruptError(f"{path}: id {document.id}, its tars make {dataset.id}; {_AGAIN}")
    return dataset


def _json_path(path: Path) -> Path:
    return path if path.suffix == ".json" else path / FILE_NAME


def _json_place(place: Place) -> Place:
    if isinstance(place, Location):
        return place if place.name.endswith(".json") else place / FILE_NAME
    return _json_path(place)


def _root(path: Place, document: _Document) -> Place:
    """Return what a dataset's tars are below.

    Raises:
        DataError: that is no path, or one of this disk that somebody else's document names.
        UsageError: it is in an unknown kind of store.
    """
    text = document.root
    if "\0" in text:
        raise DataError(f"{path}: root {text!r} is no path; {_AGAIN}")
    if "://" in text:
        root = parse_place(text)
        if isinstance(root, Location) or not isinstance(path, Location):
            return root
    elif not isinstance(path, Location):
        return path.parent / text
    elif not text.startswith("/"):
        root = path.parent
        for part in PurePosixPath(posixpath.normpath(text)).parts:
            root = root.parent if part == ".." else root / part
        return root
    raise DataError(f"{path}: root {text!r} is not in a store, as the dataset is; {_AGAIN}")


def _read_document(path: Place) -> _Document:
    try:
        text = _read(path)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: missing; make it from tars with kdcache index {path.parent}, or from images "
            "with kdcache pack"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; check the path") from error
    try:
        found = _Format.model_validate_json(text).format
        if found > FORMAT:
            raise UsageError(
                f"{path}: dataset format {found}, this kdcache reads up to {FORMAT}; "
                f"install a kdcache that reads format {found}"
            )
        return _Document.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptError(f"{path}: {where or 'text'}: {first['msg']}; {_AGAIN}") from error


def _read(path: Place) -> bytes:
    return Store(path.parent).read(path.name) if isinstance(path, Location) else path.read_bytes()


def _read_columns(folder: Place, document: _Document) -> dict[str, NDArray[Any]]:
    path, sha256 = folder / document.samples.file, document.samples.sha256
    try:
        if isinstance(folder, Location):
            data = _read_samples(folder, document.samples)
        else:
            data = (folder / document.samples.file).read_bytes()
    except OSError as error:
        raise CorruptError(f"{path}: {error.strerror or 'missing'}; {_AGAIN}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptError(f"{path}: sha256 {found}, expected {sha256}; {_AGAIN}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in COLUMNS}
    except Exception as error:  # NumPy raises many kinds for bytes that are no .npz
        raise CorruptError(f"{path}: {error}; {_AGAIN}") from error
    shape = (sum(tar.num_rows for tar in document.tars),)
    for name, column in columns.items():
        if column.dtype != ROW[name] or column.shape != shape:
            raise CorruptError(
                f"{path}: {name} is {column.dtype} {column.shape}, "
                f"expected {ROW[name]} {shape}; {_AGAIN}"
            )
    return columns


def _read_samples(root: Location, samples: _Samples) -> bytes:
    """Return the rows of all samples, which are kept on this disk.

    Raises:
        FileNotFoundError: they are missing.
        UsageError: the store refuses, or does not answer.
    """
    size = Store(root).size(samples.file)
    if size is None:
        raise FileNotFoundError(samples.file)
    piece = Piece(root, samples.file, 0, size, samples.sha256)
    return read_piece(
        piece, is_right=lambda data: hashlib.sha256(data).hexdigest() == samples.sha256
    )
