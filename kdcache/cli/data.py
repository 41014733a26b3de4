"""kdcache pack, kdcache index."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.output import give, human_bytes, progress_bar
from kdcache.cli.places import path
from kdcache.errors import UsageError
from kdcache.stores.location import Location, Place, parse_place

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


class ImageFormat(StrEnum):
    """What images are written as."""

    jpg = "jpg"
    png = "png"


def pack(
    source: Annotated[
        str, typer.Argument(help="Image folder, arrays.npz, or torchvision:NAME with --root.")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            parser=path, metavar="OUT", help="New folder here for the tars and dataset.json."
        ),
    ],
    rows_per_tar: Annotated[int, typer.Option(help="Images in each tar.")] = 1024,
    shuffle_seed: Annotated[
        int | None, typer.Option(help="Shuffle the images by this seed; default: keep order.")
    ] = None,
    shorter_side: Annotated[
        int | None, typer.Option(help="Shrink larger images to this shorter side, in pixels.")
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of images that are re-encoded.")] = 92,
    image_format: Annotated[
        ImageFormat | None, typer.Option("--format", help="Re-encode all images as this.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a torchvision dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of a torchvision dataset.")] = "train",
    as_json: Json = False,
) -> None:
    """Pack images into WebDataset tars.

    Examples:

      kdcache pack photos/ build/photos --shorter-side 256 --shuffle-seed 0

      kdcache pack torchvision:CIFAR100 build/cifar --root data/ --split test
    """
    from kdcache.data.pack import PackOptions
    from kdcache.data.pack import pack as pack_images
    from kdcache.data.sources import open_source

    options = PackOptions(
        rows_per_tar=rows_per_tar,
        shuffle_seed=shuffle_seed,
        shorter_side=shorter_side,
        quality=quality,
        image_format=None if image_format is None else image_format.value,
    )
    images = open_source(source, root=root, split=split)
    with progress_bar("pack", len(images.keys), rates=_images_per_s) as advance:
        dataset = pack_images(images, out, options=options, progress=advance)
    _give(dataset, out, as_json=as_json)


def index(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Folder or bucket, as s3://NAME/PREFIX, that holds *.tar."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(parser=path, help="Where dataset.json goes; default: into the folder."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes; default: the greatest label + 1.")
    ] = None,
    label_field: Annotated[str, typer.Option(help="Field of .json members: the label.")] = "label",
    check: Annotated[
        bool, typer.Option("--check", help="Compare the tars with the dataset.json there instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Index WebDataset tars that are there already.

    Those in a bucket are read once, and stay there: --out names a folder for dataset.json.

    Examples:

      kdcache index /data/imagenet/train --num-classes 1000

      kdcache index s3://team/imagenet/train --num-classes 1000 --out build/imagenet
    """
    from kdcache.data.index import (
        build_index,
        check_dataset,
        find_tars,
        load_dataset,
        save_dataset,
    )

    root = parse_place(folder)
    place = out or root
    if check:
        dataset = load_dataset(place)
        check_dataset(dataset, label_field=label_field)
        _give(dataset, place, as_json=as_json)
        return
    if isinstance(place, Location):
        raise UsageError(f"{place}: name a folder here for dataset.json with --out")
    tars = find_tars(root)
    with progress_bar(
        "index", len(tars), rates=lambda done, s: f"{done / s:.1f} tars/s"
    ) as advance:
        dataset = build_index(
            tars,
            root=root,
            num_classes=num_classes,
            label_field=label_field,
            progress=advance,
        )
    save_dataset(dataset, place)
    _give(dataset, place, as_json=as_json)


def _images_per_s(done: int, seconds: float) -> str:
    return f"{done / seconds:.0f} images/s"


def _give(dataset: object, where: Place, *, as_json: bool) -> None:
    from kdcache.data.dataset import Dataset

    assert isinstance(dataset, Dataset)
    size = sum(tar.size_bytes for tar in dataset.tars)
    value = {
        "id": dataset.id,
        "path": str(where),
        "tars": len(dataset.tars),
        "samples": dataset.num_samples,
        "unlabelled": int((dataset.labels < 0).sum()),
        "num_classes": dataset.num_classes,
        "size_bytes": size,
    }
    lines = {
        "dataset": f"{where} ({dataset.id[:12]})",
        "images": f"{dataset.num_samples} in {len(dataset.tars)} tars, {human_bytes(size)}",
        "classes": dataset.num_classes,
    }
    give(value, as_json=as_json, lines=lines)
