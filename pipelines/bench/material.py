"""What the pixel benchmarks run on: photographs, their tars, and a cache of simulated targets."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.identity import sample_uid
from kdcache.models.teacher import load_teacher
from kdcache.precompute.engines import run_inline
from kdcache.precompute.prepare import describe_cache, prepare_cache
from kdcache.precompute.span import Job
from kdcache.recipe.schema import Recipe, parse_recipe
from pipelines.bench.photos import SETS, make_photos

NUM_CLASSES = 1000
NUM_VIEWS = 8
BATCH = 64
WORKERS = 2  # processes of every loader that is compared
_POOLED = 8
_PLAIN = {
    "seed": 0,
    "size": 224,
    "crop": {"law": "inception", "area": [0.05, 1.0], "ratio": [3 / 4, 4 / 3]},
    "flip": {"horizontal": 0.5},
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    images: of each photo set. rows_per_tar: of the tars. block, batch: rows. rounds: of each
    comparison. view_images: of one round, by photo set. epochs: of one round of a stream.
    memory_images: of the long epoch.
    """

    images: dict[str, int]
    rows_per_tar: int
    batch: int
    rounds: int
    view_images: dict[str, int]
    epochs: int
    memory_images: int


FULL = Sizes(
    images={"imagenet": 1024, "web": 64, "big": 64},
    rows_per_tar=512,
    batch=BATCH,
    rounds=5,
    view_images={"imagenet": 192, "web": 64, "big": 64},
    epochs=3,
    memory_images=20_480,
)
QUICK = Sizes(
    images={"imagenet": 64, "web": 8, "big": 4},
    rows_per_tar=32,
    batch=16,
    rounds=1,
    view_images={"imagenet": 16, "web": 8, "big": 4},
    epochs=1,
    memory_images=256,
)


@dataclass(frozen=True, eq=False)
class Material:
    """Where things are. photos: one folder of classes for each photo set."""

    photos: Path
    data: Path
    cache: Path

    @property
    def image_folder(self) -> Path:
        """Return the folder of classes that the tars were packed from."""
        return self.photos / "imagenet"

    def dataset(self) -> Dataset:
        """Return the dataset of the tars."""
        return load_dataset(self.data)

    def tars(self) -> list[str]:
        """Return the paths of the tars."""
        dataset = self.dataset()
        return [str(dataset.tar_path(tar)) for tar in range(len(dataset.tars))]

    def open_cache(self) -> Cache:
        """Return the cache of targets."""
        return open_cache(self.cache)

    def files(self, name: str, *, count: int) -> "Files":
        """Return the first images of a photo set."""
        paths = sorted((self.photos / name).rglob("*.jpg"), key=lambda path: path.name)[:count]
        uids = np.array([sample_uid(path.stem) for path in paths], np.uint64)
        return Files([path.read_bytes() for path in paths], uids)


@dataclass(frozen=True, eq=False)
class Files:
    """Image files in memory. uids: of each, (N,)."""

    data: list[bytes]
    uids: NDArray[np.uint64]

    def blocks(self, size: int) -> list["Files"]:
        """Return the files in blocks of a size; the last may be smaller."""
        cuts = range(0, len(self.data), size)
        return [Files(self.data[at : at + size], self.uids[at : at + size]) for at in cuts]


def make_photo_sets(folder: Path, sizes: Sizes) -> None:
    """Make all photo sets that are not there yet."""
    for name, count in sizes.images.items():
        make_photos(SETS[name], folder, count=count)


def make_material(
    folder: Path,
    photos: Path,
    *,
    rows_per_tar: int,
    encoding: str = "topk:32",
    num_views: int = NUM_VIEWS,
) -> Material:
    """Pack the imagenet set into tars below a folder, and compute a cache of its views afresh."""
    material = Material(photos, folder / "tars", folder / "cache")
    for place in (material.data, material.cache):
        shutil.rmtree(place, ignore_errors=True)
    options = PackOptions(rows_per_tar=rows_per_tar, shuffle_seed=0)
    source = open_source(str(material.image_folder))
    dataset = pack(source, material.data, options=options).dataset
    recipe = mixed_recipe()
    teacher = load_teacher("pipelines.bench.material:pooled_teacher", None)
    info = describe_cache(dataset, recipe, teacher=teacher, encoding=encoding, other_classes=True)
    cache = prepare_cache(material.cache, info, dataset=dataset, num_views=num_views)
    run_inline(Job(dataset_source(dataset, recipe), teacher, cache, batch_size=64, skip_bad=False))
    return material


def plain_recipe() -> Recipe:
    """Return the recipe of single views: 224 pixels, crops of 5 to 100%, flips."""
    return parse_recipe(_PLAIN, source="the benchmark's recipe")


def mixed_recipe() -> Recipe:
    """Return the recipe of the stream: the same with mixup."""
    return parse_recipe(_PLAIN | {"mix": {"law": "mixup"}}, source="the benchmark's recipe")


class _PooledTeacher(nn.Module):
    """A linear layer on the mean colours of a grid: as many logits as a real one, at no cost."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        inputs = 3 * _POOLED * _POOLED
        self.classify = nn.Linear(inputs, NUM_CLASSES)
        with torch.no_grad():
            self.classify.weight.normal_(0, 3 * inputs**-0.5, generator=generator)
            self.classify.bias.normal_(generator=generator)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Return logits (N, 1000)."""
        pooled = nn.functional.adaptive_avg_pool2d(images_N3HW, _POOLED)
        logits: Tensor = self.classify(pooled.flatten(1))
        return logits


def pooled_teacher() -> nn.Module:
    """Return a teacher whose logits depend on the pixels and cost next to nothing."""
    return _PooledTeacher()
