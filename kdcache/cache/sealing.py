"""The end of a cache's making: its totals and consolidated metadata, written when it is whole."""

from kdcache.cache.decided import read_document
from kdcache.cache.info import read_attributes
from kdcache.cache.layout import EXTENT_LOCK
from kdcache.cache.manifest import COMMITS, Seal, read_seal, summarise, write_seal
from kdcache.cache.metadata import ROOT, Document, root_document, to_text
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, IncompleteError


def seal(cache: Cache) -> Seal:
    """Write the totals and consolidated metadata of a complete cache; return its totals.

    One that was given more views meanwhile is left as it is.

    Raises:
        IncompleteError: spans are missing.
        UsageError: the disk is full or read-only.
    """
    sealed = _seal_that_stands(cache)  # a read-only folder cannot be locked
    if sealed is not None:
        return sealed
    folder = cache.folder
    with folder.lock(EXTENT_LOCK, wait=True):
        sealed = _seal_that_stands(cache)  # of many processes that end at once, one reads all
        if sealed is not None:
            return sealed
        totals, root = _complete_totals(cache), _sealed_root(cache)
        try:
            folder.settle(COMMITS)
            if root is not None and root != read_document(cache.objects, ROOT):
                folder.publish(ROOT, to_text(root), replace=True)
            if root is not None and totals != read_seal(folder):
                write_seal(folder, totals)
        except OSError as error:
            raise cache.cannot_write("the seal", error) from error
    return totals


def _seal_that_stands(cache: Cache) -> Seal | None:
    """Return the seal of a complete cache whose metadata are consolidated; None without."""
    try:
        found = cache.valid_seal()
    except CorruptError:
        return None
    stands = found is not None and _sealed_root(cache) == read_document(cache.objects, ROOT)
    return found if stands and not cache.missing() else None


def _complete_totals(cache: Cache) -> Seal:
    if absent := cache.missing():
        raise IncompleteError(
            f"{cache.path}: {len(absent)} spans are missing, the first is {absent[0]}; "
            "run kdcache precompute again"
        )
    return summarise(cache.folder, cache.grid, cache.info.id)


def _sealed_root(cache: Cache) -> Document | None:
    """Return the root document of the sealed cache; None if it has other views by now."""
    now = read_attributes(attributes := cache.attributes(), source=cache.path)
    if now.grid != cache.grid:
        return None
    # An extension that was stopped goes on from the document that it left.
    return root_document(attributes, None if now.extends_to else cache.array_metadata())
