"""A job run from the command line: progress, and an end by signal that loses nothing."""

from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from kdcache.cli.output import human_bytes, progress_bar, say
from kdcache.errors import UsageError
from kdcache.processes import terminable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdcache.cache.layout import Span
    from kdcache.cache.manifest import Commit, Seal
    from kdcache.cache.store import Cache


MAX_BATCH = 2**20


def read_slice(text: str | None) -> tuple[int, int] | None:
    """Return part and number of parts of "i/n", i from 0.

    Raises:
        UsageError: the text is no such slice.
    """
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    with suppress(ValueError):
        if slash and 0 <= int(part) < int(parts):
            return int(part), int(parts)
    raise UsageError(f"--slice {text[:40]!r}: expected i/n with i from 0 to n - 1, such as 0/8")


def run_visibly(
    store: "Cache",
    spans: list["Span"],
    run: "Callable[..., Seal]",
    *,
    as_json: bool,
) -> "tuple[Seal, int]":
    """Compute spans of a cache, showing progress; return its totals and how many spans were stored.

    run: does so, given what to tell of images that are done (progress), and of spans (committed).
    Ctrl-C and SIGTERM end the command: spans that are being written are finished, others are not.
    """
    of_span = store.grid.span_views
    views = of_span * sum(int(store.rows[span.tar]) for span in spans)
    written = num_spans = 0

    def rates(done: int, seconds: float) -> str:
        size = f", {human_bytes(written)} stored" if written else ""
        return f"views, {done / seconds:.1f} views/s{size}"

    def count(commit: "Commit") -> None:
        nonlocal written, num_spans
        written += commit.size_bytes
        num_spans += 1

    with progress_bar("precompute", views, rates=rates) as advance_views:

        def advance(images: int) -> None:
            advance_views(images * of_span)

        try:
            with terminable():
                return run(progress=advance, committed=count), num_spans
        except KeyboardInterrupt as end:
            left = len(set(spans) & set(store.missing()))
            stored = f"{len(spans) - left} spans more are stored"
            say(f"stopped; {stored}: the same command goes on from there", as_json=as_json)
            raise typer.Exit(143 if end.args else 130) from None


def read_batch_size(text: str) -> int | None:
    """Return a batch size; None of "auto".

    Raises:
        UsageError: the text is neither.
    """
    if text == "auto":
        return None
    with suppress(ValueError):
        if 1 <= int(text) <= MAX_BATCH:
            return int(text)
    raise UsageError(f"--batch-size {text[:40]!r}: expected auto, or 1 to {MAX_BATCH}")
