"""A cache as a Zarr v3 group: open, write a span, read a tile.

Invariant: a tile is read only under its commit record, since zarr reads a missing object as fill
values without a word; the fill values in it are checked against the record as well.
"""

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from kdcache.cache.info import info_from_attributes
from kdcache.cache.layout import Grid, Span, object_names
from kdcache.cache.manifest import (
    Commit,
    Seal,
    missing,
    read_commit,
    read_seal,
    summarise,
    write_commit,
    write_seal,
)
from kdcache.cache.objects import Folder
from kdcache.errors import CorruptError, IncompleteError, UsageError
from kdcache.targets.encoding import Fields
from kdcache.targets.fidelity import Fidelity

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Tile:
    """The targets of one tar in one view. fields: tensors (rows, width). usable: bool (rows,)."""

    fields: Fields
    usable: NDArray[np.bool_]


def is_cache(path: Path) -> bool:
    """Return whether a Zarr group stands at path."""
    return (path / "zarr.json").is_file()


def open_cache(path: Path) -> "Cache":
    """Return the cache at path.

    Raises:
        UsageError: no cache is there, its format is newer, or zarr runs a codec pipeline that skips
            checksums.
        CorruptError: its metadata are damaged.
    """
    if not is_cache(path):
        raise UsageError(f"{path}: no cache here; make one with kdcache precompute")
    check_pipeline()
    return Cache(path)


def check_pipeline() -> None:
    """Check that zarr verifies checksums.

    Raises:
        UsageError: zarr runs a codec pipeline that skips them.
    """
    pipeline = str(zarr.config.get("codec_pipeline.path"))
    if "zarrs" in pipeline:
        raise UsageError(
            f"zarr's codec pipeline is {pipeline}, which skips checksums on partial reads; "
            "unset codec_pipeline.path"
        )


class Cache:
    """An open cache. Survives fork and pickling: arrays are opened anew in each process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = Folder(path)
        self._pid = 0
        self._arrays: dict[str, Any] = {}
        self.info = info_from_attributes(self._root().attrs.asdict(), source=path)
        self.rows: NDArray[np.int64] = self._get("rows", slice(None)).astype(np.int64)
        shape, shards = self._array(self.info.specs[0].name).shape, self._span_views()
        self.grid = Grid(shape[0], shape[1], shards, shape[2], self.info.recipe.block)
        if self.rows.min() < 1 or self.rows.max() > self.grid.max_rows:
            raise CorruptError(f"{self.path}/rows: damaged or missing; take a sound copy of it")
        self.commit = lru_cache(maxsize=4096)(self._read_commit)
        self._proven = lru_cache(maxsize=4096)(self._prove)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_cache, (self.path,))

    def _root(self) -> zarr.Group:
        try:
            return zarr.open_group(str(self.path), mode="r+", use_consolidated=False)
        except Exception as error:
            raise CorruptError(f"{self.path}/zarr.json: damaged: {error}") from error

    def _span_views(self) -> int:
        shards = self._array(self.info.specs[0].name).shards
        if shards is None:
            raise CorruptError(f"{self.path}: arrays are not sharded; not a kdcache cache")
        return int(shards[1])

    def _array(self, name: str) -> Any:
        if self._pid != os.getpid():
            self._arrays, self._pid = {}, os.getpid()
        if name not in self._arrays:
            try:
                # Every object is written, even one of nothing but fill values.
                with zarr.config.set({"array.write_empty_chunks": True}):
                    self._arrays[name] = self._root()[name]
            except KeyError:
                raise CorruptError(f"{self.path}: array {name} is missing") from None
            except CorruptError:
                raise
            except Exception as error:  # zarr raises many kinds
                raise CorruptError(f"{self.path}/{name}/zarr.json: damaged: {error}") from error
        return self._arrays[name]

    def _get(self, name: str, where: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array(name)[where])
        except CorruptError:
            raise
        except Exception as error:  # codecs raise many kinds
            at = ", ".join(str(part) for part in where) if isinstance(where, tuple) else "all"
            raise CorruptError(
                f"{self.path}: {name} at {at} is damaged ({error}); kdcache verify names the spans "
                "to compute again"
            ) from error

    def uids(self, tar: int) -> NDArray[np.uint64]:
        """Return the uids of a tar's rows, uint64."""
        return self._samples("uids", tar)

    def contents(self, tar: int) -> NDArray[np.uint64]:
        """Return the digests of a tar's image files, uint64."""
        return self._samples("contents", tar)

    def _samples(self, name: str, tar: int) -> NDArray[np.uint64]:
        found = self._get(name, (tar,))[: self.rows[tar]]
        if not found.all():  # zero is the fill value
            raise CorruptError(f"{self.path}/{name}: tar {tar} is missing; take a sound copy of it")
        return found

    def _read_commit(self, span: Span) -> Commit:
        return read_commit(self.folder, span)

    def _prove(self, span: Span) -> Commit:
        """Return a span's record, its objects compared with it; done once in each process.

        Checksums within an object do not tell that it is missing or another span's.
        """
        commit = self.commit(span)
        for name in object_names(span, self.info.specs):
            if self.folder.digest(name) != commit.objects.get(name):
                raise CorruptError(
                    f"{self.path / name}: its sha256 differs from its commit record; delete the "
                    "record and run precompute again"
                )
        return commit

    def missing(self) -> list[Span]:
        """Return the spans that are not committed, in order."""
        return missing(self.folder, self.grid)

    def totals(self) -> Seal:
        """Return the totals of the committed spans, from the seal where the cache is sealed."""
        seal = read_seal(self.folder)
        if seal is None or seal.views != self.grid.num_views or seal.cache != self.info.id:
            return summarise(self.folder, self.grid, self.info.id)
        return seal

    def write_span(
        self,
        span: Span,
        fields: Arrays,
        *,
        witness: NDArray[np.uint64],
        layers: dict[str, str],
        fidelity: Fidelity,
        versions: dict[str, str],
        started: float,
    ) -> Commit:
        """Write a span's objects, force them to the disk, then commit them.

        fields: arrays (G, rows, width) of the encoding's dtypes. witness: (G, blocks of the tar).
        layers: digests of what made the pixels of the first view.
        started: time.monotonic() at which the span's work began.

        Raises:
            UsageError: the disk is full or read-only.
            MismatchError: another process committed the span with other targets.
        """
        names = object_names(span, self.info.specs)
        views = self.grid.views(span)
        where = slice(views.start, views.stop)
        rows = int(self.rows[span.tar])
        try:
            self.folder.clear(names)
            for spec in self.info.specs:
                shape = (len(views), self.grid.max_rows, spec.width)
                tile = np.full(shape, spec.fill, spec.dtype)
                tile[:, :rows] = fields[spec.name]
                self._array(spec.name)[span.tar, where] = tile
            blocks = np.zeros((len(views), self.grid.blocks), np.uint64)
            blocks[:, : witness.shape[1]] = witness
            self._array("witness")[span.tar, where] = blocks
            self.folder.sync(names)
            commit = Commit(
                tar=span.tar,
                run=span.run,
                views=tuple(views),
                rows=rows,
                unusable=self._unusable(fields),
                objects={name: self.folder.digest(name) for name in names},
                layers=layers,
                fidelity=fidelity,
                versions=versions,
                seconds={"wall": round(time.monotonic() - started, 3)},
            )
            write_commit(self.folder, commit)
        except OSError as error:
            raise self._cannot_write(f"span {span}", error) from error
        return commit

    def _unusable(self, fields: Arrays) -> tuple[int, ...]:
        tensors = {name: torch.from_numpy(array[0]) for name, array in fields.items()}
        return tuple(np.flatnonzero(~self.info.encoding.usable(tensors).numpy()).tolist())

    def read_tile(self, tar: int, view: int) -> Tile:
        """Return the targets of a tar in a view.

        Raises:
            IncompleteError: the tile is not computed.
            CorruptError: its bytes are damaged or unlike its commit record.
        """
        commit = self._proven(self.grid.span_of(tar, view))
        rows = int(self.rows[tar])
        arrays = {s.name: self._get(s.name, (tar, view))[:rows] for s in self.info.specs}
        fields = {name: torch.from_numpy(_signed(array)) for name, array in arrays.items()}
        usable = self.info.encoding.usable(fields).numpy()
        expected = np.ones(rows, bool)
        expected[list(commit.unusable)] = False
        indices = fields.get("indices")
        outside = indices is not None and bool((indices[usable] >= self.info.num_classes).any())
        if commit.rows != rows or not np.array_equal(usable, expected) or outside:
            raise CorruptError(
                f"{self.path}: tar {tar}, view {view} is unlike its commit record (an object may "
                "be missing); kdcache verify names the spans to compute again"
            )
        return Tile(fields, usable)

    def read_witness(self, tar: int, view: int) -> NDArray[np.uint64]:
        """Return the witness of each block of a tar in a view, uint64.

        Raises:
            IncompleteError: the tile is not computed.
            CorruptError: the object is missing or damaged.
        """
        self._proven(self.grid.span_of(tar, view))
        blocks = -(-int(self.rows[tar]) // self.grid.block)
        return self._get("witness", (tar, view))[:blocks]

    def seal(self) -> Seal:
        """Write the totals and consolidated metadata of a complete cache.

        Raises:
            IncompleteError: spans are missing.
            UsageError: the disk is full or read-only.
        """
        absent = self.missing()
        if absent:
            raise IncompleteError(
                f"{self.path}: {len(absent)} spans are missing, the first is {absent[0]}; "
                "run kdcache precompute again"
            )
        seal = summarise(self.folder, self.grid, self.info.id)
        if seal == read_seal(self.folder):
            return seal
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr warns that others may not know the format
                zarr.consolidate_metadata(str(self.path))
            self.folder.sync(("zarr.json",))
            write_seal(self.folder, seal)
        except OSError as error:
            raise self._cannot_write("the seal", error) from error
        return seal

    def _cannot_write(self, what: str, error: OSError) -> UsageError:
        return UsageError(
            f"{self.path}: cannot write {what}: {error.strerror or error}; committed spans are "
            "safe; free space or permissions, then run precompute again"
        )


def _signed(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of a dtype that torch holds: unsigned indices become int64."""
    return array.astype(np.int64) if array.dtype.kind == "u" and array.itemsize > 1 else array
