"""A folder of named objects: the only code that writes or syncs a cache's files.

Invariant: an object is seen whole or not at all, and what is published has reached the disk.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import CorruptError, UsageError
from kdcache.files import sync, write_whole


class Folder:
    """Objects under a local path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return (self.path / name).read_bytes()

    def exists(self, name: str) -> bool:
        """Return whether an object is there."""
        return (self.path / name).is_file()

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder, sorted."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path / folder))
        except FileNotFoundError:
            return []

    def publish(self, name: str, data: bytes, *, replace: bool = False) -> bool:
        """Write a whole object durably; return False, changing nothing, if it is there already."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(target, lambda path: path.write_bytes(data), replace=replace)

    def clear(self, names: tuple[str, ...]) -> None:
        """Delete objects and whatever a killed writer left beside them."""
        for name in names:
            folder = (self.path / name).parent
            if folder.is_dir():
                for entry in list(os.scandir(folder)):
                    os.unlink(entry.path)

    def sync(self, names: tuple[str, ...]) -> None:
        """Force objects, and the folders on the way to them, to the disk."""
        folders: set[Path] = set()
        for name in names:
            sync(self.path / name)
            folders.update((self.path / name).relative_to(self.path).parents)
        for folder in sorted(folders, reverse=True):
            sync(self.path / folder)

    def digest(self, name: str) -> dict[str, int | str]:
        """Return an object's size in bytes and sha256.

        Raises:
            CorruptError: the object is missing.
        """
        try:
            with (self.path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                return {"size_bytes": file.tell(), "sha256": found}
        except FileNotFoundError:
            raise CorruptError(
                f"{self.path / name}: missing; delete the commit record and run precompute again"
            ) from None

    @contextmanager
    def lock(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Hold the numbered lock of this folder; yields False if another process holds it.

        Locks are byte ranges of one file, released by the system when a process dies. A process
        may hold one at a time: POSIX drops all of them when it closes the file once.

        Raises:
            UsageError: the folder is read-only, or its file system has no locks.
        """
        try:
            file = (self.path / ".lock").open("ab")
        except OSError as error:
            raise self._no_lock(error) from error
        with file:
            try:
                flags = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(file, flags, 1, number)
                held = True
            except (BlockingIOError, PermissionError):
                held = False
            except OSError as error:
                raise self._no_lock(error) from error
            yield held  # closing the file releases the lock

    def _no_lock(self, error: OSError) -> UsageError:
        return UsageError(
            f"{self.path / '.lock'}: cannot be locked: {error.strerror}; give permission to write "
            "there, or choose another path, then run precompute again"
        )
