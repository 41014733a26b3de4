"""The command `kdcache`: parse, build, call, print. Heavy imports wait until a command runs."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from io import TextIOWrapper
from typing import Any, NoReturn

import typer

from kdcache import __version__
from kdcache.cli import (
    caches,
    catalogues,
    compare,
    data,
    doctor,
    evaluate,
    export,
    fidelity,
    hub,
    init,
    keys,
    output,
    plan,
    precompute,
    recipe,
    repair,
    sharing,
    show,
    status,
    teacher,
    train,
    upkeep,
)
from kdcache.cli.shell import Command, Root, hoisted
from kdcache.errors import KdcacheError, UsageError
from kdcache.texts import printable

# What typer raises of words that are no command's, from its own copy of click or from click itself.
REFUSED: Any = typer.BadParameter.__base__
MEND = "see that the path is right and yours to use, and that its disk has space"

app = typer.Typer(
    name="kdcache",
    cls=Root,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kdcache {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
    quiet: bool = typer.Option(
        False, "--quiet", "-q", help="Draw no progress and write no notes on stderr."
    ),
    verbose: bool = typer.Option(
        False, "--verbose", "-v", help="Say which decoders and stores are used, and how long."
    ),
) -> None:
    """Teacher logits computed once over seeded views, and replayed bit for bit."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose: exclude each other; leave one out")
    context.call_on_close(output.choose_talk(quiet=quiet, verbose=verbose))


# What a command is for, its name, itself or a group of such, and a line for the list of all.
Commands = tuple[str, str, Callable[..., None] | typer.Typer, str]
COMMANDS: tuple[Commands, ...] = (
    ("Start", "doctor", doctor.doctor, "Say if caches made elsewhere replay on this machine."),
    ("Start", "init", init.init, "Write a recipe and a Makefile for your own images."),
    ("Data", "pack", data.pack, "Pack images into WebDataset tars."),
    ("Data", "index", data.index, "Index WebDataset tars that are there already."),
    ("Data", "recipe", recipe.app, "Look at recipes: what decides the pixels of views."),
    ("Teach", "teacher", teacher.app, "Look at teachers before a cache is made of them."),
    ("Teach", "plan", plan.plan, "Measure what a view costs here, and what a cache will."),
    ("Teach", "fidelity", fidelity.fidelity, "Measure what encodings lose, and choose one."),
    ("Teach", "precompute", precompute.precompute, "Run the teacher over all views; resumes."),
    ("Cache", "status", status.status, "Say how far a cache is, and who writes to it."),
    ("Cache", "inspect", caches.inspect, "Say what a cache is and holds, costs and loses."),
    ("Cache", "show", show.show, "Draw a page of a cache or a run; tell what is published."),
    ("Cache", "verify", caches.verify, "Check every object; pixels and targets if asked."),
    ("Cache", "extend", upkeep.extend, "Give a cache more views, in place."),
    ("Cache", "merge", upkeep.merge, "Copy what a cache lacks from others of the same id."),
    ("Cache", "slice", upkeep.cut, "Copy some views of a cache to a new one."),
    ("Cache", "repair", repair.repair, "Find damage and mend it."),
    ("Learn", "train", train.train, "Train a student; resumes."),
    ("Learn", "eval", evaluate.evaluate, "Measure a student: accuracy, calibration, KL."),
    ("Learn", "compare", compare.compare, "Compare training runs and their settings."),
    ("Learn", "export", export.export, "Write a student as a file that runs without kdcache."),
    ("Share", "publish", sharing.publish, "Publish a cache in a catalogue."),
    ("Share", "find", catalogues.find, "List the caches of a catalogue."),
    ("Share", "fetch", sharing.fetch, "Fetch a cache, or a part of it."),
    ("Share", "sign", sharing.sign, "Sign a published cache's manifest."),
    ("Share", "ref", catalogues.ref, "Give a published cache a name, or read one."),
    ("Share", "rebuild", catalogues.rebuild, "Bring a catalogue's index in line."),
    ("Share", "gc", catalogues.gc, "Say, or delete, what no manifest names."),
    ("Share", "keys", keys.app, "Keys that sign caches, and whose you trust."),
    ("Share", "hub", hub.app, "Caches as datasets of the Hugging Face Hub."),
)


def _add(panel: str, name: str, command: Callable[..., None] | typer.Typer, line: str) -> None:
    """Add a command, or a group of them, to the command line."""
    if not isinstance(command, typer.Typer):
        app.command(name, cls=Command, rich_help_panel=panel, short_help=line)(command)
        return
    for registered in command.registered_commands:
        registered.cls = Command
    app.add_typer(command, name=name, rich_help_panel=panel, short_help=line)


for _command in COMMANDS:
    _add(*_command)


def main() -> None:
    """Run the command line; errors are one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    sys.argv[1:] = hoisted(sys.argv[1:])
    try:
        with output.results_apart() if "--json" in sys.argv else nullcontext():
            sys.exit(app(prog_name="kdcache", standalone_mode=False))
    except KdcacheError as error:
        output.trace(error)
        _end(str(error), error.exit_code)
    except OSError as error:
        output.trace(error)
        place = os.fsdecode(error.filename or "system")
        _end(f"{place}: {error.strerror or error}; {MEND}", UsageError.exit_code)
    except REFUSED as error:
        text, context = error.format_message().rstrip("."), error.ctx
        command = "kdcache" if context is None else context.command_path
        # Of a group without a command, the help is all that there is to say, and is said.
        _end(f"{text}; see {command} --help" if text else "", UsageError.exit_code)


def _end(text: str, code: int) -> NoReturn:
    """End with an error in one line."""
    if text:
        typer.echo(f"kdcache: {printable(' '.join(text.split()))}", err=True)
    sys.exit(code)
