"""A catalogue: the published caches below a place, and the names that refer to them.

Invariant: a cache is there if, and only if, its manifest is. What readers get of it has the size
and the sha256 that the manifest states, and nothing larger is ever asked for.

    CATALOGUE/caches/<cache id>/    the zarr tree, and manifest.json
    CATALOGUE/refs/<name>.json      names of caches: the last writer wins, what they were is kept
    CATALOGUE/catalog.json          what all manifests say, for stores that cannot list

The documents that grow with a cache (metadata and seal) lie there twice: at their names, for any
reader of Zarr, and as documents/<sha256>, where no publisher who is killed leaves an older or newer
one than the manifest names.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.in_place import CACHES, DOCUMENTS, REFS, is_document
from kdcache.cache.published import (
    MANIFEST,
    MAX_BYTES,
    SIGNATURE,
    Manifest,
    PublishedObject,
    parse_manifest,
)
from kdcache.errors import CorruptError, UsageError
from kdcache.sharing.index import INDEX, Index, Ref, Summary, parse_index, parse_ref
from kdcache.sharing.refs import is_ref_name
from kdcache.sharing.together import together
from kdcache.stores.location import Place, parse_place
from kdcache.stores.store import Store

SHOWN = 12  # digits of an id that people read
CANDIDATES_SHOWN = 8
MAX_SMALL_BYTES = 1 << 24  # of a ref or an envelope
AGAIN = "ask who published it to run kdcache publish --again"
_ID = re.compile(r"[0-9a-f]{64}")
_START = re.compile(r"[0-9a-f]{8,63}")


def open_catalogue(place: str | Path, *, create: bool = False) -> "Catalogue":
    """Return the catalogue at a folder, or at the URL of a bucket or a server.

    create: a folder may be made.

    Raises:
        UsageError: there is no such folder, or no such kind of store.
    """
    found = place if isinstance(place, Path) else parse_place(place)
    if isinstance(found, Path) and not found.is_dir() and (not create or found.exists()):
        raise UsageError(f"{found}: no such folder; kdcache publish makes a catalogue")
    return Catalogue(found)


def cache_name(cache: str, name: str = "") -> str:
    """Return the name of something of a published cache, in its catalogue."""
    return f"{CACHES}/{cache}/{name}"


def ref_name(name: str) -> str:
    """Return the name of a ref's object, in its catalogue."""
    return f"{REFS}/{name}.json"


def sha256(data: bytes) -> str:
    """Return the sha256 of data, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Published:
    """A cache of a catalogue by its manifest, whose bytes are data."""

    catalogue: "Catalogue"
    data: bytes
    manifest: Manifest

    @property
    def id(self) -> str:
        """Return the id of the cache."""
        return self.manifest.cache

    @property
    def place(self) -> Place:
        """Return where the cache lies."""
        return self.catalogue.place / CACHES / self.id

    def entry(self, name: str, *, most_bytes: int) -> PublishedObject:
        """Return what the manifest says of an object.

        Raises:
            CorruptError: it has no such object, or says that it is larger than most_bytes.
        """
        entry = self.manifest.objects.get(name)
        if entry is None:
            raise CorruptError(f"{self.place / MANIFEST}: does not name {name}; {AGAIN}")
        if entry.size_bytes > most_bytes:
            raise CorruptError(
                f"{self.place / MANIFEST}: {name} has {entry.size_bytes} bytes, at most "
                f"{most_bytes} expected; {AGAIN}"
            )
        return entry

    def read(self, name: str, *, most_bytes: int = MAX_BYTES) -> bytes:
        """Return an object of the cache, compared with the manifest.

        Raises:
            CorruptError: as entry, or it is missing, or another.
            UsageError: the store refuses, or does not answer.
        """
        entry = self.entry(name, most_bytes=most_bytes)
        problem = "missing"
        kept = [f"{DOCUMENTS}/{entry.sha256}"] if is_document(name) else []
        for stored in (name, *kept):
            data = self._read(stored, entry.size_bytes)
            if data is not None:
                if sha256(data) == entry.sha256:
                    return data
                problem = "its sha256 differs from the manifest's"
        raise CorruptError(f"{self.place / name}: {problem}; {AGAIN}")

    def _read(self, name: str, size_bytes: int) -> bytes | None:
        """Return so many bytes of an object; all that there are, if they are fewer."""
        store, stored = self.catalogue.store, cache_name(self.id, name)
        try:
            return store.read_range(stored, 0, size_bytes)
        except FileNotFoundError:
            return None
        except UsageError:
            found = store.size(stored)
            if found is None or found >= size_bytes:
                raise
            return store.read_range(stored, 0, found)

    def signature(self) -> bytes | None:
        """Return the envelope that signs the manifest; None without."""
        return self.catalogue.read_small(cache_name(self.id, SIGNATURE))


class Catalogue:
    """The published caches below a place. store: asked in its place, by tests."""

    def __init__(self, place: Place, *, store: Store | None = None) -> None:
        self.place = place
        self.store = Store(place) if store is None else store

    @property
    def lists(self) -> bool:
        """Return whether the store can list what it holds."""
        return isinstance(self.place, Path) or not self.place.scheme.startswith("http")

    def read_small(self, name: str, *, most_bytes: int = MAX_SMALL_BYTES) -> bytes | None:
        """Return an object of a limited size; None without.

        Raises:
            CorruptError: it is larger.
            UsageError: the store refuses, or does not answer.
        """
        size = self.store.size(name)
        if size is None:
            return None
        if size > most_bytes:
            raise CorruptError(
                f"{self.place / name}: {size} bytes, at most {most_bytes} expected; {AGAIN}"
            )
        try:
            return self.store.read(name)
        except FileNotFoundError:
            return None

    # --- caches --------------------------------------------------------------------------------

    def find(self, cache: str) -> Published | None:
        """Return a published cache; None without.

        Raises:
            CorruptError: its manifest is damaged, or another cache's.
            UsageError: a newer kdcache wrote it, or the store refuses or does not answer.
        """
        name = cache_name(cache, MANIFEST)
        data = self.read_small(name, most_bytes=MAX_BYTES)
        if data is None:
            return None
        manifest = parse_manifest(data, where=self.place / name)
        if manifest.cache != cache:
            raise CorruptError(
                f"{self.place / name}: the manifest of cache {manifest.cache[:SHOWN]}; {AGAIN}"
            )
        return Published(self, data, manifest)

    def published(self, cache: str) -> Published:
        """Return a published cache; as find.

        Raises:
            UsageError: there is none.
        """
        found = self.find(cache)
        if found is None:
            raise UsageError(f"{self.place}: has no cache {cache[:SHOWN]}; see kdcache find")
        return found

    def manifest(self, cache: str) -> Manifest:
        """Return what a cache's manifest says; as published."""
        return self.published(cache).manifest

    def check_there(self) -> None:
        """Check that a place where nothing is published was a catalogue once.

        Raises:
            UsageError: nothing there is a catalogue's.
        """
        if self.lists and not self.folders() and self.store.size(INDEX) is None:
            raise UsageError(
                f"{self.place}: no catalogue here, it has no {CACHES}/; check the address, or make "
                "one with kdcache publish"
            )

    def folders(self) -> list[str]:
        """Return the ids of which something is there, a manifest or not; of stores that list."""
        return [name for name in self.store.folders(CACHES) if _ID.fullmatch(name)]

    def ids(self) -> list[str]:
        """Return the ids of the published caches, sorted."""
        if not self.lists:
            return sorted(self.index().caches)
        found = self.folders()
        sizes = together(lambda cache: self.store.size(cache_name(cache, MANIFEST)), found)
        return [cache for cache, size in zip(found, sizes, strict=True) if size is not None]

    def summaries(self) -> tuple[dict[str, Summary], dict[str, str]]:
        """Return what each manifest says, by id, and what is wrong with others.

        Of a store that cannot list, what catalog.json says.
        """
        if not self.lists:
            return dict(self.index().caches), {}
        return self.summarise(self.folders())

    def summarise(self, caches: Iterable[str]) -> tuple[dict[str, Summary], dict[str, str]]:
        """Return what the manifests of caches say, by id, and what is wrong with others."""

        def read(cache: str) -> Summary | str | None:
            try:
                found = self.find(cache)
            except CorruptError as error:
                return str(error)
            except UsageError as error:
                if isinstance(self.place, Path):  # others can be read
                    return str(error)
                raise
            return None if found is None else Summary.of(found.manifest, found.data)

        caches = list(caches)
        read_all = list(zip(caches, together(read, caches), strict=True))
        return (
            {cache: found for cache, found in read_all if isinstance(found, Summary)},
            {cache: found for cache, found in read_all if isinstance(found, str)},
        )

    def index(self) -> Index:
        """Return what catalog.json says.

        Raises:
            UsageError: there is none.
            CorruptError: it is damaged.
        """
        data = self.read_small(INDEX, most_bytes=MAX_BYTES)
        if data is None:
            raise UsageError(
                f"{self.place / INDEX}: missing, and this store cannot list; run kdcache rebuild "
                "where the catalogue can be written"
            )
        return parse_index(data, where=self.place / INDEX)

    # --- refs ----------------------------------------------------------------------------------

    def ref(self, name: str) -> Ref | None:
        """Return what a name refers to, and did; None without.

        Raises:
            CorruptError: it is damaged.
        """
        data = self.read_small(ref_name(name))
        return None if data is None else parse_ref(data, where=self.place / ref_name(name))

    def refs(self) -> tuple[dict[str, Ref], dict[str, str]]:
        """Return all refs by name, and what is wrong with others."""
        if not self.lists:
            return dict(self.index().refs), {}
        good, bad = {}, {}
        listed = [entry.name for entry in self.store.names(REFS)]
        names = [n.removeprefix(f"{REFS}/").removesuffix(".json") for n in listed]
        names = [n for n, full in zip(names, listed, strict=True) if full == ref_name(n)]
        for name in filter(is_ref_name, names):
            try:
                found = self.ref(name)
            except CorruptError as error:
                bad[name] = str(error)
                continue
            if found is not None:
                good[name] = found
        return good, bad

    def resolve(self, text: str) -> str:
        """Return the id of the cache that a text names: its id, 8 or more digits of it, or a ref.

        Raises:
            UsageError: it names none, or several.
            CorruptError: the ref is damaged.
        """
        if _ID.fullmatch(text):
            return self.published(text).id
        if _START.fullmatch(text):
            found = [cache for cache in self.ids() if cache.startswith(text)]
            if len(found) == 1:
                return found[0]
            if found:
                shown = ", ".join(cache[: len(text) + 4] for cache in found[:CANDIDATES_SHOWN])
                raise UsageError(
                    f"{self.place}: {text} begins the ids of {len(found)} caches: {shown}; give "
                    "more digits"
                )
        elif is_ref_name(text) and (ref := self.ref(text)) is not None:
            if self.find(ref.cache) is None:
                raise UsageError(
                    f"{self.place / ref_name(text)}: refers to cache {ref.cache[:SHOWN]}, which is "
                    "not there; set it again with kdcache ref"
                )
            return ref.cache
        raise UsageError(
            f"{self.place}: has no cache or ref {ascii(text[:80])[1:-1]}; give an id, its first 8 "
            "digits or more, or the name of a ref; see kdcache find"
        )


def published_at(place: Place) -> Published:
    """Return the published cache at CATALOGUE/caches/ID, or that CATALOGUE/refs/NAME names.

    Raises:
        UsageError: there is none.
        CorruptError: its manifest is damaged, or another cache's.
    """
    catalogue, kind = Catalogue(place.parent.parent), place.parent.name
    if kind == REFS:
        return catalogue.published(catalogue.resolve(place.name.removesuffix(".json")))
    if kind != CACHES or (found := catalogue.find(place.name)) is None:
        raise UsageError(
            f"{place}: no published cache; run kdcache publish, then give CATALOGUE/{CACHES}/ID or "
            f"CATALOGUE/{REFS}/NAME"
        )
    return found
