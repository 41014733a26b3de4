"""The command `kdcache`: parse, build, call, print. Heavy imports wait until a command runs."""

import sys
from contextlib import nullcontext
from io import TextIOWrapper

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
    keys,
    output,
    plan,
    precompute,
    recipe,
    repair,
    sharing,
    status,
    teacher,
    train,
    upkeep,
)
from kdcache.errors import KdcacheError, UsageError
from kdcache.texts import printable

app = typer.Typer(
    name="kdcache",
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
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Teacher logits computed once over seeded views, and replayed bit for bit."""


app.command("doctor")(doctor.doctor)
app.command("pack")(data.pack)
app.command("index")(data.index)
app.add_typer(recipe.app, name="recipe")
app.add_typer(teacher.app, name="teacher")
app.add_typer(keys.app, name="keys")
app.add_typer(hub.app, name="hub")
app.command("plan")(plan.plan)
app.command("precompute")(precompute.precompute)
app.command("fidelity")(fidelity.fidelity)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("status")(status.status)
app.command("inspect")(caches.inspect)
app.command("verify")(caches.verify)
app.command("extend")(upkeep.extend)
app.command("merge")(upkeep.merge)
app.command("slice")(upkeep.cut)
app.command("repair")(repair.repair)
app.command("publish")(sharing.publish)
app.command("find")(catalogues.find)
app.command("show")(catalogues.show)
app.command("fetch")(sharing.fetch)
app.command("sign")(sharing.sign)
app.command("ref")(catalogues.ref)
app.command("rebuild")(catalogues.rebuild)
app.command("gc")(catalogues.gc)


def main() -> None:
    """Run the command line; errors are one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        with output.results_apart() if "--json" in sys.argv else nullcontext():
            app()
    except KdcacheError as error:
        typer.echo(f"kdcache: {printable(' '.join(str(error).split()))}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        typer.echo(f"kdcache: {error.filename or 'system'}: {error.strerror or error}", err=True)
        sys.exit(UsageError.exit_code)
