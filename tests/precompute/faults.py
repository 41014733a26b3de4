"""Faults of the machine: changes of files that fail, and what a power cut leaves of them.

Every change that this process makes below a folder passes one place, `watching`, where it is
numbered from 0, can be made to fail, and is noted once it is done. `Disk` replays what was noted
and says what may be on the disk if the power goes between two changes: bytes and names are sure
only once they were forced there, a file's by its own sync, a name by that of its folder.

Source: Pillai et al. 2014, "All File Systems Are Not Created Equal", OSDI.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest


class Change(NamedTuple):
    """A change of a file or folder, or a mark of the test's own. Paths are below the root.

    kind: a function of os; "write" starts a file, "rest" completes it after its first half.
    """

    kind: str
    path: str
    to: str = ""
    data: bytes = b""


Fault = Callable[[int, Change], None]
GROWING = {"write", "rest", "rename", "replace", "link", "mkdir", "fsync"}


class Killed(BaseException):
    """Ends a job as an interrupt does."""


def kill_at(number: int) -> Fault:
    """End the job before a change; clean-up code runs."""

    def fault(now: int, _: Change) -> None:
        if now == number:
            raise Killed

    return fault


def exit_at(number: int) -> Fault:
    """End this process before a change; no other code runs."""

    def fault(now: int, _: Change) -> None:
        if now == number:
            os._exit(9)

    return fault


def full_from(number: int) -> Fault:
    """Fill the disk before one of the changes that need room; afterwards only deleting works."""
    growing = count()

    def fault(_: int, change: Change) -> None:
        if change.kind in GROWING and next(growing) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), change.path)

    return fault


def fail_at(number: int) -> Fault:
    """Let one change fail, as where a disk has gone."""

    def fault(now: int, change: Change) -> None:
        if now == number:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), change.path)

    return fault


class _Watch:
    def __init__(self, root: Path, fault: Fault) -> None:
        self.done: list[Change] = []
        self._root, self._fault, self._count = str(root.resolve()), fault, 0

    def name(self, path: Any, folder: int | None = None) -> str | None:
        """Return a path below the root; None of any other. folder: what it is relative to."""
        base = "." if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        full = os.path.abspath(os.path.join(base, path))
        inside = f"{full}/".startswith(f"{self._root}/")
        return full[len(self._root) + 1 :] if inside else None

    def before(self, change: Change) -> None:
        number, self._count = self._count, self._count + 1
        self._fault(number, change)

    def named(self, kind: str, function: Callable[..., None]) -> Callable[..., None]:
        def change(path: Any, *args: Any, **options: Any) -> None:
            name = self.name(path, options.get("dir_fd"))
            if name is None:
                return function(path, *args, **options)
            to = self.name(args[0]) if kind in ("link", "rename", "replace") else None
            change = Change(kind, name, to or "")
            self.before(change)
            function(path, *args, **options)
            self.done.append(change)

        return change

    def synced(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(file: int) -> None:
            name = self.name(os.readlink(f"/proc/self/fd/{file}"))
            if name is not None:
                self.before(Change("fsync", name))
            function(file)
            if name is not None:
                self.done.append(Change("fsync", name))

        return fsync

    def written(self, function: Callable[[Path, bytes], int]) -> Callable[[Path, bytes], int]:
        def write_bytes(path: Path, data: bytes) -> int:
            name = self.name(path)
            if name is None:
                return function(path, data)
            self.before(Change("write", name))
            half = data[: len(data) // 2]
            function(path, half)
            self.done.append(Change("write", name, data=half))
            self.before(Change("rest", name))
            size_bytes = function(path, data)
            self.done.append(Change("write", name, data=data))
            return size_bytes

        return write_bytes


@contextmanager
def watching(root: Path, fault: Fault = lambda *_: None) -> Iterator[list[Change]]:
    """Give a list that grows by each change below a folder; fault may raise before a change."""
    watch = _Watch(root, fault)
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("mkdir", "rmdir", "unlink", "link", "rename", "replace"):
            patch.setattr(os, kind, watch.named(kind, getattr(os, kind)))
        patch.setattr(os, "fsync", watch.synced(os.fsync))
        patch.setattr(Path, "write_bytes", watch.written(Path.write_bytes))
        yield watch.done


# --- what a power cut leaves -----------------------------------------------------------------

Tree = dict[str, bytes | None]  # the bytes of each file by its path; None of a folder


@dataclass(eq=False)
class _File:
    data: bytes
    forced: bytes | None = None


@dataclass(eq=False)
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    forced: dict[str, "_File | _Folder"] = field(default_factory=dict)


class Disk:
    """A folder that was empty, as programs see it and as far as it was forced to the disk."""

    def __init__(self) -> None:
        self._root = _Folder()

    def apply(self, change: Change) -> None:
        """Make a change."""
        if change == Change("fsync", ""):
            self._root.forced = dict(self._root.names)
            return
        folder, name = self._place(change.path)
        match change.kind:
            case "mkdir":
                folder.names[name] = _Folder()
            case "write":
                folder.names[name] = _File(change.data)
            case "unlink" | "rmdir":
                del folder.names[name]
            case "link" | "rename" | "replace":
                target, to = self._place(change.to)
                target.names[to] = folder.names[name]
                if change.kind != "link":
                    del folder.names[name]
            case "fsync":
                node = folder.names[name]
                if isinstance(node, _File):
                    node.forced = node.data
                else:
                    node.forced = dict(node.names)

    def _place(self, path: str) -> tuple[_Folder, str]:
        folder, parts = self._root, PurePosixPath(path).parts
        for part in parts[:-1]:
            node = folder.names[part]
            assert isinstance(node, _Folder)
            folder = node
        return folder, parts[-1]

    def seen(self) -> Tree:
        """Return the tree as programs see it."""
        return dict(_walk(self._root, kept=lambda _: True, lost=lambda file: file.data))

    def survivors(self) -> Iterator[Tree]:
        """Yield the worst trees that a power cut may leave now.

        Names that were not forced are lost in all folders, in none, in all but one, and in one
        alone. Files whose bytes were not forced are empty, or missing.
        """
        unsure = [folder for folder in _folders(self._root) if folder.names != folder.forced]
        choices = [set[_Folder](), set(unsure)]
        for folder in unsure:
            choices += [{folder}, set(unsure) - {folder}]
        for keeping in choices:
            for instead in (b"", None):
                yield dict(
                    _walk(
                        self._root,
                        kept=lambda folder, keeping=keeping: folder in keeping,
                        lost=lambda file, instead=instead: (
                            instead if file.forced is None else file.forced
                        ),
                    )
                )


def _walk(
    folder: _Folder, *, kept: Callable[[_Folder], bool], lost: Callable[[_File], bytes | None]
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in (folder.names if kept(folder) else folder.forced).items():
        if isinstance(node, _Folder):
            yield name, None
            for below, data in _walk(node, kept=kept, lost=lost):
                yield f"{name}/{below}", data
        elif (data := lost(node)) is not None:
            yield name, data


def _folders(folder: _Folder) -> Iterator[_Folder]:
    yield folder
    below = {id(node): node for node in (*folder.names.values(), *folder.forced.values())}
    for node in below.values():
        if isinstance(node, _Folder):
            yield from _folders(node)


def lay_out(tree: Tree, root: Path) -> None:
    """Write a tree below a folder."""
    root.mkdir(parents=True)
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
