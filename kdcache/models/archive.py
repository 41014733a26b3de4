"""A .pt2 archive as named bytes, read with no unpickling.

Invariant: members are stored and not compressed, so what is read is never more than the file; a
member that nobody asks for (sample inputs, compiled libraries, what a stranger put there) is never
opened.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kdcache.errors import UsageError

_MAGIC = b"PK\x03\x04"
_MOST_MEMBERS = 100_000
AGAIN = "save the program again, with torch.export.save of torch 2.11 or newer"
_WEIGHTS = (
    "holds weights without their program; name the network as the teacher and this file as its "
    "weights"
)
_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,  # another compression or version
    OSError,
    RuntimeError,  # encrypted
    ValueError,  # names that are no UTF-8, offsets outside
    IndexError,
)


@dataclass(frozen=True)
class Archive:
    """An open archive. root: the folder that all its members are in."""

    file: zipfile.ZipFile
    root: str
    names: frozenset[str]

    def size(self, name: str) -> int:
        """Return how many bytes a member has."""
        return self.file.getinfo(f"{self.root}/{name}").file_size

    def read(self, name: str, most: int | None = None) -> bytearray:
        """Return a member's bytes, whose checksum is right.

        Raises:
            UsageError: it is not there, has more than `most` bytes, or is broken.
        """
        if name not in self.names:
            raise UsageError(f"has no {name!r}, the file is incomplete; {AGAIN}")
        if most is not None and self.size(name) > most:
            raise UsageError(f"{name!r} has {self.size(name)} B, expected at most {most}")
        data = bytearray(self.size(name))
        try:
            with cast(zipfile.ZipExtFile, self.file.open(f"{self.root}/{name}")) as member:
                view, filled = memoryview(data), 0
                while filled < len(data) and (count := member.readinto(view[filled:])):
                    filled += count
                view.release()
                if filled < len(data) or member.read(1):
                    raise EOFError
        except _BROKEN as error:
            raise UsageError(f"{name!r} in it is damaged: {error!r}") from None
        return data


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a .pt2 archive of torch 2.11 or newer.

    Raises:
        UsageError: it is something else, or is not as torch writes it.
    """
    with ExitStack() as stack:
        try:
            if not path.is_file():
                raise UsageError("there is no such file; expected one that torch.export.save wrote")
            handle = stack.enter_context(path.open("rb"))
            if handle.read(4) != _MAGIC:
                raise UsageError(f"is no .pt2 archive; it may be damaged, or {_WEIGHTS}")
            file = stack.enter_context(zipfile.ZipFile(handle))
            archive = _checked(file, path.stat().st_size)
        except _BROKEN as error:
            raise UsageError(f"is a damaged archive: {error!r}") from None
        yield archive


def _checked(file: zipfile.ZipFile, size: int) -> Archive:
    members = file.infolist()
    if not 0 < len(members) <= _MOST_MEMBERS:
        raise UsageError(f"has {len(members)} members, expected 1 to {_MOST_MEMBERS}")
    _check_kind({re.sub(r"^[^/]*/", "", member.filename) for member in members})
    for member in members:
        parts = member.orig_filename.split("/")
        if (
            len(parts) < 2
            or any(part in ("", ".", "..") for part in parts)
            or (not member.orig_filename.isprintable() or "\\" in member.orig_filename)
        ):
            raise UsageError(
                f"has a member {member.orig_filename[:100]!r}, expected a name in one folder"
            )
        if member.flag_bits & 1:
            raise UsageError(f"has a member {member.filename[:100]!r} that is encrypted")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise UsageError(
                f"has a member {member.filename[:100]!r} that is compressed, which torch never "
                f"does; {AGAIN}"
            )
    names = [member.orig_filename for member in members]
    if len({*names}) != len(names) or len({name.split("/")[0] for name in names}) != 1:
        raise UsageError("has two members of one name, or more than one folder")
    if (total := sum(member.file_size for member in members)) > size:
        raise UsageError(f"has members of {total} B in a file of {size} B")
    root = names[0].split("/")[0]
    archive = Archive(file, root, frozenset(name[len(root) + 1 :] for name in names))
    _check_version(archive)
    return archive


def _check_kind(names: set[str]) -> None:
    """Refuse what is no archive of an exported program, and say what it is."""
    if "archive_format" in names:
        return
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UsageError(
            "is a TorchScript archive, which carries code; export the network with torch.export "
            "and save it as .pt2"
        )
    if "data.pkl" in names:
        raise UsageError(_WEIGHTS)
    if "serialized_exported_program.json" in names:
        raise UsageError(f"is a .pt2 archive of an older layout; {AGAIN}")


def _check_version(archive: Archive) -> None:
    names = archive.names
    for name, expected in (("archive_format", b"pt2"), ("archive_version", b"0")):
        if (found := bytes(archive.read(name, 100))) != expected:
            raise UsageError(f"{name} is {found!r}, kdcache reads {expected!r}; {AGAIN}")
    if "byteorder" in names and archive.read("byteorder", 100) != b"little":
        raise UsageError("was written on a machine of another byte order; save it on this one")
