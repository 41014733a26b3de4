"""Manifests and catalog.json brought in line with what lies in a catalogue."""

from dataclasses import dataclass

from kdcache.errors import CorruptError
from kdcache.sharing.catalogue import SHOWN, Catalogue
from kdcache.sharing.describing import descriptions
from kdcache.sharing.index import Summary
from kdcache.sharing.names import check_writable, write_index
from kdcache.sharing.settle import settle


@dataclass(frozen=True)
class Rebuilt:
    """What rebuilding did. caches: that are there; mended: whose manifest was behind.

    damaged: what is wrong with caches and refs that were left as they were.
    """

    caches: int
    mended: tuple[str, ...]
    damaged: tuple[str, ...]


def rebuild(catalogue: Catalogue) -> Rebuilt:
    """Bring each manifest in line with what lies there, and catalog.json with the manifests.

    A mended manifest has no valid signature until somebody signs it.

    Raises:
        UsageError: the store refuses, or does not answer.
    """
    check_writable(catalogue)
    catalogue.check_there()
    found: dict[str, Summary] = {}
    mended: list[str] = []
    damaged: list[str] = []
    for cache in catalogue.folders():
        try:
            if catalogue.find(cache) is None:
                continue
            settled = settle(catalogue, cache, mine=None, describe=descriptions)
        except CorruptError as error:
            damaged.append(str(error))
            continue
        damaged += [f"cache {cache[:SHOWN]}: {text}" for text in settled.damaged.values()]
        mended += [cache] if settled.rounds else []
        found[cache] = Summary.of(settled.published.manifest, settled.published.data)
    _, bad = catalogue.refs()
    write_index(catalogue, found)
    return Rebuilt(len(found), tuple(mended), (*damaged, *bad.values()))
