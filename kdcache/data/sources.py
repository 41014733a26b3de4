"""Where images come from before they are packed: a folder, arrays, or a torchvision dataset.

Invariant: keys are unique and survive webdataset's naming rule; an image is read when asked for.
"""

import inspect
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.data.tars import IMAGE_EXTENSIONS, split_member
from kdcache.errors import DataError, UsageError

_TORCHVISION = "torchvision:"
_KINDS = 8  # of files that are named
_UNNAMED = ("thumbs.db", "desktop.ini")  # what a system leaves in folders, beside hidden files
_UNREAD = {"heic", "heif", "avif", "jxl", "jp2", "tif", "tiff", "bmp", "gif", "dng", "cr2", "nef"}


@dataclass(frozen=True)
class SourceImage:
    """An image to pack.

    data: a file's bytes, or the decoded image. extension: the file's, or "png" for a decoded image.
    label: from 0, or -1 for none. name: where it came from, for messages.
    """

    data: bytes | Image.Image
    extension: str
    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Source:
    """Images in their source's order; `read(i)` returns the one with key `keys[i]`.

    left_out: files by their endings that are no image that can be read; what people do not see,
        as hidden files, is not counted. empty: sub-folders without images, which are no classes.
    """

    keys: Sequence[str]
    classes: tuple[str, ...] | None
    read: Callable[[int], SourceImage]
    left_out: Mapping[str, int] = field(default_factory=dict)
    empty: tuple[str, ...] = ()


def open_source(
    source: str,
    *,
    root: Path | None = None,
    split: str = "train",
    classes: Sequence[str] | None = None,
) -> Source:
    """Return the images of a folder, a .npz file or "torchvision:NAME".

    root, split: where torchvision finds its files, and which part of the dataset to take.
    classes: of a folder, in their order, with images or not; None: the sub-folders with images.

    Raises:
        UsageError: source is none of these, holds no images of the kind, or a folder of none of
            the classes.
        DataError: two files make one key, or a file's name makes none.
    """
    path = Path(source)
    if not source:
        raise UsageError("source is empty; name a folder of images")
    if classes is not None and not path.is_dir():
        raise UsageError(f"source {source}: only of a folder of images can the classes be given")
    if source.startswith(_TORCHVISION):
        return _torchvision_source(source, root=root, split=split)
    if path.is_dir():
        return _folder_source(path, classes)
    if path.is_file() and path.suffix == ".npz":
        return _array_source(path)
    raise UsageError(
        f"source {source}: expected a folder of images, a .npz file with the array 'images', "
        f"or {_TORCHVISION}NAME such as {_TORCHVISION}CIFAR100"
    )


def told_kinds(left_out: Mapping[str, int]) -> str:
    """Return what files were left out, and what to do for images among them."""
    kinds = sorted(left_out, key=lambda kind: (-left_out[kind], kind))
    shown = [f"{left_out[kind]} {f'.{kind}' if kind else 'without ending'}" for kind in kinds]
    more = [f"{len(shown) - _KINDS} other kinds"] if len(shown) > _KINDS else []
    advice = "; convert images to JPEG to use them" if left_out.keys() & _UNREAD else ""
    return ", ".join([*shown[:_KINDS], *more]) + advice


def _folder_source(root: Path, given: Sequence[str] | None) -> Source:
    """Return a folder's images; sub-folders with images, sorted, are the classes, if not given."""
    try:
        files = list(_files(root, prefix="", above=frozenset()))
        folders = [entry.name for entry in _entries(root) if entry.is_dir()]
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; make it readable") from error
    for name in folders:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{root}: folder {name!r} is not in UTF-8; rename it") from None
    images = [name for name in files if _extension(name) in IMAGE_EXTENSIONS]
    others = (name for name in files if _extension(name) not in IMAGE_EXTENSIONS)
    seen = (name for name in others if name.rpartition("/")[2].lower() not in _UNNAMED)
    left_out = Counter(map(_extension, seen))
    if not images:
        found = f"; found {told_kinds(left_out)}" if left_out else ""
        expected = ", ".join(IMAGE_EXTENSIONS)
        raise UsageError(f"{root}: no image below it, expected {expected}{found}")
    used = {name.partition("/")[0] for name in images if "/" in name}
    classes = tuple(name for name in folders if name in used)
    direct = next((name for name in images if "/" not in name), None)
    if direct is not None and classes:
        raise UsageError(
            f"{root}: {direct} lies beside sub-folders such as {classes[0]}; "
            "put every image below the folder of its class, or remove the sub-folders"
        )
    if given is not None:
        strange = [name for name in classes if name not in given]
        if strange or direct is not None:
            raise UsageError(
                f"{root / (direct or strange[0])}: in none of the {len(given)} classes asked for, "
                f"such as {given[0]}; move it, or rename its folder as the class is called"
            )
        classes = tuple(given)
    labels = {name: label for label, name in enumerate(classes)}

    def read(row: int) -> SourceImage:
        name = images[row]
        label = labels.get(name.split("/")[0], -1)
        try:
            data = (root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{root / name}: {error.strerror}") from error
        return SourceImage(data, _extension(name), label, str(root / name))

    keys = _unique_keys(images, root)
    empty = tuple(name for name in folders if name not in used)
    return Source(keys, classes or None, read, left_out=left_out, empty=empty)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds but for hidden entries, sorted by name."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(shown, key=operator.attrgetter("name"))


def _files(folder: Path, *, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """Yield the names of the files below a folder; links are followed, but never back up."""
    above |= {os.path.realpath(folder)}
    for entry in _entries(folder):
        name = prefix + entry.name
        if not entry.is_dir():
            yield name
        elif os.path.realpath(entry.path) not in above:
            yield from _files(folder / entry.name, prefix=name + "/", above=above)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _unique_keys(names: Sequence[str], root: Path) -> list[str]:
    """Return the key of each file: its name without extension, dots in the last part made "_"."""
    seen: dict[str, str] = {}
    for name in names:
        folder, slash, stem = os.path.splitext(name)[0].rpartition("/")
        key = folder + slash + stem.replace(".", "_")
        try:
            valid = split_member(f"{key}.png") == (key, "png") and bool(key.encode())
        except UnicodeEncodeError:
            valid = False
        if not valid:
            raise DataError(f"{root}: {name!r}: its name makes no webdataset key; rename it")
        if key in seen:
            raise DataError(f"{root}: {seen[key]} and {name} make one key, {key}; rename one")
        seen[key] = name
    return list(seen)


def _numbered(count: int) -> list[str]:
    return [f"{row:09d}" for row in range(count)]


def _array_source(path: Path) -> Source:
    """Return the images of a .npz file: uint8 (N, H, W) or (N, H, W, 3), integer labels (N,)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images: NDArray[Any] = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays else np.full(len(images), -1)
    except Exception as error:  # NumPy raises many kinds for bytes that are no .npz
        raise UsageError(
            f"{path}: {error}; expected a .npz file with the arrays 'images' and, if any, 'labels'"
        ) from error
    shaped = images.ndim == 3 or images.shape[3:] == (3,)
    if images.dtype != np.uint8 or not shaped or 0 in images.shape:
        raise UsageError(
            f"{path}: images are {images.dtype} {images.shape}, "
            "expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < -1:
        raise UsageError(
            f"{path}: labels are {labels.dtype} {labels.shape}, "
            f"expected integers ({len(images)},) from 0, or -1 for none"
        )

    def read(row: int) -> SourceImage:
        image = Image.fromarray(images[row])
        return SourceImage(image, "png", int(labels[row]), f"{path}: image {row}")

    return Source(_numbered(len(images)), None, read)


def _torchvision_source(source: str, *, root: Path | None, split: str) -> Source:
    from torchvision import datasets  # imports torch: not before it is needed

    factory = getattr(datasets, source.removeprefix(_TORCHVISION), None)
    if not inspect.isclass(factory):
        raise UsageError(f"source {source}: torchvision.datasets has no class of this name")
    options = _torchvision_options(factory, source=source, root=root, split=split)
    try:
        dataset: Any = factory(**options)
        count = len(dataset)
    except Exception as error:  # each dataset raises its own kinds
        raise UsageError(
            f"source {source}: {error}; kdcache downloads nothing: check root and split"
        ) from error

    def read(row: int) -> SourceImage:
        name = f"{source}: image {row}"
        try:
            image, label = dataset[row]
            if not isinstance(image, Image.Image):
                raise TypeError(f"a {type(image).__name__}")
            return SourceImage(image, "png", operator.index(label), name)
        except Exception as error:
            raise DataError(f"{name}: {error}; expected a PIL image and an integer") from error

    classes = getattr(dataset, "classes", None)
    if classes is not None:
        classes = tuple(c if isinstance(c, str) else ", ".join(c) for c in classes)
    return Source(_numbered(count), classes, read)


def _torchvision_options(
    factory: Callable[..., Any], *, source: str, root: Path | None, split: str
) -> dict[str, Any]:
    """Return the arguments that a torchvision dataset takes: root, split or train, download."""
    known = inspect.signature(factory).parameters
    options: dict[str, Any] = {}
    if "root" in known:
        if root is None:
            raise UsageError(f"source {source}: name the folder of its files as root")
        options["root"] = root
    if "split" in known:
        options["split"] = split
    elif "train" in known:
        if split not in ("train", "test"):
            raise UsageError(f"source {source}: split {split}, expected train or test")
        options["train"] = split == "train"
    elif split != "train":
        raise UsageError(f"source {source}: has no splits, found {split}; its images are one part")
    if "download" in known:
        options["download"] = False
    return options
