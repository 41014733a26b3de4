"""The reference of the command line, by typer itself, from the commands' own help."""

import re

import typer
from typer.cli import get_docs_for_click

from kdcache.cli.app import app

_EXAMPLES = re.compile(r"^Examples?:\n\n((?: {2}\S.*\n| *\n)+)", re.MULTILINE)


def command_reference() -> str:
    """Return Markdown: a section of the second level for each command."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="kdcache")
    text = get_docs_for_click(obj=root, ctx=context, name="kdcache")
    _, _, sections = text.partition("## `")
    return _EXAMPLES.sub(_example, f"## `{sections}")


def _example(found: re.Match[str]) -> str:
    commands = re.split(r"\n\s*\n", found[1].strip())
    lines = (" \\\n  ".join(part.strip() for part in command.split("\n")) for command in commands)
    return "```sh\n" + "\n".join(lines) + "\n```\n\n"
