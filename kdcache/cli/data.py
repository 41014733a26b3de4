"""kdcache pack, kdcache index."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.output import give, human_bytes, progress_bar
from kdcache.cli.places import PLACE, path
from kdcache.errors import UsageError
from kdcache.stores.location import Location, Place, parse_place
from kdcache.texts import counted, first_of

if TYPE_CHECKING:
    from kdcache.data.dataset import Dataset
    from kdcache.data.pack import Packed
    from kdcache.data.sources import Source

SHOWN = 10  # classes, folders or images that are named

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
    classes_of: Annotated[
        str | None,
        typer.Option(
            metavar=PLACE,
            help="A packed dataset whose classes, in their order, the sub-folders are; not all "
            "need images.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pack images into WebDataset tars.

    All images are looked at before bad ones are refused. Orientation in EXIF stays as it is.

    Examples:

      kdcache pack photos/train build/train --shorter-side 256 --shuffle-seed 0

      kdcache pack photos/val build/val --classes-of build/train --skip-bad

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
        bad="skip" if skip_bad else "refuse",
    )
    classes = None if classes_of is None else _classes_of(classes_of)
    images = open_source(source, root=root, split=split, classes=classes)
    with progress_bar("pack", len(images.keys), rates=_images_per_s) as advance:
        packed = pack_images(images, out, options=options, progress=advance)
    more = {
        "skipped_bad": list(packed.skipped),
        "left_out": dict(images.left_out),
        "empty": list(images.empty),
        "turned": packed.num_turned,
    }
    give(
        _value(packed.dataset, out) | more,
        as_json=as_json,
        lines=_lines(packed.dataset, out) | _findings(images, packed),
    )


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


def _classes_of(text: str) -> tuple[str, ...]:
    from kdcache.data.document import load_dataset

    classes = load_dataset(parse_place(text)).classes
    if classes is None:
        raise UsageError(f"--classes-of {text}: its classes have no names; leave this out")
    return classes


def _findings(images: "Source", packed: "Packed") -> dict[str, object]:
    """Return lines on what is not as people may think."""
    from kdcache.data.sources import told_kinds

    lines: dict[str, object] = {}
    if images.left_out:
        files = counted(sum(images.left_out.values()), "file", "files")
        lines["left out"] = f"{files}: {told_kinds(images.left_out)}"
    if images.empty:
        lines["no images in"] = ", ".join(first_of(images.empty, SHOWN))
    if packed.skipped:
        images_out = counted(len(packed.skipped), "image", "images")
        lines["bad"] = f"{images_out} left out: {'; '.join(first_of(packed.skipped, SHOWN))}"
    if packed.num_turned:
        lines["turned"] = (
            f"{packed.num_turned} images lie sideways or mirrored until their EXIF is applied; "
            'recipes ignore it unless [decode] says exif = "apply"'
        )
    return lines


def _give(dataset: "Dataset", where: Place, *, as_json: bool) -> None:
    give(_value(dataset, where), as_json=as_json, lines=_lines(dataset, where))


def _size(dataset: "Dataset") -> int:
    return sum(tar.size_bytes for tar in dataset.tars)


def _class_counts(dataset: "Dataset") -> list[int]:
    import numpy as np

    labels = dataset.labels[dataset.labels >= 0]
    counts: list[int] = np.bincount(labels, minlength=dataset.num_classes or 0).tolist()
    return counts


def _value(dataset: "Dataset", where: Place) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "path": str(where),
        "tars": len(dataset.tars),
        "samples": dataset.num_samples,
        "unlabelled": int((dataset.labels < 0).sum()),
        "num_classes": dataset.num_classes,
        "class_counts": _class_counts(dataset),
        "size_bytes": _size(dataset),
    }


def _lines(dataset: "Dataset", where: Place) -> dict[str, object]:
    size = human_bytes(_size(dataset))
    lines: dict[str, object] = {
        "dataset": f"{where} ({dataset.id[:12]})",
        "images": f"{dataset.num_samples} in {len(dataset.tars)} tars, {size}",
        "classes": dataset.num_classes,
    }
    counts = _class_counts(dataset)
    if counts:
        names = dataset.classes or [str(label) for label in range(len(counts))]
        texts = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
        if len(counts) > SHOWN:
            rows = sorted(range(len(counts)), key=counts.__getitem__)
            texts = [f"fewest: {texts[rows[0]]}", f"most: {texts[rows[-1]]}"]
        lines["by class"] = ", ".join(texts)
    return lines
