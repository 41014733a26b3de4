"""Caches that are shown: images of odd names, mixed, with a teacher whose answers differ."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.replay.open import cache_source
from kdcache.report.cache_page import Inspection
from kdcache.report.sampling import sample_cache
from tests import tiny

EVIL = "<script>alert(1)<"
CLASSES = ("cat", "שלום", EVIL, "quo\"te's & co", "tab\there")
KEYS = ("plain", "<img src=x onerror=alert(2)>", "right \u202e left", "\x1b[31mred", '“q” & "q"')


def write_odd_images(folder: Path, count: int, *, side: int = 40) -> Path:
    """Write images of five classes whose names and whose keys are odd."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side + number, side), Image.Resampling.BICUBIC)
        name = f"{KEYS[number % 5 if number < 25 else 0]} {number:02d}.jpg"
        path = folder / CLASSES[number // 2 % 5] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    return folder


def odd_dataset(root: Path, count: int = 24) -> Dataset:
    """Return a dataset of odd names, of tars of ten."""
    return tiny.pack_images(write_odd_images(root / "images", count), root / "data")


def inspect(cache: Cache | Path, dataset: Dataset | Path | None, *, seed: int = 0) -> Inspection:
    """Return a cache with a sample of it. dataset: of its images, or where it is."""
    opened = open_cache(cache, checked=False) if isinstance(cache, Path) else cache
    found = load_dataset(dataset) if isinstance(dataset, Path) else dataset
    source = None if found is None else cache_source(opened, found, opened.info.recipe)
    return Inspection(opened, source, sample_cache(opened, source, seed=seed))


def mixed_recipe(**changes: Any) -> Any:
    """Return a recipe that mixes in both ways, and not at all."""
    return tiny.make_recipe(mix={"law": "switch", "mixup": 0.4, "cutmix": 0.4}, **changes)
