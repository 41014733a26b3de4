"""kdcache extend, kdcache merge, kdcache slice."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.caches import FINDINGS_SHOWN, CachePath, finding_value
from kdcache.cli.data import Json
from kdcache.cli.output import give, human_bytes, progress_bar, say
from kdcache.cli.places import path
from kdcache.errors import CorruptError, IncompleteError, UsageError

if TYPE_CHECKING:
    from kdcache.cache.copy import Copied
    from kdcache.cache.merge import Copying

Views = Annotated[int, typer.Option(min=1, max=1_000_000, help="Views of each image.")]


def extend(cache: CachePath, views: Views, as_json: Json = False) -> None:
    """Give a cache more views, in place; kdcache precompute --views N then computes them.

    Example:

      kdcache extend build/cache --views 64
    """
    from kdcache.cache.extend import extend_cache
    from kdcache.cache.store import open_cache

    before = open_cache(cache).grid.num_views
    store = extend_cache(cache, num_views=views)
    absent, now = len(store.missing()), store.grid.num_views
    value = {
        "id": store.info.id,
        "path": str(cache),
        "views_before": before,
        "views": now,
        "spans_missing": absent,
    }
    lines: dict[str, object] = {
        "cache": f"{cache} ({store.info.id[:12]})",
        "views": f"{before}, now {now}" if now != before else f"{now}: nothing to do",
        "spans": _missing(absent, f"run kdcache precompute --views {now}"),
    }
    give(value, as_json=as_json, lines=lines)


def merge(
    cache: CachePath,
    origins: Annotated[
        list[Path],
        typer.Argument(parser=path, metavar="FROM...", help="Caches that hold other spans of it."),
    ],
    as_json: Json = False,
) -> None:
    """Copy what a cache lacks from others of the same id, each object compared with its digest.

    Goes on where it stopped. A cache that is not there is made.

    Example:

      kdcache merge build/cache node1/cache node2/cache
    """
    from kdcache.cache.merge import prepare_merge

    copying = prepare_merge(cache, origins)
    copied = copy_visibly("merge", copying)
    _give_copied(copying, copied, as_json=as_json)
    _refuse_damaged(copied)


def cut(
    cache: CachePath,
    out: Annotated[Path, typer.Argument(parser=path, metavar="OUT", help="The new cache.")],
    views: Annotated[int, typer.Option(min=1, help="Views that the new cache has: the first.")],
    first: Annotated[int, typer.Option("--from", min=0, help="First view that is copied.")] = 0,
    tars: Annotated[
        str | None, typer.Option(metavar="A..B", help="Copy only tars A to B, counted from 0.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy the first views of a cache, or a part of them, to a new one of the same id.

    Goes on where it stopped. With --from or --tars the new cache is a part, which kdcache merge
    brings together with others.

    Examples:

      kdcache slice build/cache build/small --views 16

      kdcache slice build/cache build/part --views 64 --from 32 --tars 0..99
    """
    from kdcache.cache.merge import prepare_slice

    copying = prepare_slice(
        cache,
        out,
        num_views=views,
        first_view=first,
        tars=None if tars is None else read_range(tars),
    )
    copied = copy_visibly("slice", copying)
    _give_copied(copying, copied, as_json=as_json)
    _refuse_damaged(copied)
    if copying.absent:
        raise IncompleteError(
            f"{cache}: {len(copying.absent)} spans of the slice are not computed, the first is "
            f"{copying.absent[0]}; run kdcache precompute, then the same slice again"
        )


def read_range(text: str) -> range:
    """Return the numbers of A..B, both ends included."""
    try:
        first, last = map(int, text.split(".."))
        return range(first, last + 1)
    except ValueError:
        raise UsageError(f"--tars {text[:40]!r}: expected A..B, as 0..99") from None


def copy_visibly(label: str, copying: "Copying") -> "Copied":
    """Copy spans, with a progress bar."""
    from kdcache.cache.merge import run_copying

    rates = "spans, {:.1f} spans/s".format
    with progress_bar(label, len(copying.spans), rates=lambda n, s: rates(n / s)) as advance:
        return run_copying(copying, progress=advance)


def _give_copied(copying: "Copying", copied: "Copied", *, as_json: bool) -> None:
    store, absent = copying.target, len(copying.target.missing())
    value = {
        "id": store.info.id,
        "path": str(store.path),
        "views": store.grid.num_views,
        "spans_copied": len(copied.spans),
        "size_bytes": copied.size_bytes,
        "spans_there": copied.there,
        "spans_differing": [str(span) for span in copied.differing],
        "damaged": [finding_value(finding) for finding in copied.damaged],
        "spans_missing": absent,
    }
    lines: dict[str, object] = {
        "cache": f"{store.path} ({store.info.id[:12]})",
        "copied": f"{len(copied.spans)} spans, {human_bytes(copied.size_bytes)}",
        "there": f"{copied.there} spans",
        "spans": _missing(absent),
    }
    if copied.differing:
        lines["differing"] = f"{len(copied.differing)} spans, kept as they were"
    if copied.damaged:
        lines["damaged"] = f"{len(copied.damaged)} spans refused"
    give(value, as_json=as_json, lines=lines)
    for finding in copied.damaged[:FINDINGS_SHOWN]:
        say(f"  {finding.where}: {finding.problem}", as_json=as_json)


def _missing(count: int, advice: str = "") -> str:
    if not count:
        return "complete"
    return f"{count} missing" + (f"; {advice}" if advice else "")


def _refuse_damaged(copied: "Copied") -> None:
    if copied.damaged:
        spans = sorted({str(finding.span) for finding in copied.damaged})
        raise CorruptError(
            f"{copied.damaged[0].where}: {copied.damaged[0].problem}; damaged are spans "
            f"{', '.join(spans[:FINDINGS_SHOWN])}; run kdcache repair on their cache, then the "
            "same command again"
        )
