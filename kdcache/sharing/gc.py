"""What a catalogue holds that no manifest names, and its deletion.

Invariant: nothing is deleted that a manifest names, or a commit record that lies there, and nothing
that changed within the time in which somebody may still be publishing it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.cache.in_place import DOCUMENTS
from kdcache.cache.manifest import COMMITS
from kdcache.cache.published import CONTRIBUTIONS, MANIFEST, SIGNATURE
from kdcache.errors import CorruptError
from kdcache.identity import read_json
from kdcache.sharing.catalogue import Catalogue, Published, cache_name, ref_name
from kdcache.sharing.describing import CROISSANT, README
from kdcache.sharing.names import check_writable, update_index
from kdcache.stores.store import Entry

DAY_S = 86_400.0
_BESIDE = (MANIFEST, SIGNATURE, CROISSANT, README)


@dataclass(frozen=True)
class Waste:
    """What may be deleted. objects: of published caches. folders: of caches without a manifest.

    refs: names of caches that are gone. damaged: what is wrong with caches that were left alone.
    """

    objects: tuple[Entry, ...]
    folders: dict[str, tuple[Entry, ...]]
    refs: tuple[str, ...]
    damaged: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Return the names of all that may be deleted."""
        entries = [*self.objects, *(e for found in self.folders.values() for e in found)]
        return [*(entry.name for entry in entries), *map(ref_name, self.refs)]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all that may be deleted, but for refs."""
        entries = [*self.objects, *(e for found in self.folders.values() for e in found)]
        return sum(entry.size_bytes for entry in entries)


def find_waste(catalogue: Catalogue, *, older_than_s: float = DAY_S) -> Waste:
    """Return what no manifest names and what has not changed for so long.

    Raises:
        UsageError: the store cannot be written, or refuses or does not answer.
    """
    check_writable(catalogue)
    catalogue.check_there()
    latest = time.time() - older_than_s
    objects: list[Entry] = []
    folders: dict[str, tuple[Entry, ...]] = {}
    damaged: list[str] = []
    for cache in catalogue.folders():
        listed = list(catalogue.store.names(cache_name(cache)))
        try:
            published = catalogue.find(cache)
            if published is not None:
                named = _named(published, listed)
                objects += [e for e in listed if e.name not in named and e.modified <= latest]
                continue
        except CorruptError as error:
            damaged.append(str(error))
            continue
        if listed and max(entry.modified for entry in listed) <= latest:
            folders[cache] = tuple(listed)
    refs, bad = catalogue.refs()
    gone = {name for name, ref in refs.items() if _is_gone(catalogue, ref.cache)}
    return Waste(tuple(objects), folders, tuple(sorted(gone)), (*damaged, *bad.values()))


def _is_gone(catalogue: Catalogue, cache: str) -> bool:
    return catalogue.store.size(cache_name(cache, MANIFEST)) is None


def _named(published: Published, listed: Sequence[Entry]) -> set[str]:
    """Return the names of what a manifest, or a commit record that lies there, tells of."""
    objects = published.manifest.objects
    names = {*objects, *_BESIDE}
    names |= {f"{DOCUMENTS}/{entry.sha256}" for entry in objects.values()}
    prefix = cache_name(published.id)
    for entry in listed:
        name = entry.name.removeprefix(prefix)
        if name.startswith(f"{CONTRIBUTIONS}/"):
            names.add(name)
        if name.startswith(f"{COMMITS}/") and name not in objects:
            names |= {name, *_objects_of(published.catalogue.read_small(entry.name))}
    return {f"{prefix}{name}" for name in names}


def _objects_of(record: bytes | None) -> set[str]:
    """Return the names of the objects that a commit record tells of; none if it is damaged."""
    try:
        return set(read_json(record or b"")["objects"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def delete_waste(catalogue: Catalogue, waste: Waste, *, older_than_s: float = DAY_S) -> Waste:
    """Return what was deleted: what is still waste now.

    Raises:
        UsageError: as find_waste.
    """
    now = find_waste(catalogue, older_than_s=older_than_s)
    before = set(waste.names)
    kept = Waste(
        tuple(entry for entry in now.objects if entry.name in before),
        {cache: found for cache, found in now.folders.items() if cache in waste.folders},
        tuple(name for name in now.refs if name in waste.refs),
        now.damaged,
    )
    catalogue.store.delete(kept.names)
    update_index(catalogue, [])
    return kept
