"""What all commands share: a list of them on one screen, and defaults from the environment."""

import re
from itertools import takewhile
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# By option, the variable that says what it is where it is not given.
SETTINGS = {
    "--data": "KDCACHE_DATA",
    "--catalogue": "KDCACHE_CATALOGUE",
    "--device": "KDCACHE_DEVICE",
    "--workers": "KDCACHE_WORKERS",
}  # KDCACHE_WHO is read where somebody publishes: beside a job that does not, --who is refused
ARGUMENT = "CATALOGUE"  # the same variable where it is an argument, and the last one
LABEL, NAME = 9, 12  # columns
_EVERYWHERE = re.compile("--quiet|--verbose|-[qv]+")
_OPTIONS = """
Options  -q, --quiet  results alone       -v, --verbose  decoders, stores, time
         -h, --help   of COMMAND: examples   --version  --install-completion
Settings KDCACHE_DATA, _CATALOGUE, _DEVICE, _WORKERS, _WHO: options' defaults"""


class Command(TyperCommand):
    """A command whose options may stand in the environment.

    Of --data, only where it must be given: elsewhere it asks for more than the command does alone.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for param in self.params:
            for option in param.opts:
                if option in SETTINGS and (param.required or option != "--data"):
                    param.envvar = SETTINGS[option]
        last = [param for param in self.params if param.param_type_name == "argument"][-1:]
        for param in last:
            if param.metavar == ARGUMENT:
                param.envvar = SETTINGS["--catalogue"]


class Root(TyperGroup):
    """The list of all commands, each a line, by what they are for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help: as typer does, which keeps what formatter holds to itself at times."""
        lines = [f"Usage: {ctx.command_path} [OPTIONS] COMMAND [ARGS]...", "", self.help or "", ""]
        panels: dict[str, list[str]] = {}
        for name, command in self.commands.items():
            assert isinstance(command, TyperCommand | TyperGroup)
            line = f"{name:<{NAME}}{command.short_help}"
            panels.setdefault(command.rich_help_panel or "", []).append(line)
        for panel, entries in panels.items():
            labels = [typer.style(f"{panel:<{LABEL}}", bold=True), *[" " * LABEL] * len(entries)]
            lines += [label + entry for label, entry in zip(labels, entries, strict=False)]
        typer.echo("\n".join((*lines, _OPTIONS)))


def hoisted(arguments: list[str]) -> list[str]:
    """Return a command line whose --quiet and --verbose, wherever they are, come first.

    A --json before the command comes last, as one of the command's own options.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = [word for word in arguments[:end] if _EVERYWHERE.fullmatch(word)]
    others = [word for word in arguments[:end] if not _EVERYWHERE.fullmatch(word)]
    early = list(takewhile("--json".__eq__, others))
    return [*found, *others[len(early) :], *early, *arguments[end:]]
