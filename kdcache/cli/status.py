"""kdcache status."""

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kdcache.cli.caches import CachePath
from kdcache.cli.data import Json
from kdcache.cli.output import give, human_bytes, human_time, say, table
from kdcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdcache.cache.status import Status
    from kdcache.cache.writers import Writer

DESERTED_S = 120.0
SHOWN = 5  # quarantined spans with their errors


def status(
    cache: CachePath,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            metavar="SECONDS",
            help="Look again so often, until nobody works on it any more, or Ctrl-C.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how far a cache is, who writes to it, how fast, and what is quarantined.

    Reads no targets, and may be run anywhere that sees the cache, while jobs write to it.

    Examples:

      kdcache status build/cache

      kdcache status build/cache --watch 10
    """
    if watch is not None and as_json:
        raise UsageError(
            "--watch draws for people; with --json, run kdcache status again and again"
        )
    if watch is not None:
        _watch(cache, watch)
        return
    seen = _read(cache)
    give(_value(cache, seen), as_json=as_json, lines=_lines(cache, seen))


def _read(cache: Path) -> "Status":
    from kdcache.cache.status import read_status
    from kdcache.cache.store import open_cache

    return read_status(open_cache(cache))


def _watch(cache: Path, seconds: float) -> None:
    """Draw the table again and again on a terminal; elsewhere write lines, and it in the end."""
    console = Console(highlight=False)
    try:
        if not console.is_interactive:
            for seen in _looks(cache, seconds):
                if not seen.is_over:
                    say(_line(seen), as_json=False)
            say(table(_lines(cache, seen)), as_json=False)
            return
        with Live(console=console, auto_refresh=False) as live:
            for seen in _looks(cache, seconds):
                live.update(Text(table(_lines(cache, seen))), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(cache: Path, seconds: float) -> "Iterator[Status]":
    """Yield what is seen until all is there, or nobody has been at work for two minutes."""
    alive_at = time.monotonic()
    while not (seen := _read(cache)).is_over:
        yield seen
        if seen.alive:
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > DESERTED_S:
            return
        time.sleep(seconds)
    yield seen


def _line(seen: "Status") -> str:
    """Return the most important of it in one line."""
    alive, aside = len(seen.alive), len(seen.quarantined)
    parts = [
        _share(seen),
        f"{seen.spans[0]} of {seen.spans[1]} spans",
        f"{seen.views_per_s:,.0f} views/s",
        f"time left {_left(seen)}",
        _count(alive, "writer"),
    ]
    if aside:
        parts.append(f"{aside} quarantined")
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {', '.join(parts)}"


def _lines(cache: Path, seen: "Status") -> dict[str, object]:
    whole, begun, tars = seen.tars
    size = "unknown" if seen.size_bytes is None else human_bytes(seen.size_bytes)
    lines: dict[str, object] = {
        "cache": cache,
        "coverage": f"{_share(seen)}: {seen.spans[0]:,} of {seen.spans[1]:,} spans, "
        f"{seen.views[0]:,} of {seen.views[1]:,} views",
        "tars": f"{whole:,} of {tars:,} complete, {begun:,} begun",
        "size": size if seen.size_is_exact or seen.size_bytes is None else f"about {size}",
        "sealed": _seal(seen),
    }
    if not seen.is_over:
        lines["rate"] = f"{seen.views_per_s:,.0f} views/s"
        lines["time left"] = _left(seen)
    if not seen.writers:
        lines["writers"] = "none"
    for writer in seen.writers:
        lines[f"writer {writer.name}"] = _writer(writer)
    if seen.quarantined:
        lines["quarantined"] = (
            f"{_count(len(seen.quarantined), 'span')}; once their causes are mended, kdcache "
            "precompute --retry-quarantined tries again"
        )
    for span, error in list(seen.quarantined.items())[:SHOWN]:
        lines[f"  span {span}"] = " ".join(str(error).split())
    if len(seen.quarantined) > SHOWN:
        lines["  …"] = f"{len(seen.quarantined) - SHOWN} more: kdcache status --json lists all"
    for number, note in enumerate(seen.notes, 1):
        lines[f"note {number}"] = note
    return lines


def _share(seen: "Status") -> str:
    """Return the coverage, rounded down: only what is complete is 100%."""
    done, of = seen.views
    return f"{done * 1000 // max(of, 1) / 10:.1f}%"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _seal(seen: "Status") -> str:
    if seen.is_sealed:
        return "yes"
    if seen.is_complete and not seen.alive:
        return "no, though complete: run kdcache precompute again"
    return "no"


def _left(seen: "Status") -> str:
    return "unknown" if seen.left_s is None else human_time(seen.left_s)


def _writer(writer: "Writer") -> str:
    written = f"{_count(writer.spans_done, 'span')}, {_count(writer.views_done, 'view')} written"
    parts = [writer.device, written]
    if writer.is_alive:
        parts.insert(1, f"{writer.views_per_s:,.0f} views/s")
        parts.append("between spans" if writer.span is None else f"at span {writer.span}")
    else:
        since = datetime.now(UTC) - timedelta(seconds=writer.silent_s)
        parts.append(f"silent since {since:%Y-%m-%d %H:%M:%S} UTC ({human_time(writer.silent_s)})")
    return ", ".join(parts)


def _value(cache: Path, seen: "Status") -> dict[str, Any]:
    """Return the status as JSON has it."""
    whole, begun, tars = seen.tars
    return {
        "path": str(cache),
        "complete": seen.is_complete,
        "sealed": seen.is_sealed,
        "spans_done": seen.spans[0],
        "spans": seen.spans[1],
        "views_done": seen.views[0],
        "views": seen.views[1],
        "views_left": seen.views_left,
        "tars_complete": whole,
        "tars_begun": begun,
        "tars": tars,
        "size_bytes": seen.size_bytes,
        "size_is_exact": seen.size_is_exact,
        "views_per_s": seen.views_per_s,
        "left_s": seen.left_s,
        "writers": [_writer_value(writer) for writer in seen.writers],
        "quarantined": {str(span): str(error) for span, error in seen.quarantined.items()},
        "notes": list(seen.notes),
    }


def _writer_value(writer: "Writer") -> dict[str, Any]:
    return {
        **asdict(writer),
        "started": writer.started.isoformat(),
        "updated": writer.updated.isoformat(),
        "span": None if writer.span is None else str(writer.span),
        "silent_s": round(writer.silent_s, 1),
        "alive": writer.is_alive,
    }
