"""A cache as a Zarr v3 group: open, write a span, read a tile.

Invariant: a tile is read only under its commit record, which says where its chunks stand and what
their checksums are: an object that is missing, another span's or of another run is never taken for
this one's. Its bytes are those that zarr-python writes and reads (zarr_path.py).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache.cache.chunks import ChunkReader, PublishedChunks
from kdcache.cache.decided import REPAIR, read_array, read_document, what_is_wrong
from kdcache.cache.encode import encode_span
from kdcache.cache.in_place import (
    PublishedFolder,
    local_path,
    open_published,
    published_id,
    what_is_there,
)
from kdcache.cache.info import read_attributes
from kdcache.cache.layout import WITNESSES, Span, object_names
from kdcache.cache.limits import chunks_fit
from kdcache.cache.manifest import (
    SEAL,
    Commit,
    Seal,
    missing,
    read_commit,
    read_seal,
    summarise,
    write_commit,
)
from kdcache.cache.metadata import (
    ROOT,
    Document,
    array_document,
    array_documents,
)
from kdcache.cache.objects import Folder, Objects
from kdcache.cache.shard import decode_tile
from kdcache.data.dataset import tar_digest
from kdcache.errors import CorruptError, UsageError
from kdcache.recipe.parts import Role
from kdcache.stores.location import Location, Place
from kdcache.targets.fidelity import Fidelity
from kdcache.targets.packed import Arrays
from kdcache.targets.target import Fields


@dataclass(frozen=True, eq=False)
class Tile:
    """The targets of one tar in one view. fields: tensors (rows, width). usable: bool (rows,)."""

    fields: Fields
    usable: NDArray[np.bool_]


def is_cache(place: Place) -> bool:
    """Return whether a Zarr group stands at a path, or a cache that has lost its root document.

    At a location there is one, or opening it says what is wrong.
    """
    if isinstance(place, Location):
        return True
    path = place
    return (path / ROOT).is_file() or (path / array_document("rows")).is_file()


def open_cache(place: Place, *, checked: bool = True) -> "Cache":
    """Return the cache at a path, or the published one at a location, to be read in place.

    checked: False leaves it to problems() to find damaged metadata.

    Raises:
        UsageError: no cache is there, its format is newer, or its store does not answer.
        CorruptError: its metadata are damaged.
        MismatchError: its manifest has another sha256.
    """
    if isinstance(place, Location):
        return Cache(open_published(place), checked=checked)
    path = local_path(place)
    published = published_id(path)
    if not is_cache(path):
        advice = what_is_there(path) or "make one with kdcache precompute"
        raise UsageError(f"{path}: no cache here; {advice}")
    while True:
        root = _bytes(path / ROOT)
        try:
            cache = Cache(Folder(path), checked=checked)
            if published not in (None, cache.info.id):
                raise CorruptError(
                    f"{path}: holds cache {cache.info.id[:12]}; ask who published it to publish it "
                    "again"
                )
            return cache
        except CorruptError:
            if _bytes(path / ROOT) == root:
                raise  # else it was being extended


def _bytes(path: Path) -> bytes | None:
    try:
        return Folder(path.parent).read(path.name)
    except (OSError, CorruptError, UsageError):
        return None


class Cache:
    """An open cache. Holds no file open, so that it works in forked and in spawned processes.

    objects: what it is read from. place: where they are.
    """

    def __init__(self, objects: Objects, *, checked: bool = True) -> None:
        self.objects, self.place = objects, objects.place
        if isinstance(objects, PublishedFolder):
            documents = (name for name in objects.manifest.objects if name.endswith(ROOT))
            objects.expect((*documents, "rows/c/0", SEAL))
        attributes = read_document(self.objects, ROOT).get("attributes")
        described = read_attributes(
            attributes if isinstance(attributes, dict) else {}, source=self.place
        )
        self.info, self.grid = described.info, described.grid
        self.extends_to = described.extends_to
        self.rows = np.array([t["num_rows"] for t in self.info.dataset["tars"]], np.int64)
        if checked and (problems := self.problems()):
            raise CorruptError(f"{'; '.join(problems.values())}; {REPAIR}")
        self.commit = lru_cache(maxsize=4096)(self._read_commit)
        self._witnesses = lru_cache(maxsize=256)(self._read_witnesses)
        self.chunks: ChunkReader | PublishedChunks
        if isinstance(objects, Folder):
            self.chunks = ChunkReader(str(objects.path))
        else:
            self.chunks = PublishedChunks(objects)
            objects.check_cache(self.info.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_cache, (self.place,))

    @property
    def is_local(self) -> bool:
        """Return whether it is a folder of this machine, and not read in place."""
        return isinstance(self.objects, Folder)

    @property
    def folder(self) -> Folder:
        """Return the folder that the cache is, for what writes.

        Raises:
            UsageError: it is read in place, where nothing is written.
        """
        if isinstance(self.objects, Folder):
            return self.objects
        raise UsageError(
            f"{self.place}: is read in place, and this needs a cache on this disk; fetch it first "
            "with kdcache fetch"
        )

    @property
    def path(self) -> Path:
        """Return the path of the folder that the cache is; as folder."""
        return self.folder.path

    # --- what the cache is ---------------------------------------------------------------------

    def attributes(self) -> Document:
        """Return the root group's attributes as they are on the disk now, others' among them."""
        return dict(read_document(self.objects, ROOT)["attributes"])

    def array_metadata(self, num_views: int | None = None) -> dict[str, Document]:
        """Return what the metadata of each array should be. num_views: None takes the cache's."""
        grid = self.grid if num_views is None else self.grid.with_views(num_views)
        return array_documents(self.info.specs, grid, witnesses=self.info.witnesses)

    def object_names(self, span: Span) -> dict[str, str]:
        """Return the names of the objects of a span, by array."""
        return object_names(span, self.info.specs, witnesses=self.info.witnesses)

    def problems(self) -> dict[str, str]:
        """Return what is wrong with objects that the attributes decide, by name."""
        expected = self.array_metadata()
        grown = self.array_metadata(self.extends_to) if self.extends_to else expected
        return what_is_wrong(self.objects, expected, grown=grown, rows=self.rows)

    def uids(self, tar: int) -> NDArray[np.uint64]:
        """Return the uids of a tar's rows, uint64."""
        return self._samples(tar)[0]

    def contents(self, tar: int) -> NDArray[np.uint64]:
        """Return the digests of a tar's image files, uint64."""
        return self._samples(tar)[1]

    def _samples(self, tar: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        rows = slice(0, int(self.rows[tar]))
        uids, contents = (
            read_array(self.objects, name, tar=tar)[rows] for name in ("uids", "contents")
        )
        if tar_digest(uids, contents) != self.info.dataset["tars"][tar]["digest"]:
            raise CorruptError(
                f"{self.place}: uids and contents of tar {tar} differ from its digest; {REPAIR}"
            )
        return uids, contents

    # --- what it holds -------------------------------------------------------------------------

    def _read_commit(self, span: Span) -> Commit:
        commit = read_commit(self.objects, span, cache=self.info.id)
        self.check_extent(commit)
        return commit

    def check_extent(self, commit: Commit) -> None:
        """Check that a commit record tells of the views, rows and objects that its span has here.

        Raises:
            CorruptError: it does not.
        """
        span = Span(commit.tar, commit.run)
        names, views = self.object_names(span), tuple(self.grid.views(span))
        tiles = dict.fromkeys(names, len(views)) | dict.fromkeys(self.info.witnesses, 1)
        if (
            not chunks_fit(
                commit.tiles,
                grid=self.grid,
                specs=self.info.specs,
                witnesses=self.info.witnesses,
            )
            or (commit.views, commit.rows) != (views, int(self.rows[span.tar]))
            or commit.objects.keys() != set(names.values())
            or {array: len(places) for array, places in commit.tiles.items()} != tiles
        ):
            raise CorruptError(
                f"{self.place / span.commit_name}: the record of another extent; {REPAIR}"
            )

    def missing(self) -> list[Span]:
        """Return the spans that are not committed, in order."""
        return missing(self.objects, self.grid)

    def valid_seal(self) -> Seal | None:
        """Return the totals that were sealed when the cache was complete; None if it was not."""
        seal = read_seal(self.objects)
        if seal is None or seal.views != self.grid.num_views or seal.cache != self.info.id:
            return None
        num_rows = dict(enumerate(self.rows))
        if any(rows and rows[-1] >= num_rows.get(tar, 0) for tar, rows in seal.unusable.items()):
            raise CorruptError(f"{self.place / SEAL}: names rows that are not there; {REPAIR}")
        return seal

    def totals(self) -> Seal:
        """Return the totals of the committed spans, from the seal where the cache is sealed."""
        return self.valid_seal() or summarise(self.objects, self.grid, self.info.id)

    # --- writing -------------------------------------------------------------------------------

    def write_span(
        self,
        span: Span,
        fields: Arrays,
        *,
        witnesses: Sequence[NDArray[np.uint64]],
        layers: dict[str, str],
        fidelity: Fidelity,
        versions: dict[str, str],
        started: float,
    ) -> Commit:
        """Write a span's objects, force them to the disk, then commit them.

        fields: arrays (G, rows, width) of the encoding's dtypes. witnesses: (G, blocks of the
        tar), of each rendering. layers: digests of what made the pixels of the first view.
        started: time.monotonic() at which the span's work began.

        Raises:
            CorruptError: the cache has lost its root document.
            UsageError: the disk is full or read-only.
            MismatchError: another process committed the span with other targets.
        """
        if not self.folder.exists(ROOT):
            raise CorruptError(
                f"{self.path / ROOT}: missing, the cache was deleted meanwhile; delete what is "
                f"left of it, or {REPAIR} --from a sound copy"
            )
        views = self.grid.views(span)
        named = dict(zip(self.info.witnesses, witnesses, strict=True))
        data, tiles = encode_span(fields, named, specs=self.info.specs, grid=self.grid)
        objects = {name: data[array] for array, name in self.object_names(span).items()}
        try:
            self.folder.write(objects)
            commit = Commit(
                cache=self.info.id,
                tar=span.tar,
                run=span.run,
                views=tuple(views),
                rows=int(self.rows[span.tar]),
                unusable=self._unusable(fields),
                objects={name: self.folder.digest(name) for name in objects},
                tiles=tiles,
                layers=layers,
                fidelity=fidelity,
                versions=versions,
                seconds={"wall": round(time.monotonic() - started, 3)},
            )
            write_commit(self.folder, commit)
        except OSError as error:
            raise self.cannot_write(f"span {span}", error) from error
        return commit

    def _unusable(self, fields: Arrays) -> tuple[int, ...]:
        first = {name: array[0] for name, array in fields.items()}
        return tuple(np.flatnonzero(~self.info.encoding.usable(first)).tolist())

    def cannot_write(self, what: str, error: OSError) -> UsageError:
        """Return the error of a full or read-only disk."""
        return UsageError(
            f"{self.path}: cannot write {what}: {error.strerror or error}; committed spans are "
            "safe; free space or permissions, then run the same command again"
        )

    # --- reading -------------------------------------------------------------------------------

    def forget(self) -> None:
        """Read a folder's records and witnesses anew from now on; published ones cannot change."""
        if self.is_local:
            self.commit.cache_clear()
            self._witnesses.cache_clear()
            self.chunks = ChunkReader(str(self.path))

    def read_tile(self, tar: int, view: int) -> Tile:
        """Return the targets of a tar in a view.

        Raises:
            IncompleteError: the tile is not computed.
            CorruptError: its bytes are damaged or unlike its commit record.
        """
        span, position = self.grid.span_of(tar, view), view % self.grid.span_views
        commit = self.commit(span)
        rows = int(self.rows[tar])
        names = self.object_names(span)
        chunks = {
            s.name: self.chunks.read(commit, s.name, names[s.name], position=position)
            for s in self.info.specs
        }
        where = f"{self.place}: tar {tar}, view {view}"
        arrays = decode_tile(
            chunks, self.info.specs, num_rows=rows, max_rows=self.grid.max_rows, where=where
        )
        usable = self.info.encoding.usable(arrays)
        if tuple(np.flatnonzero(~usable).tolist()) != commit.unusable:
            raise CorruptError(f"{where} is unlike its commit record; {REPAIR}")
        return Tile({name: torch.from_numpy(array) for name, array in arrays.items()}, usable)

    def read_witness(self, tar: int, view: int, *, role: Role = "student") -> NDArray[np.uint64]:
        """Return the witness of each block of a tar in a view, as a role sees it, uint64.

        Raises:
            IncompleteError: the tile is not computed.
            CorruptError: the object is missing or damaged.
        """
        array = WITNESSES[role if role in self.info.recipe.roles else "student"]
        witnesses = self._witnesses(self.grid.span_of(tar, view), array)
        blocks = -(-int(self.rows[tar]) // self.grid.block)
        return witnesses[view % self.grid.span_views, :blocks]

    def _read_witnesses(self, span: Span, array: str) -> NDArray[np.uint64]:
        name = self.object_names(span)[array]
        data = self.chunks.read(self.commit(span), array, name, position=0)[:-4]
        return np.frombuffer(data, "<u8").reshape(self.grid.span_views, self.grid.blocks)
