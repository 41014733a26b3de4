"""Refs set, and catalog.json brought in line with the manifests.

Invariant: both only say where to look. Of publishers that race, the last one's catalog.json stays,
and whoever writes it next adds what that lost.
"""

from collections.abc import Iterable

from kdcache.errors import CorruptError, UsageError
from kdcache.sharing.catalogue import Catalogue, Published, ref_name
from kdcache.sharing.index import FORMAT, INDEX, Change, Index, Ref, Summary, to_text
from kdcache.sharing.refs import check_ref_name, utc, with_change

TRIES = 3


def set_ref(
    catalogue: Catalogue, name: str, cache: str, *, who: str, when: str | None = None
) -> Ref:
    """Return what a name refers to from now on; what it referred to is kept.

    Raises:
        UsageError: it is no name of a ref, the cache is not there, or the store refuses.
    """
    check_ref_name(name)
    check_writable(catalogue)
    cache = catalogue.published(cache).id
    try:
        old = catalogue.ref(name)
    except CorruptError:
        old = None  # which setting it mends
    ref = with_change(old, Change(cache=cache, when=when or utc(), who=who))
    if ref != old:
        catalogue.store.write(ref_name(name), to_text(ref))
    return ref


def check_writable(catalogue: Catalogue) -> None:
    """Check that a catalogue is of a kind that can be written.

    Raises:
        UsageError: it is not.
    """
    if not catalogue.lists:
        raise UsageError(
            f"{catalogue.place}: HTTP is for reading; name the folder or the bucket that it serves"
        )


def update_index(catalogue: Catalogue, changed: Iterable[Published]) -> Index:
    """Return catalog.json as written: of older entries those that are there, and the changed.

    Raises:
        UsageError: the store refuses, or does not answer.
    """
    fresh = {p.id: Summary.of(p.manifest, p.data) for p in changed}
    for _ in range(TRIES):
        known = _index_there(catalogue)
        there = catalogue.ids()
        kept = {cache: known[cache] for cache in there if cache in known} | fresh
        added, _ = catalogue.summarise(cache for cache in there if cache not in kept)
        index = write_index(catalogue, kept | added)
        written = _index_there(catalogue)
        if all(written.get(cache) == summary for cache, summary in fresh.items()):
            break  # else another publisher wrote it meanwhile
    return index


def _index_there(catalogue: Catalogue) -> dict[str, Summary]:
    try:
        return dict(catalogue.index().caches)
    except (CorruptError, UsageError):
        return {}  # there is none, or it is damaged: it is made anew


def write_index(catalogue: Catalogue, caches: dict[str, Summary]) -> Index:
    """Return catalog.json as written, of these caches and of the refs that are there.

    Raises:
        UsageError: the store refuses, or does not answer.
    """
    refs, _ = catalogue.refs()
    index = Index(format=FORMAT, caches=dict(sorted(caches.items())), refs=refs)
    text = to_text(index)
    if catalogue.store.size(INDEX) != len(text) or catalogue.store.read(INDEX) != text:
        catalogue.store.write(INDEX, text)
    return index
