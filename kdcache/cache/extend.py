"""More views for a cache, in place: its metadata grow, no object is touched.

Invariant: at each moment the folder is the old cache or the new one to whoever opens it, and no
seal claims more than is there. A killed extension is completed by the same call.
"""

from pathlib import Path

from kdcache.cache.in_place import check_unpublished
from kdcache.cache.info import with_extent
from kdcache.cache.layout import EXTENT_LOCK, check_views
from kdcache.cache.limits import check_limits
from kdcache.cache.manifest import SEAL
from kdcache.cache.metadata import (
    ROOT,
    Document,
    array_document,
    root_document,
    to_text,
)
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import UsageError


def extend_cache(path: Path, *, num_views: int) -> Cache:
    """Return the cache at path with so many views, the new ones not computed yet.

    Raises:
        UsageError: it is published, has more views, or they do not fill spans; the disk is full or
            read-only.
    """
    check_unpublished(path)
    cache = open_cache(path)
    check_views(num_views, cache.grid.span_views)
    check_limits(cache.grid.with_views(num_views), cache.info.specs)
    with cache.folder.lock(EXTENT_LOCK, wait=True):
        cache = open_cache(path)  # another process may have extended it while this one waited
        least = cache.extends_to or cache.grid.num_views
        if num_views < least:
            raise UsageError(
                f"{path}: has {least} views, {num_views} asked for: views are only added; "
                f"kdcache slice copies the first {num_views}"
            )
        for views in (cache.extends_to, num_views):
            if views not in (None, cache.grid.num_views):
                _grow(cache, views)
                cache = open_cache(path)
    return cache


def _grow(cache: Cache, num_views: int) -> None:
    attributes, now = cache.attributes(), cache.grid.num_views
    before = cache.array_metadata()
    after = cache.array_metadata(num_views)
    try:
        # From here on the arrays may have either shape; what zarr sees first are the arrays.
        _write(cache, ROOT, _root(attributes, now, extends_to=num_views))
        for array, document in after.items():
            if document != before[array]:
                _write(cache, array_document(array), document)
        cache.folder.remove(SEAL)
        _write(cache, ROOT, _root(attributes, num_views))
    except OSError as error:
        raise cache.cannot_write("the new extent", error) from error


def _root(attributes: Document, views: int, *, extends_to: int | None = None) -> Document:
    return root_document(with_extent(attributes, views=views, extends_to=extends_to), None)


def _write(cache: Cache, name: str, document: Document) -> None:
    cache.folder.publish(name, to_text(document), replace=True)
