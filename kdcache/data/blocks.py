"""Blocks of a dataset, read and rendered: what the batch job and the student's stream share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.data.dataset import Dataset
from kdcache.data.tars import key_at
from kdcache.errors import MismatchError
from kdcache.pixels.render import RenderedBlock, render_block
from kdcache.recipe.plan import block_slices
from kdcache.recipe.schema import Recipe


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
        place = int(self.places[self.starts[tar] + row])
        held = int(np.searchsorted(self.dataset.starts, place, side="right")) - 1
        path = self.dataset.tar_path(held)
        return f"{path}, key {key_at(path, int(self.dataset.offsets[place]))}"

    def read(self, tar: int, rows: slice) -> list[bytes]:
        """Return the image files of rows, each checked against its digest.

        Raises:
            DataError: a tar is missing or changed since it was indexed.
        """
        places = self._places(tar, rows)
        held = np.searchsorted(self.dataset.starts, places, side="right") - 1
        cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(held) != 0)) + 1
        images: list[bytes] = []
        for run in np.split(np.arange(len(places)), cuts):
            file = int(held[run[0]])
            first = int(places[run[0]] - self.dataset.starts[file])
            images += self.dataset.read_rows(file, slice(first, first + len(run)))
        return images

    def render(
        self, tar: int, rows: slice, *, views: Sequence[int], skip: Collection[int] = ()
    ) -> RenderedBlock:
        """Return a block's pixels in the given views. skip: rows of the tar known to be unusable.

        Raises:
            DataError: a tar is missing or changed since it was indexed.
        """
        files = self.read(tar, rows)
        images = [
            None if row in skip else data
            for row, data in zip(range(rows.start, rows.stop), files, strict=True)
        ]
        uids = self.uids[self.starts[tar] + rows.start : self.starts[tar] + rows.stop]
        return render_block(self.recipe, images, uids_N=uids, views=views)


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
