"""The objects of a published cache, read where they lie: in a bucket, or behind HTTP.

Invariant: what is there is what the manifest names, and what is read has the sha256 that it states,
unless an object is read in part, which its reader proves. Nothing is written.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kdcache.cache.published import MANIFEST, MAX_BYTES, Manifest, manifest_digest, parse_manifest
from kdcache.errors import CorruptError, KdcacheError, MismatchError, UsageError
from kdcache.files import read_small
from kdcache.identity import read_json
from kdcache.stores.ahead import Wanted, bring_all
from kdcache.stores.disk import Piece
from kdcache.stores.location import Location, Place
from kdcache.stores.store import Store

CACHES, REFS, DOCUMENTS = "caches", "refs", "documents"
_ID = re.compile(r"[0-9a-f]{64}")
_DAMAGED = (
    "read once more, it is the same: ask who published it to publish it again, or use another copy"
)


class PublishedFolder:
    """Objects below a location, by a manifest. Holds nothing open: it works after a fork."""

    def __init__(self, place: Location, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self._folders: dict[str, list[str]] = {}
        for name in manifest.objects:
            folder, _, last = name.rpartition("/")
            self._folders.setdefault(folder, []).append(last)

    def check_cache(self, cache: str) -> None:
        """Check that the manifest is of the cache that its objects are of.

        Raises:
            CorruptError: it is not.
        """
        if self.manifest.cache != cache:
            raise CorruptError(
                f"{self.place}: its attributes are of cache {cache[:12]}, its manifest of "
                f"{self.manifest.cache[:12]}; ask who published it to publish it again"
            )

    def exists(self, name: str) -> bool:
        """Return whether the manifest has an object."""
        return name in self.manifest.objects

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder, sorted."""
        return sorted(self._folders.get(folder, []))

    def wanted(self, name: str) -> Wanted:
        """Return a whole object as a piece.

        Raises:
            FileNotFoundError: the manifest has no such object.
        """
        entry = self.manifest.objects.get(name)
        if entry is None:
            raise FileNotFoundError(name)
        piece = Piece(self.place, name, 0, entry.size_bytes, entry.sha256)
        return Wanted(piece, lambda data: _sha256(data) == entry.sha256)

    def expect(self, names: Iterable[str]) -> None:
        """Bring those of the objects that are there to this disk, many at once."""
        bring_all(self.wanted(name) for name in names if self.exists(name))

    def read(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: the manifest has no such object.
            CorruptError: it is missing in the store, or other than the manifest says.
            UsageError: the store refuses, or does not answer.
            EvictedError: as read_piece.
        """
        problem: KdcacheError = self.lost(name)
        for wanted in self._ways(name):
            try:
                data = wanted.read()
            except FileNotFoundError:
                continue
            except UsageError as error:  # it may be shorter than the manifest says
                problem = error
                continue
            if wanted.is_right(data):
                return data
            problem = CorruptError(
                f"{self.place / name}: its sha256 differs from the manifest's; {_DAMAGED}"
            )
        raise problem

    def _ways(self, name: str) -> list[Wanted]:
        """Return the places where an object may be read.

        At a document's name there may be a newer one, of somebody who is publishing more.
        """
        wanted = self.wanted(name)
        if not is_document(name):
            return [wanted]
        kept = wanted.piece._replace(name=f"{DOCUMENTS}/{wanted.piece.version}")
        return [wanted, Wanted(kept, wanted.is_right)]

    def digest(self, name: str) -> dict[str, int | str]:
        """Return the size and sha256 of an object as the store has it now, past this disk.

        Raises:
            CorruptError: it is missing.
            UsageError: as read.
        """
        try:
            data = Store(self.place).read(name)
        except FileNotFoundError:
            raise self.lost(name) from None
        return {"size_bytes": len(data), "sha256": _sha256(data)}

    def lost(self, name: str) -> CorruptError:
        """Return what to raise where the store lacks an object of the manifest."""
        return CorruptError(
            f"{self.place / name}: missing, though the manifest names it; ask who published it to "
            "publish it again"
        )


def is_document(name: str) -> bool:
    """Return whether an object grows with its cache: metadata, and the seal."""
    return name.endswith("zarr.json") or name == "seal.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_published(place: Location) -> PublishedFolder:
    """Return the objects of the published cache at CATALOGUE/caches/ID or CATALOGUE/refs/NAME.

    Raises:
        UsageError: none is there, or the store refuses or does not answer.
        CorruptError: its manifest is damaged, or of another cache.
        MismatchError: its manifest is not the one that the place is pinned to.
    """
    if place.parent.name == REFS:
        place = replace(_referred(place), pin=place.pin)
    where = place / MANIFEST
    try:
        data = _small(place, MANIFEST)
    except FileNotFoundError:
        raise UsageError(
            f"{place}: no published cache here, it has no {MANIFEST}; name CATALOGUE/{CACHES}/ID "
            f"or CATALOGUE/{REFS}/NAME, and see that kdcache publish has ended"
        ) from None
    if place.pin is not None and manifest_digest(data) != place.pin:
        raise MismatchError(
            f"{where}: sha256 {manifest_digest(data)[:12]}, expected {place.pin[:12]}; it was "
            "published anew meanwhile, or somebody changed it: look at it again"
        )
    found = parse_manifest(data, where=where)
    if place.parent.name == CACHES and place.name != found.cache:
        raise CorruptError(
            f"{where}: the manifest of cache {found.cache[:12]}, expected {place.name[:12]}; ask "
            "who published it to publish it again"
        )
    return PublishedFolder(place, found)


def _small(place: Location, name: str) -> bytes:
    """Return a small object as the store has it now.

    Raises:
        FileNotFoundError: it is missing.
        CorruptError: it is larger than any manifest.
    """
    store = Store(place)
    size = store.size(name)
    if size is None:
        raise FileNotFoundError(name)
    if size > MAX_BYTES:
        raise CorruptError(f"{place / name}: {size} bytes, expected at most {MAX_BYTES}")
    return store.read(name)


def _referred(place: Location) -> Location:
    """Return the cache that a ref names."""
    try:
        data = _small(place.parent, _ref_file(place.name))
    except FileNotFoundError:
        raise UsageError(
            f"{place}: no such ref; kdcache find {place.parent.parent} lists what is there"
        ) from None
    return place.parent.parent / CACHES / _named(data, place)


def local_path(path: Path) -> Path:
    """Return the folder of a cache: a path as it is, or what it names if it is CATALOGUE/refs/NAME.

    Raises:
        CorruptError: the ref names no cache.
    """
    ref = path.with_name(_ref_file(path.name)) if path.parent.name == REFS else None
    try:
        data = None if ref is None else read_small(ref, most_bytes=MAX_BYTES)
    except (OSError, ValueError):
        data = None
    return path if data is None else path.parents[1] / CACHES / _named(data, path)


def published_id(path: Path) -> str | None:
    """Return the id of the cache that CATALOGUE/caches/ID is to hold; None for other paths.

    Raises:
        UsageError: nothing is published there yet.
    """
    if path.parent.name != CACHES or _ID.fullmatch(path.name) is None:
        return None
    if path.is_dir() and not (path / MANIFEST).is_file():
        raise UsageError(
            f"{path}: not published yet, it has no {MANIFEST}; see that kdcache publish has ended"
        )
    return path.name


def check_unpublished(path: Path) -> None:
    """Check that what is at a path may change.

    Raises:
        UsageError: it is a published cache, which publishing alone adds to.
    """
    if published_id(local_path(path)) is not None:
        raise UsageError(
            f"{path}: is published, and what its manifest names must stay; work on a copy of your "
            "own (kdcache fetch makes one), then publish that"
        )


def what_is_there(path: Path) -> str | None:
    """Return what to give instead of a path that belongs to a catalogue; None for others."""
    if (path / CACHES).is_dir():
        return f"a catalogue: give {path / CACHES}/ID or {path / REFS}/NAME"
    if path.parent.name == REFS or (path.name == REFS and path.is_dir()):
        catalogue = path.parent if path.name == REFS else path.parents[1]
        return f"no such ref; kdcache find {catalogue} lists what is there"
    if path.parent.name == CACHES and path.parent.is_dir():
        return f"give the whole id; kdcache find {path.parents[1]} --json lists them"
    return None


def _ref_file(name: str) -> str:
    return f"{name.removesuffix('.json')}.json"


def _named(data: bytes, place: Place) -> str:
    """Return the id of the cache that a ref's bytes name.

    Raises:
        CorruptError: they name none.
    """
    try:
        cache = str(read_json(data)["cache"])
        if _ID.fullmatch(cache):
            return cache
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CorruptError(f"{place}: names no cache; set it again with kdcache ref")
