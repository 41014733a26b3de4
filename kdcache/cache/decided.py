"""The objects of a cache that its attributes decide: read, and compared with what they ask for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.metadata import ROOT, Document, array_document, consolidation, root_document
from kdcache.cache.objects import Objects
from kdcache.cache.shard import without_checksum
from kdcache.errors import CorruptError
from kdcache.identity import read_json

REPAIR = "run kdcache repair"


def read_document(objects: Objects, name: str) -> Document:
    """Return a metadata document.

    Raises:
        CorruptError: it is missing or damaged.
    """
    try:
        if isinstance(document := read_json(objects.read(name)), dict):
            return document
        problem = "damaged: no object of JSON"
    except FileNotFoundError:
        problem = "missing"
    except (ValueError, RecursionError) as error:
        problem = f"damaged: {error}"
    advice = f"{REPAIR} --from a sound copy" if name == ROOT else REPAIR
    raise CorruptError(f"{objects.place / name}: {problem}; {advice}")


def read_array(objects: Objects, array: str, *, tar: int | None = None) -> NDArray[Any]:
    """Return what an array holds of one tar's rows, uint64, or without one of all tars, uint32.

    Raises:
        CorruptError: it is missing or damaged.
    """
    name = f"{array}/c/0" if tar is None else f"{array}/c/{tar}/0"
    try:
        data = without_checksum(objects.read(name), str(objects.place / name))
    except FileNotFoundError:
        raise CorruptError(f"{objects.place / name}: missing; {REPAIR}") from None
    item = np.dtype("<u4" if tar is None else "<u8")
    return np.frombuffer(data, item, count=len(data) // item.itemsize)


def what_is_wrong(
    objects: Objects,
    expected: dict[str, Document],
    *,
    grown: dict[str, Document],
    rows: NDArray[np.int64],
) -> dict[str, str]:
    """Return what is wrong with these objects, by name.

    expected: the metadata of each array. grown: those of a cache that is being extended.
    """
    place, problems = objects.place, dict[str, str]()
    root = read_document(objects, ROOT)
    if root.get("consolidated_metadata") == consolidation(expected):
        del root["consolidated_metadata"]
    # Attributes beside ours are those of others.
    if root != root_document(root["attributes"], None):
        problems[ROOT] = f"{place / ROOT}: is not the metadata of this cache"
    for array, document in expected.items():
        name = array_document(array)
        try:
            if read_document(objects, name) not in (document, grown[array]):
                problems[name] = (
                    f"{place / name}: differs from what this cache's attributes ask for"
                )
        except CorruptError as error:
            problems[name] = str(error).removesuffix(f"; {REPAIR}")
    try:
        if not np.array_equal(read_array(objects, "rows"), rows):
            problems["rows/c/0"] = f"{place / 'rows/c/0'}: unlike the dataset"
    except CorruptError as error:
        problems["rows/c/0"] = str(error).removesuffix(f"; {REPAIR}")
    return problems
