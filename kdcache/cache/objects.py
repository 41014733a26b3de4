"""A folder of named objects: the only code that writes or syncs a cache's files.

Invariant: an object is seen whole or not at all, and what is published has reached the disk. Only
notes, which hold no data, are not forced there.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from kdcache.errors import CorruptError, KdcacheError, UsageError
from kdcache.files import PARTIAL, read_small, sync, write_whole

MOST_BYTES = 1 << 26  # of what is read whole: documents, records, names of samples


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sweep(folder: Path, prefix: str = "") -> None:
    """Delete the partial files of a folder whose names begin so."""
    for entry in list(os.scandir(folder)):
        if entry.name.startswith(prefix) and entry.name.endswith(PARTIAL):
            Path(entry.path).unlink(missing_ok=True)


def unreadable(path: Path | str, error: OSError) -> KdcacheError:
    """Return what to raise where the system cannot read a file of a cache."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return CorruptError(f"{path}: missing; run kdcache repair")
    if isinstance(error, PermissionError):
        return UsageError(f"{path}: {error.strerror}; give permission to read it")
    if isinstance(error, IsADirectoryError):
        return CorruptError(f"{path}: a folder stands in its place; run kdcache repair")
    # It may be as sound as it was: nothing is withdrawn for it.
    return UsageError(
        f"{path}: cannot be read: {error.strerror}; run the same command again; if the disk has "
        "lost the file, delete it and run kdcache repair"
    )


class Folder:
    """Objects under a local path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: it is missing.
            CorruptError, UsageError: the system cannot read it.
        """
        try:
            return read_small(self.path / name, most_bytes=MOST_BYTES)
        except FileNotFoundError:
            raise
        except ValueError as error:
            raise CorruptError(
                f"{self.path / name}: damaged: {error}; run kdcache repair"
            ) from None
        except OSError as error:
            raise unreadable(self.path / name, error) from error

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""
        return (self.path / name).is_file()

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder, sorted."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def publish(self, name: str, data: bytes, *, replace: bool = False) -> bool:
        """Write a whole object durably; return False, changing nothing, if it is there already.

        One that is replaced has one writer at a time: what killed ones left of it is swept away.
        """
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            _sweep(target.parent, f".{target.name}.")
        fill = partial(_fill, data=data)
        published = write_whole(target, fill, replace=replace, sync_folder=False)
        self.sync_folders([name])  # the object's folder may be as new
        return published

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write whole objects, in place of what is there, and force them to the disk.

        What killed writers left beside them is swept away.
        """
        for name, data in objects.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target.parent)
            write_whole(target, partial(_fill, data=data), sync_folder=False)
        self.sync_folders(objects)

    def note(self, name: str, data: bytes) -> None:
        """Write a whole object that may be lost, in place of what is there, forcing nothing.

        Its folder is made, but not the folders above, which somebody may have deleted.
        """
        (self.path / name).parent.mkdir(exist_ok=True)
        fill = partial(_fill, data=data)
        write_whole(self.path / name, fill, sync_file=False, sync_folder=False)

    def drop(self, name: str) -> None:
        """Delete a note, and its folder if that was the last."""
        (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # others are there
            (self.path / name).parent.rmdir()

    def modified(self, name: str) -> float:
        """Return when an object was written, in seconds since 1970, by its file system's clock."""
        return (self.path / name).stat().st_mtime

    def now(self, folder: str) -> float | None:
        """Return the time by the file system's clock; None where nothing can be written.

        A file server has a clock of its own, which only a file that is written now can tell.
        """
        try:
            with tempfile.TemporaryFile(dir=self.path / folder) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    def sync_folders(self, names: Iterable[str]) -> None:
        """Force the names of objects, and of the folders on the way to them, to the disk."""
        folders: set[Path] = set()
        for name in names:
            folders.update(Path(name).parents)
        for folder in sorted(folders, reverse=True):
            sync(self.path / folder)

    def settle(self, folder: str) -> None:
        """Sweep what killed writers left in a folder, and force all its names to the disk.

        A writer may have died between naming an object and forcing the name.
        """
        for name in self.names(folder):
            if name.endswith(PARTIAL):
                os.unlink(self.path / folder / name)
        self.sync_folders([f"{folder}/"])
        sync(self.path / folder)

    def remove(self, name: str) -> None:
        """Delete an object if it is there, durably.

        Raises:
            UsageError: a folder stands in its place.
        """
        if (self.path / name).is_dir():
            raise UsageError(
                f"{self.path / name}: a folder stands in a file's place; move it away, then run "
                "the same command again"
            )
        (self.path / name).unlink(missing_ok=True)
        if (self.path / name).parent.is_dir():
            sync((self.path / name).parent)

    def digest(self, name: str) -> dict[str, int | str]:
        """Return an object's size in bytes and sha256.

        Raises:
            CorruptError, UsageError: the object is missing, or cannot be read.
        """
        try:
            with (self.path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                return {"size_bytes": file.tell(), "sha256": found}
        except OSError as error:
            raise unreadable(self.path / name, error) from None

    @contextmanager
    def lock(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Hold one numbered lock of this folder; yields False if another process holds it.

        Raises:
            UsageError: as Locks.
        """
        with Locks(self.path) as locks:
            yield locks.take(number, wait=wait)


class Locks:
    """Numbered locks of a folder, released by the system when this process dies.

    Byte ranges of one file. POSIX drops all locks of a process when it closes that file once: a
    process holds those of a folder by one of these at a time.

    Raises:
        UsageError: the folder is read-only, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        try:
            self._file = self._path.open("ab")
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> "Locks":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, number: int, *, wait: bool) -> bool:
        """Take a lock; return False if another process holds it, unless waiting for it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise self._refused(error) from error
        return True

    def free(self, number: int) -> None:
        """Give a lock back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def _refused(self, error: OSError) -> UsageError:
        return UsageError(
            f"{self._path}: cannot be locked: {error.strerror}; give permission to write there, or "
            "choose another path, then run the same command again"
        )
