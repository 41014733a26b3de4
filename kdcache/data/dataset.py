"""A dataset: an ordered list of tars and one row for each of their samples.

Invariant: the id is made from uids and contents alone: moved, renamed or re-labelled tars keep
their caches, changed images do not.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kdcache.data.ranges import StoredTar, wanted_images
from kdcache.data.tars import TarPath, read_images
from kdcache.identity import digest
from kdcache.stores.ahead import Wanted
from kdcache.stores.location import Location, Place

ROW = np.dtype(
    [
        ("uids", np.uint64),
        ("contents", np.uint64),
        ("labels", np.int32),
        ("offsets", np.uint64),
        ("sizes", np.uint32),
    ]
)
COLUMNS = tuple(ROW.fields or ())


@dataclass(frozen=True)
class TarEntry:
    """One tar of a dataset.

    name: POSIX path below the dataset's root. digest: sha256 of its uids, then its contents.
    """

    name: str
    num_rows: int
    size_bytes: int
    digest: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """An ordered list of tars and their N samples, tar after tar; the arrays are read-only.

    root: what the tars are below: a folder, or a location in a store, from which they are read.
    uids, contents: (N,), digests of keys and of image bytes. labels: (N,), -1 for none.
    offsets, sizes: (N,), where an image's bytes stand in its tar.
    """

    root: Place
    tars: tuple[TarEntry, ...]
    classes: tuple[str, ...] | None
    num_classes: int | None
    uids: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    labels: NDArray[np.int32]
    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]

    def __post_init__(self) -> None:
        for name in COLUMNS:
            getattr(self, name).setflags(write=False)

    @cached_property
    def id(self) -> str:
        """The dataset's part of a cache id, 64 hexadecimal digits."""
        return digest({"tars": [tar.digest for tar in self.tars]})

    @property
    def num_samples(self) -> int:
        """How many samples all tars hold."""
        return len(self.uids)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each tar, then the number of samples: (tars + 1,)."""
        return np.cumsum([0, *(tar.num_rows for tar in self.tars)], dtype=np.int64)

    def rows(self, tar: int) -> slice:
        """Return where a tar's samples stand in the arrays."""
        return slice(int(self.starts[tar]), int(self.starts[tar + 1]))

    @property
    def is_local(self) -> bool:
        """Return whether the tars are on this machine."""
        return not isinstance(self.root, Location)

    def tar_path(self, tar: int) -> TarPath:
        """Return where a tar is."""
        name = self.tars[tar].name
        return StoredTar(self.root, name) if isinstance(self.root, Location) else self.root / name

    def wanted_rows(self, tar: int, rows: slice) -> list[Wanted]:
        """Return what read_rows asks a store for; nothing of a local tar."""
        path, own = self.tar_path(tar), self.rows(tar)
        if not isinstance(path, StoredTar):
            return []
        return wanted_images(
            path,
            self.offsets[own][rows],
            sizes=self.sizes[own][rows],
            contents=self.contents[own][rows],
        )

    def read_rows(self, tar: int, rows: slice) -> list[bytes]:
        """Return the image bytes of rows of a tar, counted from the tar's first.

        Raises:
            DataError: the tar is missing or changed since it was indexed.
        """
        own = self.rows(tar)
        return read_images(
            self.tar_path(tar),
            self.offsets[own][rows],
            sizes=self.sizes[own][rows],
            contents=self.contents[own][rows],
        )


def tar_digest(uids: NDArray[np.uint64], contents: NDArray[np.uint64]) -> str:
    """Return the sha256 of a tar's uids, then its contents, as little-endian 64-bit words."""
    words = uids.astype("<u8").tobytes() + contents.astype("<u8").tobytes()
    return hashlib.sha256(words).hexdigest()
