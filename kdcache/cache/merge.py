"""Caches put together from parts, and cut into parts; both by copying spans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.copy import Copied, check_copies, copy_spans
from kdcache.cache.create import create_like
from kdcache.cache.in_place import check_unpublished
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, is_cache, open_cache
from kdcache.errors import UsageError
from kdcache.stores.location import Place


@dataclass(frozen=True)
class Copying:
    """Spans to be copied. absent: spans that were asked for, and that no source has."""

    target: Cache
    sources: tuple[Cache, ...]
    spans: tuple[Span, ...]
    absent: tuple[Span, ...] = ()


def run_copying(copying: Copying, *, progress: Callable[[int], None] = lambda _: None) -> Copied:
    """Copy the spans that the target lacks, and seal it if it is complete.

    progress is given the number of spans done.

    Raises:
        UsageError: the disk is full or read-only; what was copied stays.
    """
    target = copying.target
    copied = copy_spans(target, copying.sources, copying.spans, progress=progress)
    if not target.missing():
        seal(target)
    return copied


def open_sources(path: Path, origins: Sequence[Path]) -> tuple[Cache, ...]:
    """Return the caches to copy from. path: of the cache to copy to.

    Raises:
        UsageError: one of them is the cache at path.
    """
    for origin in origins:
        if path.exists() and origin.exists() and path.samefile(origin):
            raise UsageError(f"{path}: is the cache to copy from; pass another path")
    return tuple(open_cache(origin) for origin in origins)


def prepare_merge(path: Path, origins: Sequence[Path]) -> Copying:
    """Return how to bring the spans of other caches to the cache at path.

    If none is there, it is created, with as many views as any of the others has.

    Raises:
        MismatchError: they are caches of something else.
        UsageError: the cache at path is published, one has more views, or it cannot be created.
    """
    check_unpublished(path)
    sources = open_sources(path, origins)
    check_copies(sources[0], sources)
    most = max(sources, key=lambda source: source.grid.num_views)
    target = open_or_create(path, sources[0], num_views=most.grid.num_views)
    check_copies(target, sources)
    if most.grid.num_views > target.grid.num_views:
        raise UsageError(
            f"{path}: has {target.grid.num_views} views, {most.path} has {most.grid.num_views}; "
            f"run kdcache extend {path} --views {most.grid.num_views} first"
        )
    have = [committed(source.folder).intersection(source.grid.spans()) for source in sources]
    return Copying(target, sources, tuple(sorted(set[Span]().union(*have))))


def prepare_slice(
    path: Path, out: Path, *, num_views: int, first_view: int = 0, tars: range | None = None
) -> Copying:
    """Return how to bring a part of a cache to another of its first num_views views.

    first_view: the first that is copied. tars: those that are copied; None for all. The other cache
    is created, or opened to go on with.

    Raises:
        UsageError: there are no such views or tars, or out has other views or cannot be created.
        MismatchError: out is a cache of something else.
    """
    (source,) = open_sources(out, [path])
    tars = range(source.grid.num_tars) if tars is None else tars
    check_part(source, range(first_view, num_views), tars=tars)
    target = open_or_create(out, source, num_views=num_views)
    check_copies(target, [source])
    if target.grid.num_views != num_views:
        raise UsageError(
            f"{out}: has {target.grid.num_views} views, this slice has {num_views}; pass the same, "
            "or another path"
        )
    runs = range(first_view // source.grid.span_views, num_views // source.grid.span_views)
    spans, done = [Span(tar, run) for tar in tars for run in runs], committed(source.folder)
    return Copying(
        target,
        (source,),
        spans=tuple(span for span in spans if span in done),
        absent=tuple(span for span in spans if span not in done),
    )


def check_part(source: Cache, views: range, *, tars: range, where: Place | None = None) -> None:
    """Check that a cache has views and tars, and that the views are whole spans.

    where: what the cache is called, if not by its path.

    Raises:
        UsageError: it does not.
    """
    grid, where = source.grid, where or source.path
    if views.start >= views.stop:
        raise UsageError(
            f"{where}: the views asked for begin at {views.start} and end before {views.stop}; ask "
            "for a --from below --views"
        )
    if not views.start >= 0 or views.stop > grid.num_views:
        raise UsageError(
            f"{where}: has views 0..{grid.num_views - 1}, asked for were "
            f"{views.start}..{views.stop - 1}; ask for views that are there"
        )
    if views.start % grid.span_views or views.stop % grid.span_views:
        raise UsageError(
            f"{where}: views are stored in spans of {grid.span_views}, asked for were "
            f"{views.start}..{views.stop - 1}; ask for whole spans"
        )
    if not 0 <= tars.start < tars.stop <= grid.num_tars:
        raise UsageError(
            f"{where}: has tars 0..{grid.num_tars - 1}, asked for were "
            f"{tars.start}..{tars.stop - 1}; ask for tars that are there"
        )


def open_or_create(path: Path, like: Cache, *, num_views: int) -> Cache:
    """Return the cache at path, which is created with another's id and attributes if none is.

    Raises:
        UsageError: the path holds something else, or cannot be written.
    """
    if not is_cache(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path}: holds something that is no cache; choose an empty path")
        try:
            return create_like(path, like, num_views=num_views)
        except UsageError:
            if not is_cache(path):  # else another process has just made it
                raise
    return open_cache(path)
