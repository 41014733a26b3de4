"""Blocks of a dataset, read and rendered: what the batch job and the student's stream share."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.data.dataset import Dataset
from kdcache.data.ranges import StoredTar
from kdcache.data.tars import TarPath, key_at, keys_of
from kdcache.errors import MismatchError
from kdcache.pixels.render import RenderedBlock, render_drawn
from kdcache.pixels.witness import LayerDigests
from kdcache.recipe.parts import Role
from kdcache.recipe.plan import Drawn, block_slices, draw_view
from kdcache.recipe.schema import Recipe
from kdcache.stores.ahead import Wanted

GROUP_ROWS = 1024
GROUPS_KEPT = 128
TARS_KEPT = 8  # of whose keys


@dataclass(frozen=True, eq=False)
class BlockSource:
    """Blocks in the order of tars and rows that a cache was, or will be, made with.

    starts: int64, first row of each tar and the total. uids: uint64 of all rows.
    places: int64, where the dataset holds each of these rows: a re-sharded copy has them elsewhere.
    """

    dataset: Dataset
    recipe: Recipe
    starts: NDArray[np.int64]
    uids: NDArray[np.uint64]
    places: NDArray[np.int64]

    @property
    def num_tars(self) -> int:
        """Return the number of tars."""
        return len(self.starts) - 1

    def num_rows(self, tar: int) -> int:
        """Return the rows of a tar."""
        return int(self.starts[tar + 1] - self.starts[tar])

    def blocks(self, tar: int) -> list[slice]:
        """Return the rows of each block of a tar."""
        return block_slices(self.num_rows(tar), self.recipe.block)

    def _places(self, tar: int, rows: slice) -> NDArray[np.int64]:
        return self.places[self.starts[tar] + rows.start : self.starts[tar] + rows.stop]

    def labels(self, tar: int, rows: slice) -> NDArray[np.int64]:
        """Return the labels of rows, int64; -1 for none."""
        return self.dataset.labels[self._places(tar, rows)].astype(np.int64)

    def where(self, tar: int, row: int) -> str:
        """Return the tar file and key of a row, for messages."""
        path, offset = self._held(tar, row)
        return f"{path}, key {key_at(path, offset)}"

    def key(self, tar: int, row: int) -> str:
        """Return the key of a row; tars of which keys were asked before are not read again."""
        path, offset = self._held(tar, row)
        if isinstance(path, StoredTar):
            return key_at(path, offset)
        return _keys(path).get(offset, f"offset {offset}")

    def _held(self, tar: int, row: int) -> tuple[TarPath, int]:
        """Return the tar that holds a row's image, and where."""
        place = int(self.places[self.starts[tar] + row])
        held = int(np.searchsorted(self.dataset.starts, place, side="right")) - 1
        return self.dataset.tar_path(held), int(self.dataset.offsets[place])

    def read(self, tar: int, rows: slice) -> list[bytes]:
        """Return the image files of rows, each checked against its digest.

        Raises:
            DataError: a tar is missing or changed since it was indexed.
        """
        return [
            image
            for file, part in self._runs(tar, rows)
            for image in self.dataset.read_rows(file, part)
        ]

    def wanted(self, tar: int, rows: slice) -> list[Wanted]:
        """Return what read asks a store for; nothing of local tars."""
        if self.dataset.is_local:
            return []
        return [
            wanted
            for file, part in self._runs(tar, rows)
            for wanted in self.dataset.wanted_rows(file, part)
        ]

    def _runs(self, tar: int, rows: slice) -> Iterator[tuple[int, slice]]:
        """Yield the tars of the dataset that hold rows, and which of theirs they are."""
        places = self._places(tar, rows)
        held = np.searchsorted(self.dataset.starts, places, side="right") - 1
        cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(held) != 0)) + 1
        for run in np.split(np.arange(len(places)), cuts):
            file = int(held[run[0]])
            first = int(places[run[0]] - self.dataset.starts[file])
            yield file, slice(first, first + len(run))

    def render(
        self,
        tar: int,
        rows: slice,
        *,
        views: Sequence[int],
        role: Role = "student",
        skip: Collection[int] = (),
        whole: bool = True,
        out_GNHW3: NDArray[np.uint8] | None = None,
        layers: LayerDigests | None = None,
    ) -> RenderedBlock:
        """Return a block's pixels in the given views. skip: rows of the tar known to be unusable.

        role: who sees them. whole, out_GNHW3, layers: as render_drawn.

        Raises:
            DataError: a tar is missing or changed since it was indexed.
        """
        files = self.read(tar, rows)
        images = [
            None if row in skip else data
            for row, data in zip(range(rows.start, rows.stop), files, strict=True)
        ]
        drawn = [self._drawn(tar, rows, view, role) for view in views]
        return render_drawn(
            self.recipe, images, drawn, role=role, whole=whole, out_GNHW3=out_GNHW3, layers=layers
        )

    def _drawn(self, tar: int, rows: slice, view: int, role: Role) -> Drawn:
        group = max(GROUP_ROWS // self.recipe.block, 1) * self.recipe.block
        first = rows.start // group * group
        drawn = _draw_group(self, tar, (first, first + group), view, role)
        return drawn.rows(slice(rows.start - first, rows.stop - first))


@lru_cache(maxsize=TARS_KEPT)
def _keys(path: Path) -> dict[int, str]:
    return keys_of(path)


@lru_cache(maxsize=GROUPS_KEPT)
def _draw_group(
    source: BlockSource, tar: int, rows: tuple[int, int], view: int, role: Role
) -> Drawn:
    """Return what is drawn for many blocks at once, which costs a fraction of one by one."""
    uids = source.uids[source.starts[tar] : source.starts[tar + 1]][slice(*rows)]
    return draw_view(source.recipe, uids, view=view, role=role)


def dataset_source(dataset: Dataset, recipe: Recipe) -> BlockSource:
    """Return the blocks of a dataset in its own order."""
    places = np.arange(dataset.num_samples, dtype=np.int64)
    return BlockSource(dataset, recipe, dataset.starts, dataset.uids, places)


def matched_source(
    dataset: Dataset,
    recipe: Recipe,
    *,
    uids: Sequence[NDArray[np.uint64]],
    contents: Sequence[NDArray[np.uint64]],
) -> BlockSource:
    """Return the blocks of other tars, whose samples this dataset holds wherever they are.

    uids, contents: of the rows of each of those tars.

    Raises:
        MismatchError: a sample is missing from the dataset, or its image file differs.
    """
    wanted, digests = np.concatenate(uids), np.concatenate(contents)
    order = np.argsort(dataset.uids, kind="stable")
    found = np.searchsorted(dataset.uids, wanted, sorter=order)
    places = order[np.minimum(found, len(order) - 1)].astype(np.int64)
    absent = int((dataset.uids[places] != wanted).sum())
    if absent:
        raise MismatchError(
            f"{dataset.root}: {absent} of the cache's {len(wanted)} samples are not in this "
            "dataset; pass the dataset that the cache was made from"
        )
    starts = np.concatenate(([0], np.cumsum([len(part) for part in uids]))).astype(np.int64)
    source = BlockSource(dataset, recipe, starts, wanted, places)
    changed = np.flatnonzero(dataset.contents[places] != digests)
    if len(changed):
        tar = int(np.searchsorted(starts, changed[0], side="right")) - 1
        raise MismatchError(
            f"{source.where(tar, int(changed[0] - starts[tar]))}: this image file, and "
            f"{len(changed) - 1} others, differ from those that the cache was made from; "
            "pass that dataset"
        )
    return source
