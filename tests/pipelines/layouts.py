"""A few images in the folders and lists that each dataset is published in."""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision import datasets

from tests.data.making import encoded, photo

TRAIN, VAL = 9, 5  # images


@dataclass(frozen=True)
class Laid:
    """What was written: the labels of each part, in the order of the publisher's list."""

    train: Sequence[int]
    val: Sequence[int]
    num_classes: int


def _put(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(photo(number, size=(40, 30)), "JPEG"))


def _labels(count: int, num_classes: int) -> list[int]:
    """Return labels of which the last is the greatest."""
    return [(number + 1) % num_classes for number in range(count - 1)] + [num_classes - 1]


def lay_imagenet(root: Path, patch: pytest.MonkeyPatch) -> Laid:
    """Folders of classes below train and val, as torchvision and others unpack it."""
    wnids = ["n01440764", "n01443537", "n02102040"]
    parts = {"train": _labels(TRAIN, 3), "val": _labels(VAL, 3)}
    for part, labels in parts.items():
        for number, label in enumerate(labels):
            _put(root / part / wnids[label] / f"{wnids[label]}_{number}.JPEG", number)
    names = {wnid: (f"name of {wnid}", "another") for wnid in wnids}
    torch.save((names, []), root / "meta.bin")  # what torchvision makes of the devkit
    return Laid(sorted(parts["train"]), sorted(parts["val"]), 3)


def lay_flowers(root: Path, patch: pytest.MonkeyPatch) -> Laid:
    """Numbered images, their labels and the numbers of each part in MATLAB's format."""
    folder = root / "flowers-102"
    labels = np.array([*_labels(TRAIN, 102), *_labels(VAL, 102)])
    for number in range(len(labels)):
        _put(folder / "jpg" / f"image_{number + 1:05d}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": labels[None] + 1})
    train, val = np.arange(1, TRAIN + 1), np.arange(TRAIN + 1, len(labels) + 1)
    savemat(
        folder / "setid.mat", {"trnid": train[None], "valid": val[None, :2], "tstid": val[None]}
    )
    files = {name: (file, None) for name, (file, _) in datasets.Flowers102._file_dict.items()}
    patch.setattr(datasets.Flowers102, "_file_dict", files)
    return Laid(labels[:TRAIN].tolist(), labels[TRAIN:].tolist(), 102)


def lay_pets(root: Path, patch: pytest.MonkeyPatch) -> Laid:
    """Images named by breed, and a list a part; all breeds are in both, as in the real lists."""
    folder = root / "oxford-iiit-pet"
    parts = {"trainval": list(range(37)), "test": list(range(36, -1, -1))}
    (folder / "annotations").mkdir(parents=True)
    for part, labels in parts.items():
        lines = []
        for number, label in enumerate(labels):
            name = f"great_breed{label:02d}_{part}{number}"
            _put(folder / "images" / f"{name}.jpg", number)
            lines.append(f"{name} {label + 1} {1 + label % 2} 1\n")
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))
    return Laid(parts["trainval"], parts["test"], 37)


def lay_food(root: Path, patch: pytest.MonkeyPatch) -> Laid:
    """Folders of dishes, and the names of each part in JSON."""
    folder, dishes = root / "food-101", [f"dish_{number:03d}" for number in range(101)]
    (folder / "meta").mkdir(parents=True)
    parts = {"train": _labels(TRAIN, 101), "test": _labels(VAL, 101)}
    for part, labels in parts.items():
        names: dict[str, list[str]] = {dish: [] for dish in dishes}
        for number, label in enumerate(labels):
            names[dishes[label]].append(f"{dishes[label]}/{part}{number}")
            _put(folder / "images" / f"{names[dishes[label]][-1]}.jpg", number)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(names))
    return Laid(sorted(parts["train"]), sorted(parts["test"]), 101)


def lay_sun(root: Path, patch: pytest.MonkeyPatch) -> Laid:
    """A copy of the folders for each part, as the recipe's head makes them of the lists."""
    scenes = [f"s/scene_{n:03d}" + ("/indoor" if n % 2 else "") for n in range(397)]
    parts = {"train": _labels(TRAIN, 397), "test": _labels(VAL, 397)}
    for part, labels in parts.items():
        folder = root / part / "SUN397"
        for number, label in enumerate(labels):
            _put(folder / scenes[label] / f"sun_{part}{number}.jpg", number)
        (folder / "ClassName.txt").write_text("".join(f"/{scene}\n" for scene in scenes))
    return Laid(sorted(parts["train"]), sorted(parts["test"]), 397)


def lay_cifar(root: Path, patch: pytest.MonkeyPatch) -> Laid:
    """Pickles of rows of pixels and labels."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    parts = {"train": _labels(TRAIN, 100), "test": _labels(VAL, 100)}
    rng = np.random.default_rng(0)
    for part, labels in parts.items():
        pixels = rng.integers(0, 256, (len(labels), 3072), np.uint8)
        written = {"data": pixels, "fine_labels": labels, "coarse_labels": [0] * len(labels)}
        (folder / part).write_bytes(pickle.dumps(written))
    names = {"fine_label_names": [f"class {number}" for number in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    patch.setattr(datasets.CIFAR100, "train_list", [("train", None)])
    patch.setattr(datasets.CIFAR100, "test_list", [("test", None)])
    patch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": None})
    return Laid(parts["train"], parts["test"], 100)


LAYOUTS: dict[str, Callable[[Path, pytest.MonkeyPatch], Laid]] = {
    "cifar100": lay_cifar,
    "flowers102": lay_flowers,
    "food101": lay_food,
    "imagenet1k": lay_imagenet,
    "pets": lay_pets,
    "sun397": lay_sun,
}
