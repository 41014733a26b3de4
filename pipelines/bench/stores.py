"""Tiles in the stores of others, and what reads them: arrays, pickles, records behind a table.

Each read returns the same arrays as ours, (rows, K). Where a store keeps rows apart they are read
in the order of a shuffled epoch, one after the other, since that is how its students ask for them;
what they hold is put at its row.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from kdcache.cache.store import Cache, Tile
from kdcache.targets.packed import CODES_PER_E, Arrays, from_stored

_BELOW = np.expm1(np.arange(256) / CODES_PER_E).astype("<f2")  # by code

Entries = tuple[NDArray[np.uint16], NDArray[np.float16]]  # classes; nats below the largest: (N, K)


def entries(tile: Tile) -> Entries:
    """Return what a tile of packed:K holds as others store it; every row must be full."""
    gaps_NK = tile.fields["gaps"].view(torch.int16)  # whose cumulative sum is quick
    classes_NK = gaps_NK.cumsum(1, dtype=torch.int16)
    classes_NK += torch.arange(gaps_NK.shape[1], dtype=torch.int16)
    below_NK = _BELOW.take(tile.fields["codes"].numpy(), mode="clip")
    return classes_NK.view(torch.uint16).numpy(), below_NK


class NpyFiles:
    """One .npy file for each array of each tile, which np.load reads whole."""

    def __init__(self, folder: Path, cache: Cache, *, views: range) -> None:
        self._paths: list[dict[str, str]] = []
        folder.mkdir(parents=True)
        for view in views:
            tile = cache.read_tile(0, view)
            paths = {name: str(folder / f"{view}-{name}.npy") for name in tile.fields}
            for name, path in paths.items():
                np.save(path, tile.fields[name].numpy())
            self._paths.append(paths)

    def read(self, view: int) -> Arrays:
        """Return the arrays of a tile."""
        return {name: np.load(path) for name, path in self._paths[view].items()}


class ZarrArrays:
    """The cache itself, read by zarr-python through arrays that were opened once."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        group: Any = zarr.open_group(str(cache.path), mode="r", use_consolidated=False)
        self._arrays = {spec.name: group[spec.name] for spec in cache.info.specs}

    def read(self, view: int) -> Arrays:
        """Return the arrays of a tile."""
        stored = {name: np.asarray(array[0, view]) for name, array in self._arrays.items()}
        return from_stored(stored, self._cache.info.specs, num_rows=int(self._cache.rows[0]))


class _Rows:
    """Tiles whose rows stand apart. orders: in which the rows of each are asked for."""

    def __init__(self, tiles: Sequence[Entries]) -> None:
        self.num_rows, self.k = tiles[0][0].shape
        rng = np.random.default_rng(0)
        self.orders = [rng.permutation(self.num_rows).tolist() for _ in tiles]

    def empty(self) -> Entries:
        """Return arrays for a tile."""
        shape = (self.num_rows, self.k)
        return np.empty(shape, "<u2"), np.empty(shape, "<f2")


class Pickles(_Rows):
    """One pickle for each image and view, of two arrays.

    Apple's stores (apple/ml-dr) have one file an image; this is their lightest form.
    """

    def __init__(self, folder: Path, tiles: Sequence[Entries]) -> None:
        super().__init__(tiles)
        self._folders = [f"{folder}/{view}" for view in range(len(tiles))]
        for path, (classes_NK, below_NK) in zip(self._folders, tiles, strict=True):
            Path(path).mkdir(parents=True)
            for row in range(self.num_rows):
                with open(f"{path}/{row}.pkl", "wb") as file:
                    found = {"indices": classes_NK[row], "values": below_NK[row]}
                    pickle.dump(found, file, protocol=pickle.HIGHEST_PROTOCOL)

    def read(self, view: int) -> Entries:
        """Return the entries of a tile."""
        classes_NK, below_NK = self.empty()
        path = self._folders[view]
        for row in self.orders[view]:
            with open(f"{path}/{row}.pkl", "rb") as file:
                found = pickle.load(file)
            classes_NK[row], below_NK[row] = found["indices"], found["values"]
        return classes_NK, below_NK


class TorchFiles(_Rows):
    """One file an image with lists of all its views, by torch.save, as apple/ml-dr writes it.

    A student that wants one view reads them all.
    """

    def __init__(self, folder: Path, tiles: Sequence[Entries]) -> None:
        super().__init__(tiles)
        self._folder = str(folder)
        folder.mkdir(parents=True)
        for row in range(self.num_rows):
            views = [(below[row].tolist(), classes[row].tolist()) for classes, below in tiles]
            torch.save((row, views), f"{self._folder}/{row}.pth.tar")

    def read(self, view: int) -> Entries:
        """Return the entries of a tile."""
        classes_NK, below_NK = self.empty()
        for row in self.orders[view]:
            _, views = torch.load(f"{self._folder}/{row}.pth.tar")
            below_NK[row], classes_NK[row] = views[view]
        return classes_NK, below_NK


class Records(_Rows):
    """A file of fixed records and a text file of their keys, a dictionary once it is opened.

    As TinyViT saves logits (Wu et al. 2022; microsoft/Cream), seed and copies left out:
    one record an image. The tiles are the parts of one epoch.
    """

    def __init__(self, folder: Path, tiles: Sequence[Entries]) -> None:
        super().__init__(tiles)
        folder.mkdir(parents=True)
        keys = [
            [f"n{view:08d}/n{view:08d}_{row}.JPEG" for row in range(self.num_rows)]
            for view in range(len(tiles))
        ]
        (folder / "keys.txt").write_text("".join(f"{k}\n" for part in keys for k in part))
        with (folder / "values.bin").open("wb") as file:
            for tile in tiles:
                for classes_K, below_K in zip(*tile, strict=True):
                    file.write(classes_K.tobytes() + below_K.tobytes())
        lines = (folder / "keys.txt").read_text().splitlines()
        self._numbers = {key: number for number, key in enumerate(lines)}
        self._asked = [
            [(row, part[row]) for row in order]
            for part, order in zip(keys, self.orders, strict=True)
        ]
        self._file = (folder / "values.bin").open("rb")
        self._size = 4 * self.k

    def read(self, view: int) -> Entries:
        """Return the entries of a tile."""
        classes_NK, below_NK = self.empty()
        for row, key in self._asked[view]:
            self._file.seek(self._size * self._numbers[key])
            record = self._file.read(self._size)
            classes_NK[row] = np.frombuffer(record, "<u2", self.k)
            below_NK[row] = np.frombuffer(record, "<f2", self.k, 2 * self.k)
        return classes_NK, below_NK

    def close(self) -> None:
        """Close the file."""
        self._file.close()
