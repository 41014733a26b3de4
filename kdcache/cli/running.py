"""A job run from the command line: progress, and an end by signal that loses nothing."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

from kdcache.cli.output import human_bytes, progress_bar, say
from kdcache.errors import UsageError

if TYPE_CHECKING:
    from kdcache.cache.layout import Span
    from kdcache.cache.manifest import Commit, Seal
    from kdcache.precompute.span import Job


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


def run_job(
    job: "Job", spans: list["Span"], *, whole: bool, retry_quarantined: bool, as_json: bool
) -> "Seal":
    """Compute spans, showing progress. whole: they are all that are missing.

    Ctrl-C and SIGTERM end the command: spans that are being written are finished, others are not.
    """
    from kdcache.precompute.engines import run_inline

    images = sum(job.source.num_rows(span.tar) for span in spans)
    written = 0

    def rates(done: int, seconds: float) -> str:
        rate, views = done / seconds, job.cache.grid.span_views
        return f"images, {rate:.1f} images/s, {rate * views:.0f} views/s, {human_bytes(written)}"

    def count(commit: "Commit") -> None:
        nonlocal written
        written += commit.size_bytes

    with progress_bar("precompute", images, rates=rates) as advance:
        try:
            with _terminable():
                return run_inline(
                    job,
                    None if whole else spans,
                    retry_quarantined=retry_quarantined,
                    progress=advance,
                    committed=count,
                )
        except KeyboardInterrupt as end:
            left = len(set(spans) & set(job.cache.missing()))
            stored = f"{len(spans) - left} spans more are stored"
            say(f"stopped; {stored}: the same command goes on from there", as_json=as_json)
            raise typer.Exit(143 if end.args else 130) from None


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM, as sent before pre-emption, an interrupt."""

    def interrupt(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
