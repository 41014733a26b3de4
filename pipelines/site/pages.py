"""The generated parts of the documentation: a line `<!-- NAME -->` of a page gives place to them.

Nothing is written to disk, so nothing can be stale: the reference is that of the code that is
imported while the site is built.
"""

from collections.abc import Callable
from typing import Any

from pipelines.site.api import api_reference
from pipelines.site.commands import command_reference

PARTS: dict[str, Callable[[], str]] = {
    "commands": command_reference,
    "api": api_reference,
}


def fill(app: Any, name: str, source: list[str]) -> None:
    """Fill a page's text in place: Sphinx's event source-read, before the page is parsed."""
    for part, make in PARTS.items():
        marker = f"<!-- {part} -->"
        if marker in source[0]:
            source[0] = source[0].replace(marker, make())
