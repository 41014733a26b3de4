"""Samples of a tar, on disk or in a store: streamed once for the index, or read at random.

Invariant: a tar is streamed to its end-of-archive block or refused, and an image that is read at
random has the content digest of the index.

Members form samples by webdataset's naming rule. Departures from webdataset's reader: a cut tar is
always found, and so are keys that come back and links in the place of an image.
"""

import io
import itertools
import json
import operator
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.data.ranges import StoredFile, StoredTar, read_stored_images, stored_key_at
from kdcache.errors import DataError, KdcacheError
from kdcache.identity import content_digest

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES = 2**30
MAX_LABEL = 2**31 - 1
SMALL_IMAGE_BYTES = 1 << 14

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_META = re.compile(r"__[^/]*__($|/)")
_DIGITS = re.compile(rb"\s*\d{1,10}\s*")

TarPath = Path | StoredTar

_Parts = dict[str, tarfile.TarInfo]


@dataclass(frozen=True)
class ScannedSample:
    """A sample as a tar holds it.

    offset, size_bytes: where its image's bytes stand in the tar. content: their xxh3-64.
    label: from 0, or -1 if there is none.
    """

    key: str
    offset: int
    size_bytes: int
    content: int
    label: int


class _TarFile(io.FileIO):
    """A file whose reads ask for no more than it holds, whatever size a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size_bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self.size_bytes - self.tell())
        return super().read(min(rest, max(0, size or 0))) or b""


_Opened = _TarFile | StoredFile


def _read_member(file: _Opened, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def split_member(name: str) -> tuple[str, str] | None:
    """Return the key and the lower-case extension of a member, or None if it is in no sample.

    webdataset's rule: the key ends at the first dot of the base name, and `__x__` is metadata.
    Hidden files are in no sample either.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch: not before it is needed

    key, extension = base_plus_ext(name)
    if key is None or key.endswith("/") or _META.match(name):
        return None
    return key, extension.lower()


def scan_tar(path: TarPath, *, label_field: str = "label") -> Iterator[ScannedSample]:
    """Yield a tar's samples in order, reading the tar once; those without image are left out.

    A label is the text of a `cls` member, or the entry `label_field` of a `json` member.

    Raises:
        DataError: no readable or whole tar, a label is no integer from 0, a key comes back, a
            sample has two images, an image is a link, or no sample has an image.
    """
    empty = True
    with _open(path) as file:
        for key, parts in _grouped(path, file):
            where = f"{path}: {key}"
            image = _image(parts, where)
            if image is None:
                continue
            empty = False
            yield ScannedSample(
                key=key,
                offset=image.offset_data,
                size_bytes=image.size,
                content=content_digest(_read_member(file, image)),
                label=_label(file, parts, where=where, field=label_field),
            )
    if empty:
        raise DataError(
            f"{path}: no image; expected members such as KEY.jpg ({', '.join(IMAGE_EXTENSIONS)})"
        )


def key_at(path: TarPath, offset: int) -> str:
    """Return the key of the image whose bytes begin at offset, or "offset N" if none is found."""
    if isinstance(path, StoredTar):
        return stored_key_at(path, offset)
    return keys_of(path).get(offset, f"offset {offset}")


def keys_of(path: Path) -> dict[int, str]:
    """Return the key of each member by where its bytes begin, as far as the tar can be read."""
    found: dict[int, str] = {}
    with suppress(DataError), _open(path) as file:
        for key, parts in _grouped(path, file):
            found.update((member.offset_data, key) for member in parts.values())
    return found


def read_images(
    path: TarPath,
    offsets: NDArray[np.uint64],
    *,
    sizes: NDArray[np.uint32],
    contents: NDArray[np.uint64],
) -> list[bytes]:
    """Return the bytes of images, by one read where they lie close together.

    offsets, sizes, contents: (N,), as scanned.

    Raises:
        DataError: the tar is missing, shorter, or holds other bytes there.
    """
    if isinstance(path, StoredTar):
        return read_stored_images(path, offsets, sizes=sizes, contents=contents)
    spans = [(int(offset), int(size)) for offset, size in zip(offsets, sizes, strict=True)]
    try:
        images = _read_spans(path, spans) if spans else []
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; restore the tar, or check its path") from error
    for (offset, _), image, content in zip(spans, images, contents, strict=True):
        if content_digest(image) != content:
            raise _changed(path, offset, reason="other bytes than indexed")
    return images


def _read_spans(path: Path, spans: list[tuple[int, int]]) -> list[bytes]:
    """Return the bytes of spans: small ones that lie together by one read, larger ones each by one.

    One read for all means one more copy of each; the kernel is told of all instead.
    """
    start = min(offset for offset, _ in spans)
    length = max(offset + size for offset, size in spans) - start
    wanted = sum(size for _, size in spans)
    together = length <= min(2 * wanted, MAX_IMAGE_BYTES)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if together and wanted < SMALL_IMAGE_BYTES * len(spans):
            data = os.pread(descriptor, length, start)
            return [data[offset - start : offset - start + size] for offset, size in spans]
        if together and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
        return [os.pread(descriptor, size, offset) for offset, size in spans]
    finally:
        os.close(descriptor)


def _changed(path: TarPath, offset: int, *, reason: str) -> DataError:
    return DataError(
        f"{path}: {key_at(path, offset)}: {reason}; "
        "the tar changed since it was indexed: run kdcache index again"
    )


def _open(path: TarPath) -> _Opened:
    if isinstance(path, StoredTar):
        return StoredFile(path)
    try:
        return _TarFile(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; check the path of the tar") from error


def _grouped(path: TarPath, file: _Opened) -> Iterator[tuple[str, _Parts]]:
    """Yield each key with its members by extension."""
    seen = set()
    for key, run in itertools.groupby(_named(path, file), key=operator.itemgetter(0)):
        members = [(extension, member) for _, extension, member in run]
        parts = dict(members)
        if key in seen or len(parts) < len(members):
            found = "comes back after other keys" if key in seen else "has an extension twice"
            raise DataError(
                f"{path}: {key}: {found}; a sample's members must be unique and side by side: "
                "write the tar again"
            )
        seen.add(key)
        yield key, parts


def _named(path: TarPath, file: _Opened) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    for member in _members(path, file):
        name = None if member.isdir() else split_member(member.name)
        if name is not None:
            yield *name, member


def _members(path: TarPath, file: _Opened) -> Iterator[tarfile.TarInfo]:
    """Yield a tar's members, then require its end-of-archive block.

    tarfile takes a bad header after the first for the end, so the block at the end is read again.
    """
    at = 0
    try:
        tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="strict")
        while (member := tar.next()) is not None:
            if not member.offset_data <= tar.offset <= file.size_bytes:
                raise tarfile.ReadError(f"{member.name} claims {member.size} bytes")
            tar.members.clear()  # type: ignore[attr-defined]  # not in typeshed; else all are kept
            at = tar.offset
            yield member
        file.seek(at)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("neither a member nor the end of the archive")
    except KdcacheError:
        raise
    except Exception as error:  # tarfile raises many kinds for bytes that are no tar
        raise _damaged(path, file, at=at, reason=str(error)) from error


def _damaged(path: TarPath, file: _Opened, *, at: int, reason: str) -> DataError:
    file.seek(0)
    start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if at == 0 and start.startswith(magic):
            return DataError(f"{path}: byte 0: a {name} file, expected a plain tar; decompress it")
    return DataError(
        f"{path}: byte {at} of {file.size_bytes}: {reason}; "
        "the tar is cut or damaged: copy or write it again"
    )


def _image(parts: _Parts, where: str) -> tarfile.TarInfo | None:
    """Return a sample's one image, if any; what is read of the sample must be plain files."""
    images = [extension for extension in IMAGE_EXTENSIONS if extension in parts]
    if not images:
        return None
    if len(images) > 1:
        raise DataError(f"{where}: {len(images)} images ({', '.join(images)}), expected one")
    for extension in (*images, "cls", "json"):
        member = parts.get(extension)
        if member is not None and (not member.isreg() or member.issparse()):
            raise DataError(
                f"{where}: its {extension} is a link, sparse or special, expected a plain file; "
                "write the tar again with tar --dereference --hard-dereference"
            )
    image = parts[images[0]]
    if image.size > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: an image of {image.size} bytes, at most {MAX_IMAGE_BYTES}")
    return image


def _label(file: _Opened, parts: _Parts, *, where: str, field: str) -> int:
    found: list[object] = []
    if "cls" in parts:
        text = _read_member(file, parts["cls"])
        found.append(int(text) if _DIGITS.fullmatch(text) else text[:20])
    if "json" in parts:
        value = _json_field(_read_member(file, parts["json"]), where=where, field=field)
        found += [value] if value is not None else []
    labels: list[int] = []
    for label in found:
        if type(label) is not int or not 0 <= label <= MAX_LABEL:
            raise DataError(f"{where}: label {label!r}, expected an integer from 0 to {MAX_LABEL}")
        labels.append(label)
    if len(set(labels)) > 1:
        raise DataError(f"{where}: cls says label {labels[0]}, json says {labels[1]}; correct one")
    return labels[0] if labels else -1


def _json_field(text: bytes, *, where: str, field: str) -> object:
    try:
        return json.loads(text).get(field)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: its json is not a JSON object: {error}; correct it") from error
