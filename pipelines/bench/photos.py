"""Photograph-like JPEG sets, the same bytes each time they are made with the same libraries.

    python -m pipelines.bench.photos --out build/bench/photos

Cost of decoding goes with the bytes of a file and that of resizing with its pixels, so a set is
described by both. An image is a piece of one of the two photographs that ship with scikit-learn,
often with a piece of the other set into it, under a gamma and noise whose spectrum falls as 1 / f
like that of photographs; the strength of the noise sets the bytes.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_CLASSES = 8
_STAMP = "set.json"
_FORM = 1  # of the images; another number makes all sets afresh
_SIDE = 1024  # of the noise, which is repeated in larger images


@dataclass(frozen=True)
class PhotoSet:
    """A set of images.

    sizes: width and height, drawn with equal chance. quality: of JPEG, least and most. noise: least
    and most standard deviation of the texture, in levels.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]
    quality: tuple[int, int]
    noise: tuple[float, float]


_LYING = ((500, 375),) * 6
IMAGENET = PhotoSet(
    "imagenet",
    (*_LYING, (375, 500), (375, 500), (500, 333), (500, 333), (500, 400)),
    quality=(86, 94),
    noise=(10.0, 54.0),
)
WEB = PhotoSet("web", ((1024, 768), (768, 1024), (1024, 683)), quality=(80, 91), noise=(4.0, 24.0))
BIG = PhotoSet("big", ((2048, 1536), (2048, 1365)), quality=(80, 91), noise=(4.0, 24.0))
SETS = {kind.name: kind for kind in (IMAGENET, WEB, BIG)}


def make_photos(kind: PhotoSet, folder: Path, *, count: int) -> list[Path]:
    """Return the paths of a set's images, in order; made only where they are not there already.

    They lie in FOLDER/NAME/class_C, so that the set is also a folder of classes.
    """
    place = folder / kind.name
    stamp = json.loads(json.dumps({"form": _FORM, "count": count, **asdict(kind)}))
    if not _is_made(place, stamp):
        partial = place.with_name(f".{kind.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for number in range(count):
            path = partial / f"class_{number % NUM_CLASSES}" / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(kind, number))
        (partial / _STAMP).write_text(json.dumps(stamp))
        shutil.rmtree(place, ignore_errors=True)
        os.replace(partial, place)
    return sorted(place.rglob("*.jpg"), key=lambda path: path.name)


def _is_made(place: Path, stamp: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((place / _STAMP).read_text()) == stamp)
    except (OSError, ValueError):
        return False


def photo(kind: PhotoSet, number: int) -> bytes:
    """Return the JPEG file of an image, fixed by its set's name and its number."""
    seed = int.from_bytes(hashlib.sha256(f"{kind.name} {number}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    width, height = kind.sizes[int(rng.integers(len(kind.sizes)))]
    scene = _piece(rng, width, height)
    if rng.random() < 0.6:
        wide, tall = (int(side * rng.uniform(0.15, 0.5)) for side in (width, height))
        place = int(rng.integers(width - wide + 1)), int(rng.integers(height - tall + 1))
        scene.paste(_piece(rng, wide, tall), place)
    levels = 255 * (np.asarray(scene, np.float32) / 255) ** np.float32(rng.uniform(0.7, 1.4))
    levels += np.float32(rng.uniform(*kind.noise)) * _texture(rng, width, height)
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    quality = int(rng.integers(kind.quality[0], kind.quality[1] + 1))
    subsampling = 2 if rng.random() < 0.8 else 0  # 4:2:0, or 4:4:4
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _scenes() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(pixels) for pixels in load_sample_images().images)


def _piece(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a random piece of a photograph, as large as its aspect allows down to 60%."""
    scenes = _scenes()
    scene = scenes[int(rng.integers(len(scenes)))]
    share = rng.uniform(0.6, 1.0) * min(scene.width / width, scene.height / height)
    wide, tall = max(int(width * share), 1), max(int(height * share), 1)
    left = int(rng.integers(scene.width - wide + 1))
    top = int(rng.integers(scene.height - tall + 1))
    box = (left, top, left + wide, top + tall)
    piece = scene.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else piece


@lru_cache(maxsize=1)
def _plane() -> NDArray[np.float32]:
    """Return (1024, 1024, 3) noise with amplitude 1 / f that tiles; unit variance."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None]
    frequency = np.sqrt(rows * rows + columns * columns)
    frequency[0, 0] = np.inf
    draws = rng.standard_normal((2, 4, *frequency.shape), np.float32)
    shared, *own = (draws[0] + 1j * draws[1]) / frequency
    # Most of what a photograph varies in is brightness.
    channels = [np.fft.irfft2(0.85 * shared + 0.5 * part, s=(_SIDE, _SIDE)) for part in own]
    plane = np.stack(channels, axis=-1)
    scaled: NDArray[np.float32] = (plane / plane.std()).astype(np.float32)
    return scaled


def _texture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Return a window (height, width, 3) of the noise, turned and mirrored at random."""
    plane = _plane()[:, :, rng.permutation(3)]
    if rng.random() < 0.5:
        plane = plane.transpose(1, 0, 2)
    rows = (int(rng.integers(_SIDE)) + np.arange(height)) % _SIDE
    columns = (int(rng.integers(_SIDE)) + np.arange(width)) % _SIDE
    if rng.random() < 0.5:
        columns = columns[::-1]
    return plane[rows[:, None], columns]


def main(arguments: list[str] | None = None) -> None:
    """Make the sets and say what they are."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.photos", description="Make photograph-like JPEG sets."
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench/photos"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--count", type=int, default=128, help="images of each set")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count {options.count}: expected 1 or more")
    for name in options.sets:
        paths = make_photos(SETS[name], options.out, count=options.count)
        size = sum(path.stat().st_size for path in paths)
        print(f"{options.out / name}: {len(paths)} images, {size / len(paths) / 1000:.0f} kB each")


if __name__ == "__main__":
    main()
