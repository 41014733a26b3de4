"""An .onnx file and the data beside it, read and checked before ONNX Runtime sees either.

Invariant: ONNX Runtime is given bytes that this process has read, never a path. So it opens no
file that a stranger's model names, and what was checked is what is loaded, whoever writes to the
folder meanwhile. Large weights go as arrays, since protobuf holds 2 GiB.
"""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.errors import UsageError
from kdcache.models.notes import NOTES

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

MOST_BYTES = 2**31 - 2**20  # of protobuf
INLINED_BYTES = 2**20  # ONNX Runtime infers shapes from small tensors, so they go inside
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_READS_FILES = ("EPContext",)
_TOGETHER = "put the .onnx file and its data into one folder, as files"
# By ONNX's number of a dtype: bits of an element, and NumPy's dtype where it has one.
_DTYPES: dict[int, tuple[int, str | None]] = {
    1: (32, "float32"),
    2: (8, "uint8"),
    3: (8, "int8"),
    4: (16, "uint16"),
    5: (16, "int16"),
    6: (32, "int32"),
    7: (64, "int64"),
    9: (8, "bool"),
    10: (16, "float16"),
    11: (64, "float64"),
    12: (32, "uint32"),
    13: (64, "uint64"),
    16: (16, None),  # bfloat16
    17: (8, None),  # float8, four kinds
    18: (8, None),
    19: (8, None),
    20: (8, None),
    21: (4, None),  # uint4
    22: (4, None),  # int4
}


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A model as ONNX Runtime gets it.

    data: the model with small tensors. arrays: its large weights, by name. digest: sha256 of all
    that was read, 64 hexadecimal digits. notes: what kdcache noted in it.
    """

    data: bytes
    arrays: dict[str, np.ndarray[Any, Any]]
    digest: str
    notes: str | None


def check_onnx_installed() -> None:
    """Raise UsageError if a library is missing."""
    for name in ("onnx", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(f"needs {name}; pip install 'kdcache[onnx]'") from error


def read_onnx(path: Path) -> OnnxFile:
    """Return a model with its external data.

    Raises:
        UsageError: it is not there, is no ONNX model, has operators of others, or names data that
            is not in its folder.
    """
    data = _read_file(path)
    total = hashlib.sha256(data)
    model = _parse(data)
    _check_operators(model)
    folder, left = path.parent.resolve(), dict[Path, int]()

    def read(tensor: "TensorProto") -> bytes:
        content = _read_external(tensor, folder, left)
        total.update(f"{len(content)} {tensor.name}\n".encode())
        total.update(content)
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]
        return content

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in filter(_is_external, model.graph.initializer):
        content, dtype = read(tensor), _DTYPES[tensor.data_type][1]
        if dtype is None or len(content) <= INLINED_BYTES:
            tensor.raw_data = content
        elif tensor.name in arrays:
            raise UsageError(f"has two tensors {tensor.name[:60]!r}")
        else:
            arrays[tensor.name] = np.frombuffer(content, dtype).reshape(tuple(tensor.dims))
    for tensor in filter(_is_external, _messages(model, "TensorProto")):
        tensor.raw_data = read(tensor)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.data_location = tensor.EXTERNAL
            tensor.external_data.add(key="location", value="given by kdcache")
    notes = {entry.key: entry.value for entry in model.metadata_props}.get(NOTES)
    del model.metadata_props[:]  # ONNX Runtime can take its settings from there
    return OnnxFile(_serialise(model), arrays, total.hexdigest(), notes)


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UsageError("there is no such file; expected an ONNX model")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UsageError(f"has {size} B, ONNX has at most 2 GiB; save the weights beside it")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}") from None


def _parse(data: bytes) -> "ModelProto":
    from onnx import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf has a kind of its own
        raise UsageError(f"is no ONNX model, or is damaged: {error}") from None
    if not model.HasField("graph") or not model.graph.node:
        raise UsageError("is no ONNX model, or is damaged: it has no graph")
    return model


def _serialise(model: "ModelProto") -> bytes:
    try:
        if model.ByteSize() > MOST_BYTES:
            raise UsageError("has more than 2 GiB in small tensors, which ONNX cannot hold")
        return bytes(model.SerializeToString())
    except ValueError as error:  # protobuf's own limit
        raise UsageError(f"cannot be given to ONNX Runtime: {error}") from None


def _messages(message: Any, name: str) -> Iterator[Any]:
    """Yield all messages of a type in a message, however deep."""
    if message.DESCRIPTOR.name == name:
        yield message
    for field, value in _fields(message):
        if field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(child, name)
        elif field.type == field.TYPE_STRING and not _is_text(value):
            raise UsageError(
                f"is no ONNX model, or is damaged: the {field.name} of a "
                f"{message.DESCRIPTOR.name} is no UTF-8"
            )


def _fields(message: Any) -> list[tuple[Any, Any]]:
    """Return the fields of a message and what they hold, without the numbers of a tensor."""
    if message.DESCRIPTOR.name != "TensorProto":
        return list(message.ListFields())
    known = message.DESCRIPTOR.fields_by_name
    return [(known[name], getattr(message, name)) for name in ("name", "external_data")]


def _is_text(value: Any) -> bool:
    """Return whether strings are UTF-8; the others protobuf gives as bytes."""
    return isinstance(value, str) or (
        not isinstance(value, bytes) and all(isinstance(one, str) for one in value)
    )


def _is_external(tensor: "TensorProto") -> bool:
    return tensor.data_location == tensor.EXTERNAL or bool(tensor.external_data)


def _check_operators(model: "ModelProto") -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in _messages(model, "NodeProto"):
        if (node.domain, node.op_type) in own:
            continue
        if node.domain not in _DOMAINS or node.op_type in _READS_FILES:
            raise UsageError(
                f"has the operator {node.op_type[:60]!r} of {node.domain[:60]!r}, which is code of "
                f"others or reads files; kdcache runs {', '.join(map(repr, _DOMAINS))}"
            )


# --- external data -------------------------------------------------------------------------


def _read_external(tensor: "TensorProto", folder: Path, left: dict[Path, int]) -> bytes:
    """Return the bytes of a tensor from a file in the model's folder.

    left: how much may yet be read of each file, which is twice what it has: weights may be shared,
    but a small file is not to fill the memory.
    """
    given = {entry.key: entry.value for entry in tensor.external_data}
    where = f"its tensor {tensor.name[:60]!r}"
    if len(given) != len(tensor.external_data) or not given.keys() <= {
        "location",
        "offset",
        "length",
        "checksum",
    }:
        raise UsageError(f"{where} has data at {sorted(given)!r}, which kdcache does not know")
    if tensor.data_type not in _DTYPES or any(size < 0 for size in tensor.dims):
        raise UsageError(f"{where} has external data of dtype number {tensor.data_type}")
    expected = (math.prod(tensor.dims) * _DTYPES[tensor.data_type][0] + 7) // 8
    offset = _number(given.get("offset", "0"), where)
    length = _number(given.get("length", str(expected)), where)
    if length != expected:
        raise UsageError(f"{where} has {length} B of external data, expected {expected}")
    location = given.get("location", "")
    try:
        place = _inside(location, folder, where)
        left[place] = left.get(place, 2 * place.stat().st_size) - length
        if left[place] < 0 and offset + length <= place.stat().st_size:
            raise UsageError(f"{where} and others have the same bytes of {place.name!r} as data")
        return _read_part(place, offset, length, where)
    except MemoryError:
        raise UsageError(f"{where} has {length} B, more than the memory holds") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{where}: its data {location[:100]!r}: {reason}; {_TOGETHER}") from None


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise UsageError(f"{where} has external data at {text[:30]!r}, expected a number of bytes")
    return int(text)


def _inside(location: str, folder: Path, where: str) -> Path:
    """Return the file of a location, with no link left in it."""
    parts = location.split("/")
    if "\\" in location or ":" in location or any(part in ("", ".", "..") for part in parts):
        raise UsageError(
            f"{where} has its data at {location[:100]!r}, expected a path within the model's "
            f"folder; {_TOGETHER}"
        )
    found = folder.joinpath(*parts).resolve(strict=True)
    if not found.is_relative_to(folder):
        raise UsageError(
            f"{where} has its data at {location[:100]!r}, a link that leaves the model's folder; "
            f"{_TOGETHER}"
        )
    return found


def _read_part(path: Path, offset: int, length: int, where: str) -> bytes:
    # Not blocking, since opening a pipe would wait; no link, since resolve() left none.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{where} has its data in {path.name!r}, which is no regular file")
        if offset + length > status.st_size:
            raise UsageError(
                f"{where} has its data at {offset} to {offset + length} of {path.name!r}, which "
                f"has {status.st_size} B; it is not whole, copy it again"
            )
        file.seek(offset)
        content = file.read(length)
    if len(content) != length:
        raise UsageError(f"{where}: {path.name!r} grew shorter while it was read; try again")
    return content
