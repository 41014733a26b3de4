"""What lies in a folder of this machine, as a store would list it.

Invariant: nothing outside the folder is ever listed: links are not followed, nor are they objects;
neither are pipes and devices, nor names that no store would have.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdcache.errors import UsageError

_BEGUN = re.compile(r".*#\d+")  # how obstore names what it is about to rename


class Entry(NamedTuple):
    """An object in a listing. modified: seconds since 1970, by the store's clock."""

    name: str
    size_bytes: int
    modified: float


def list_files(folder: Path, prefix: str) -> Iterator[Entry]:
    """Yield the files below a prefix of a folder, in any order.

    Raises:
        UsageError: a folder cannot be read.
    """
    parts = Path(prefix).parts
    if any((folder / Path(*parts[:count])).is_symlink() for count in range(1, len(parts) + 1)):
        return
    for path, folders, files in _walk(folder / prefix):
        folders[:] = filter(str.isprintable, folders)
        for file in filter(_is_object, files):
            entry = os.path.join(path, file)
            try:
                status = os.lstat(entry)
            except FileNotFoundError:  # deleted meanwhile
                continue
            if os.path.isfile(entry) and not os.path.islink(entry):
                name = os.path.relpath(entry, folder)
                yield Entry(name, status.st_size, status.st_mtime)


def list_folders(folder: Path) -> list[str]:
    """Return the names of the folders directly in a folder, sorted.

    Raises:
        UsageError: it cannot be read.
    """
    if folder.is_symlink():
        return []
    for path, folders, _ in _walk(folder):
        return sorted(f for f in folders if f.isprintable() and not (Path(path) / f).is_symlink())
    return []


def _is_object(name: str) -> bool:
    return name.isprintable() and _BEGUN.fullmatch(name) is None


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UsageError(f"{error.filename}: {error.strerror}; give permission to read it")

    return os.walk(folder, onerror=refuse)
