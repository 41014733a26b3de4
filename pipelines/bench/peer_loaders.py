"""One loader of others, measured in the environment of locks/peers.txt.

    build/bench/peers/bin/python -m pipelines.bench.peer_loaders litdata
      --photos build/bench/photos/full/imagenet --work build/bench/peer-data --out litdata.json

Each has the format that it writes itself, the setting that its documents call fastest, two workers,
and the same work: crops of 5 to 100% to 224 pixels, flips, uint8 batches in the main process. As
stream.py, a first pass over the images is not measured. Imports nothing of kdcache.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.bench.timing import Batches, between

SIZE = 224
AREA = (0.05, 1.0)
WORKERS = 2


@dataclass(frozen=True)
class Plan:
    """What to load.

    paths: of the images. work: folder for converted data. passes: over the images in all, the first
    of which is not measured.
    """

    paths: list[str]
    work: Path
    passes: int
    batch: int


def _read_image(path: str) -> dict[str, Any]:
    """Return a sample as litdata stores it: the JPEG file as it is."""
    from PIL import Image

    return {"image": Image.open(path), "label": 0}


class _TensorCrop:
    """Crop and flip of a sample's uint8 tensor; workers that are spawned get it pickled."""

    def __init__(self) -> None:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(SIZE, scale=AREA, antialias=True)
        self._transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, int]:
        return self._transform(sample["image"]), sample["label"]


def litdata_batches(plan: Plan) -> Batches:
    """Yield batches of litdata: its own chunks, decoded by torchvision, cropped as tensors."""
    import litdata  # type: ignore[import-not-found]  # not in this environment
    import torch

    folder = plan.work / "litdata"
    if not (folder / "index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        # Every pass is one stretch of one long epoch: between epochs its workers start anew.
        inputs = plan.paths * plan.passes
        litdata.optimize(_read_image, inputs, str(folder), chunk_bytes="64MB", num_workers=1)
    torch.set_num_threads(1)
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, transform=_TensorCrop())
    loader = litdata.StreamingDataLoader(dataset, batch_size=plan.batch, num_workers=WORKERS)
    for images, _ in loader:
        yield len(images)


def streaming_batches(plan: Plan) -> Batches:
    """Yield batches of mosaicml-streaming: MDS shards of JPEG files, PIL transforms."""
    import torch
    from PIL import Image
    from streaming import (  # type: ignore[import-not-found]  # not in this environment
        MDSWriter,
        StreamingDataset,
    )
    from streaming.base.util import (  # type: ignore[import-not-found]
        clean_stale_shared_memory,
    )
    from torch.utils.data import DataLoader
    from torchvision import transforms

    folder = plan.work / "mds"
    if not (folder / "index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with MDSWriter(out=str(folder), columns={"image": "jpeg", "label": "int"}) as writer:
            for path in plan.paths:
                writer.write({"image": Image.open(path), "label": 0})
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=AREA),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    class Cropped(StreamingDataset):  # type: ignore[misc]  # has no types here
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return crop(sample["image"].convert("RGB")), sample["label"]

    torch.set_num_threads(1)
    clean_stale_shared_memory()
    epoch = len(plan.paths) * plan.passes
    dataset = Cropped(local=str(folder), shuffle=True, batch_size=plan.batch, epoch_size=epoch)
    loader: Any = DataLoader(dataset, batch_size=plan.batch, num_workers=WORKERS)
    for images, _ in loader:
        yield len(images)


def dali_batches(plan: Plan) -> Batches:
    """Yield batches of DALI on the CPU: its file reader, decoding of the crop alone, threads."""
    from nvidia.dali import fn, pipeline_def  # type: ignore[import-untyped]  # not here

    @pipeline_def(batch_size=plan.batch, num_threads=WORKERS, device_id=None, seed=0)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        files, labels = fn.readers.file(
            files=plan.paths,
            labels=[0] * len(plan.paths),
            random_shuffle=True,
            initial_fill=len(plan.paths),
        )
        crops = fn.decoders.image_random_crop(
            files,
            device="cpu",
            random_area=list(AREA),
            random_aspect_ratio=[3 / 4, 4 / 3],
            num_attempts=10,
        )
        views = fn.resize(crops, size=[SIZE, SIZE])
        return fn.flip(views, horizontal=fn.random.coin_flip()), labels

    running = pipeline()
    running.build()
    while True:
        images, _ = running.run()
        yield len(images.as_array())


PEERS: dict[str, tuple[str, Callable[[Plan], Batches]]] = {
    "litdata": ("litdata", litdata_batches),
    "streaming": ("mosaicml-streaming", streaming_batches),
    "dali": ("nvidia-dali-cuda120", dali_batches),
}


def _images(folder: Path) -> Iterator[str]:
    return (str(path.resolve()) for path in sorted(folder.rglob("*.jpg")))


def main(arguments: list[str] | None = None) -> None:
    """Measure one loader and write its cost."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.peer_loaders", description="Measure a loader of others."
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--work", type=Path, required=True, help="folder for converted data")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--epochs", type=int, default=3, help="passes to measure")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args(arguments)
    paths = list(_images(options.photos))
    if len(paths) < options.batch_size:
        sys.exit(f"{options.photos}: {len(paths)} JPEG files, a batch has {options.batch_size}")
    options.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(paths, options.work, options.epochs + 2, options.batch_size)
    package, open_batches = PEERS[options.peer]
    with closing(open_batches(plan)) as batches:
        cost = between(batches, start=len(paths), stop=(1 + options.epochs) * len(paths))
    options.out.write_text(json.dumps({"version": version(package), **asdict(cost)}))


if __name__ == "__main__":
    main()
