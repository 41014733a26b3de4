"""Tiles as chunks, chunks as shard objects: the codecs of the Zarr metadata, applied directly.

A chunk is a Blosc frame and its crc32c. A shard is the chunks of a span, view after view, then its
index: offset and size of each as u8, and the index's crc32c. Objects are byte for byte those that
zarr-python writes; read here, a tile costs a tenth of its time there.

Source: Zarr v3 specification, codecs "sharding_indexed", "blosc" and "crc32c".
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from kdcache.errors import CorruptError
from kdcache.targets.packed import Arrays, from_stored, to_stored
from kdcache.targets.target import Compression, FieldSpec

LEVEL = 5
# Of a Blosc frame: version, the compressor's version, flags, bytes of an item, of what it holds,
# of a block, of itself. Flags: how it is shuffled, and from bit 5 on the compressor's format.
_HEADER = struct.Struct("<BBBBIII")
_VERSION = 2
_FORMATS = {"lz4": 1, "zstd": 4}
_SHUFFLES = {blosc.NOSHUFFLE: 0, blosc.SHUFFLE: 1, blosc.BITSHUFFLE: 4}
_SHUFFLED = 0b1101  # and bit 3, which is never set
CHECKSUM_BYTES = 4
_RESIDUE = 0x48674BC7  # crc32c of any data and its own crc32c
# Compressor, shuffle, and bytes of a block: few, since each starts zstd anew; 0 leaves it to Blosc.
CODECS: dict[Compression, tuple[str, int, int]] = {
    "lz4-bitshuffle": ("lz4", blosc.BITSHUFFLE, 0),
    "zstd-bitshuffle": ("zstd", blosc.BITSHUFFLE, 0),
    "zstd-shuffle": ("zstd", blosc.SHUFFLE, 0),
    "zstd-shuffle-1mib": ("zstd", blosc.SHUFFLE, 1 << 20),
    "zstd": ("zstd", blosc.NOSHUFFLE, 0),
}


class Place(NamedTuple):
    """Where a chunk stands in its object, and its crc32c."""

    offset: int
    size_bytes: int
    crc32c: int


def checksum(data: bytes) -> int:
    """Return the crc32c of data."""
    return int(google_crc32c.value(data))


def with_checksum(data: bytes) -> bytes:
    """Return data followed by its crc32c, little-endian."""
    return data + checksum(data).to_bytes(CHECKSUM_BYTES, "little")


def stated_checksum(chunk: bytes) -> int | None:
    """Return the crc32c at the end of a chunk; None if it is not that of the data before it."""
    stated = int.from_bytes(chunk[-CHECKSUM_BYTES:], "little")
    return stated if checksum(chunk) == _RESIDUE else None


def without_checksum(chunk: bytes, where: str) -> bytes:
    """Return a chunk's data, compared with the checksum at its end.

    Raises:
        CorruptError: they differ.
    """
    if stated_checksum(chunk) is None:
        raise CorruptError(f"{where}: damaged: its checksum differs; run kdcache repair")
    return chunk[:-CHECKSUM_BYTES]


def encode_tile(rows: Arrays, specs: Sequence[FieldSpec], *, num_rows: int) -> dict[str, bytes]:
    """Return a tile's chunks as they are stored, by array.

    rows: arrays (at most num_rows, width) of the encoding's dtypes. num_rows: of the largest tar.
    """
    stored = to_stored(rows, tuple(specs), num_rows=num_rows)
    return {spec.name: with_checksum(_compress(stored[spec.name], spec)) for spec in specs}


def decode_tile(
    chunks: dict[str, bytes],
    specs: Sequence[FieldSpec],
    *,
    num_rows: int,
    max_rows: int,
    where: str,
) -> Arrays:
    """Return a tile's arrays (num_rows, width). max_rows: of the largest tar.

    Raises:
        CorruptError: a chunk does not hold such an array; checksums are the caller's to compare.
    """
    stored: Arrays = {}
    for spec in specs:
        count = max_rows * spec.width
        frame = memoryview(chunks[spec.name])[:-CHECKSUM_BYTES]
        try:
            _check_frame(frame, spec, num_bytes=count * np.dtype(spec.dtype).itemsize)
            array: NDArray[Any] = np.empty(count, spec.dtype)
            blosc.decompress(frame, array)
        except (ValueError, RuntimeError) as error:
            raise CorruptError(
                f"{where}: {spec.name} is damaged: {error}; run kdcache repair"
            ) from error
        stored[spec.name] = array if spec.layout == "ragged" else array.reshape(max_rows, -1)
    try:
        return from_stored(stored, tuple(specs), num_rows=num_rows)
    except ValueError as error:
        raise CorruptError(f"{where}: {error}; run kdcache repair") from error


def _check_frame(frame: memoryview, spec: FieldSpec, *, num_bytes: int) -> None:
    """Check a Blosc frame's header: numcodecs reads as far as it says, beyond the frame's end.

    Raises:
        ValueError: the frame is not as long as it says, here or decompressed, or not made as those
            of its array are.
    """
    if len(frame) < _HEADER.size:
        raise ValueError("too short")
    version, _, flags, item_bytes, found, _, stated = _HEADER.unpack_from(frame)
    if (stated, found) != (len(frame), num_bytes):  # else part of the array stays as it is
        raise ValueError("of another length")
    name, shuffle, _ = CODECS[spec.compression]
    kind = (_VERSION, _FORMATS[name], _SHUFFLES[shuffle], np.dtype(spec.dtype).itemsize)
    if (version, flags >> 5, flags & _SHUFFLED, item_bytes) != kind:
        raise ValueError("of another kind")


def _compress(array: NDArray[Any], spec: FieldSpec) -> bytes:
    name, shuffle, block_bytes = CODECS[spec.compression]
    # With several threads, Blosc puts the blocks of a frame in the order that they finish.
    threads, blosc.use_threads = blosc.use_threads, False
    try:
        return bytes(blosc.compress(array, name.encode(), LEVEL, shuffle, block_bytes))
    finally:
        blosc.use_threads = threads


def join_chunks(chunks: Sequence[bytes]) -> tuple[bytes, tuple[Place, ...]]:
    """Return a shard object of chunks, and where each stands."""
    places, offset = [], 0
    for chunk in chunks:
        crc = int.from_bytes(chunk[-CHECKSUM_BYTES:], "little")
        places.append(Place(offset, len(chunk), crc))
        offset += len(chunk)
    return b"".join([*chunks, shard_index(places)]), tuple(places)


def shard_index(places: Sequence[Place]) -> bytes:
    """Return the index at the end of a shard object."""
    pairs = np.array([place[:2] for place in places], "<u8")
    return with_checksum(pairs.tobytes())
