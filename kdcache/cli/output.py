"""What commands print: JSON on stdout, everything else beside it; progress on stderr."""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from kdcache.identity import finite
from kdcache.texts import human_bytes as human_bytes
from kdcache.texts import printable

LOG_EVERY_S = 30.0
_LINES = "\n\t"  # of the texts that stay as they are

_results: TextIO | None = None  # where JSON goes, if not to sys.stdout
_quiet = _verbose = False


@contextmanager
def results_apart() -> Iterator[None]:
    """Let nothing but results reach stdout: what models print goes to stderr."""
    global _results
    _results = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = None


def choose_talk(*, quiet: bool, verbose: bool) -> Callable[[], None]:
    """Set how much is written on stderr; return what to call when the command is done.

    quiet: no progress, no notes. verbose: what modules log of what they use, what the command took,
    and where errors arose.
    """
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose
    log, started = logging.getLogger("kdcache"), time.monotonic()
    handler = logging.StreamHandler() if verbose else logging.NullHandler()
    handler.setFormatter(logging.Formatter("kdcache: after %(relativeCreated).0f ms: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.NOTSET)

    def done() -> None:
        passed, used = time.monotonic() - started, time.process_time()
        log.debug("done in %.1f s; this process took %.1f s of its cores", passed, used)

    return done


def trace(error: BaseException) -> None:
    """When verbose, write where an error arose, and those it came from.

    Of the latter without their texts, which may hold credentials.
    """
    while _verbose:
        frames = "".join(traceback.format_tb(error.__traceback__))
        typer.echo(f"{frames}{type(error).__qualname__}", err=True)
        cause = error.__cause__ or error.__context__
        if cause is None:
            return
        error = cause
        typer.echo("which came of:", err=True)


def say(text: str, *, as_json: bool) -> None:
    """Print a line for people: on stdout, or on stderr when stdout carries JSON."""
    if as_json and _quiet:
        return
    shown = printable(text, keep=_LINES)
    Console(stderr=as_json, highlight=False, soft_wrap=True, markup=False).print(shown)


def hint(text: str) -> None:
    """Print a note for people on stderr, unless they want none."""
    if not _quiet:
        say(text, as_json=True)


def give(value: Mapping[str, Any], *, as_json: bool, lines: Mapping[str, object]) -> None:
    """Print a result: value as JSON, or lines as a table for people."""
    if as_json:
        text = json.dumps(finite(value), indent=1, allow_nan=False)
        typer.echo(text, file=_results or sys.stdout)
        return
    say(table(lines), as_json=False)


def table(lines: Mapping[str, object]) -> str:
    """Return names and texts in two columns."""
    width = max(len(name) for name in lines)
    return "\n".join(
        f"{name:<{width}}  {printable(str(text), keep=_LINES)}" for name, text in lines.items()
    )


def human_time(seconds: float) -> str:
    """Return a duration in seconds, minutes, hours or days."""
    for unit, size in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < size:
            return f"{seconds:.0f} {unit}" if unit == "s" else f"{seconds:.1f} {unit}"
        seconds /= 24 if unit == "h" else size
    return f"{seconds:.1f} days"


@contextmanager
def progress_bar(
    label: str, total: int, *, rates: Callable[[int, float], str]
) -> Iterator[Callable[[int], None]]:
    """Yield a function to be given the number of items done since the last call.

    Draws a bar on a terminal; elsewhere writes a line every 30 seconds. rates: text from items done
    and seconds passed.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
        console=console,
        disable=_quiet or not console.is_interactive,
    )
    started = logged = time.monotonic()
    done = 0
    with bar:
        task = bar.add_task(label, total=total, rates="")

        def advance(count: int) -> None:
            nonlocal done, logged
            done += count
            now = time.monotonic()
            text = rates(done, max(now - started, 1e-9))
            bar.update(task, completed=done, rates=text)
            if not console.is_interactive and not _quiet and now - logged > LOG_EVERY_S:
                logged = now
                left = human_time((total - done) * (now - started) / max(done, 1))
                line = f"{label} {done}/{total} {text}, {left} left"
                console.print(line, highlight=False, soft_wrap=True, markup=False)

        yield advance
