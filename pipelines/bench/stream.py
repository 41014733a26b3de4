"""The student's whole stream against the usual loaders, with two workers.

Ours reads tars, renders, mixes, collates and joins targets; the others read, decode, crop, flip and
normalise. Each runs from its start through a first pass over the images, then is measured over some
passes more while it goes on loading: starting workers and filling queues count for nobody.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import webdataset
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from kdcache.models.teacher import IMAGENET_MEAN, IMAGENET_STD
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from pipelines.bench.limit import Limit
from pipelines.bench.material import WORKERS, Material, Sizes, mixed_recipe
from pipelines.bench.timing import Batches, Cost, Work, between

_SHUFFLE = 1000  # samples, webdataset's own suggestion


def stream_work(material: Material, sizes: Sizes, open_batches: Callable[[int], Batches]) -> Work:
    """Return work that opens a stream for its round and measures some passes after the first."""
    per_pass = material.dataset().num_samples // sizes.batch * sizes.batch

    def work(number: int) -> Cost:
        with closing(open_batches(number)) as batches:
            return between(batches, start=per_pass, stop=(1 + sizes.epochs) * per_pass)

    return work


# --- ours ----------------------------------------------------------------------------------


def open_stream(
    material: Material, sizes: Sizes, *, seed: int, workers: int = WORKERS, epochs: int
) -> ReplayStream:
    """Return the stream of the material's cache."""
    options = StreamOptions(
        batch_size=sizes.batch, num_epochs=epochs, seed=seed, num_workers=workers
    )
    return replay_stream(material.open_cache(), material.dataset(), options)


def kdcache_batches(
    material: Material, sizes: Sizes, *, seed: int, workers: int = WORKERS
) -> Batches:
    """Yield the sizes of our batches, of one pass more than is measured."""
    epochs = sizes.epochs + 2
    return batch_sizes(open_stream(material, sizes, seed=seed, workers=workers, epochs=epochs))


def batch_sizes(stream: ReplayStream) -> Batches:
    """Yield the sizes of a stream's batches; targets, if any, are decoded, as a loss would."""
    for batch in stream:
        if batch.fields is not None:
            batch.target(temperature=1.0)
        yield len(batch)


# --- the usual loaders ---------------------------------------------------------------------


def usual_transform(size: int, *, normalise: bool) -> transforms.Compose:
    """Return crop and flip, then float32 normalised, or uint8 as it is."""
    last: list[nn.Module | Callable[..., Any]] = [transforms.PILToTensor()]
    if normalise:
        last = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    crop = transforms.RandomResizedCrop(size, scale=(0.05, 1.0))
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *last])


def webdataset_batches(material: Material, sizes: Sizes, *, normalise: bool = True) -> Batches:
    """Yield the sizes of batches of webdataset and a DataLoader, without end."""
    tars = material.tars()
    transform = usual_transform(mixed_recipe().size, normalise=normalise)
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars))
        .repeat()
        .shuffle(_SHUFFLE)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform)
    )
    for images, _ in DataLoader(dataset, batch_size=sizes.batch, num_workers=WORKERS):
        yield len(images)


def folder_batches(material: Material, sizes: Sizes, *, normalise: bool = True) -> Batches:
    """Yield the sizes of batches of ImageFolder and a DataLoader."""
    transform = usual_transform(mixed_recipe().size, normalise=normalise)
    dataset = ImageFolder(str(material.image_folder), transform)
    sampler = RandomSampler(dataset, num_samples=(sizes.epochs + 2) * len(dataset))
    loader = DataLoader(dataset, batch_size=sizes.batch, sampler=sampler, num_workers=WORKERS)
    for images, _ in loader:
        yield len(images)


def stream_works(material: Material, sizes: Sizes) -> dict[str, Work]:
    """Return what is compared: ours, the usual loaders, and the limit of the cores."""
    limit = Limit(material.files("imagenet", count=sizes.images["imagenet"]), sizes)

    def ours(number: int) -> Batches:
        return kdcache_batches(material, sizes, seed=number)

    def tars(_: int) -> Batches:
        return webdataset_batches(material, sizes)

    def folder(_: int) -> Batches:
        return folder_batches(material, sizes)

    return {
        "kdcache": stream_work(material, sizes, ours),
        "webdataset": stream_work(material, sizes, tars),
        "imagefolder": stream_work(material, sizes, folder),
        "decode_and_resize": limit.work,
    }


def uint8_works(material: Material, sizes: Sizes) -> dict[str, Work]:
    """Return the usual loaders where they hand over uint8 too, which few do."""

    def tars(_: int) -> Batches:
        return webdataset_batches(material, sizes, normalise=False)

    def folder(_: int) -> Batches:
        return folder_batches(material, sizes, normalise=False)

    return {
        "webdataset_uint8": stream_work(material, sizes, tars),
        "imagefolder_uint8": stream_work(material, sizes, folder),
    }
