"""Pages that commands write."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.errors import UsageError

if TYPE_CHECKING:
    from kdcache.report.page import Section

HEAD_BYTES = 1000  # of a page, within which it says that it is ours


def check_page(path: Path) -> None:
    """Check that a page can be written there: nothing but another page of ours is written over.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix.lower() not in (".html", ".htm") or not path.parent.is_dir():
        raise UsageError(f"{path}: expected a name that ends in .html, in a folder that is there")
    from kdcache.report.page import MARK

    if path.exists() and not (path.is_file() and _begins_with(path, MARK)):
        raise UsageError(f"{path}: is there, and is no page of kdcache; name another file")


def _begins_with(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        return mark.encode() in file.read(HEAD_BYTES)


def write_page(path: Path, title: str, sections: Sequence["Section"], *, script: str = "") -> int:
    """Write a page, whole; return its size in bytes."""
    from kdcache.files import write_whole
    from kdcache.report.page import render_page

    data = render_page(title, sections, script=script).encode(errors="backslashreplace")
    write_whole(path, lambda partial: partial.write_bytes(data))
    return len(data)
