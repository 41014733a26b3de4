"""Files written whole or not at all, and forced to the disk."""

import fcntl
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcache.errors import UsageError

LOCK = ".lock"
PARTIAL = ".partial"  # how the names of files end that are being written


def write_whole(
    path: Path,
    write: Callable[[Path], object],
    *,
    replace: bool = True,
    sync_file: bool = True,
    sync_folder: bool = True,
) -> bool:
    """Write a file by way of a partial one beside it; a killed writer changes nothing.

    write: writes the file it is given. replace: False leaves a file that is there already, and
    returns False. sync_file: False is for what a power cut may take. sync_folder: False leaves it
    to the caller to force the new name to the disk.

    Raises:
        OSError: the folder is full or read-only, or of what write raises.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write(partial)
        if sync_file:
            sync(partial)
        if replace:
            os.replace(partial, path)
        else:
            os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) == str(partial):
            error.filename = str(path)  # the name that people know
        raise
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError as error:
            if error.__context__ is None:  # else what went wrong before is what is told
                raise
    if sync_folder:
        sync(path.parent)
    return True


def read_small(path: Path, *, most_bytes: int) -> bytes:
    """Return what a regular file holds; pipes and devices, which may never end, are not read.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no regular file, or larger than most_bytes.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"larger than {most_bytes >> 20} MiB")
    return data


def parse_toml(data: bytes, source: Path) -> dict[str, Any]:
    """Return what a file of TOML says.

    Raises:
        UsageError: it is none.
    """
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # What Python advises of numbers with too many digits is for those who write Python.
        problem = str(error).partition("; use sys.")[0]
        raise UsageError(f"{source}: not a TOML file: {problem}") from None


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder's lock: its file .lock, freed by the system when this process dies.

    A record lock, since forked workers, which may outlive their parent, do not inherit it.

    Raises:
        UsageError: another process holds it; says refusal.
    """
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UsageError(f"{folder}: {refusal}") from None
        yield
