"""What reading a tile of a published cache asks its store for, to be brought ahead of time.

A local cache asks for nothing.
"""

from kdcache.cache.chunks import PublishedChunks
from kdcache.cache.in_place import PublishedFolder
from kdcache.cache.layout import WITNESSES
from kdcache.cache.store import Cache
from kdcache.stores.ahead import Wanted


def wanted_record(cache: Cache, tar: int, view: int) -> list[Wanted]:
    """Return the commit record that a tile stands in, if it is there."""
    name = cache.grid.span_of(tar, view).commit_name
    if isinstance(cache.objects, PublishedFolder) and cache.objects.exists(name):
        return [cache.objects.wanted(name)]
    return []


def wanted_tile(cache: Cache, tar: int, view: int, *, witness: bool) -> list[Wanted]:
    """Return the chunks of a tile, and of its student's witnesses. Reads the commit record.

    Raises:
        IncompleteError: the tile is not computed.
        CorruptError: record and manifest differ.
    """
    if not isinstance(cache.chunks, PublishedChunks):
        return []
    span = cache.grid.span_of(tar, view)
    commit, names = cache.commit(span), cache.object_names(span)
    position = view % cache.grid.span_views
    wanted = [
        cache.chunks.wanted(commit, spec.name, names[spec.name], position=position)
        for spec in cache.info.specs
    ]
    if witness:
        array = WITNESSES["student"]
        wanted.append(cache.chunks.wanted(commit, array, names[array], position=0))
    return wanted
