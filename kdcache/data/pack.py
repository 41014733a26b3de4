"""A source of images to tars and their index.

Invariant: the same source and options make the same bytes, and the folder is there whole or not at
all.
"""

import io
import itertools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image

from kdcache.data.dataset import Dataset
from kdcache.data.document import save_dataset
from kdcache.data.index import build_index
from kdcache.data.sources import Source, SourceImage, open_source
from kdcache.errors import DataError, UsageError
from kdcache.files import LOCK, alone, sync
from kdcache.identity import sample_uid
from kdcache.pixels.decode import decode_image, read_header
from kdcache.pixels.pillow import open_image
from kdcache.recipe.draws import uniforms
from kdcache.recipe.parts import Decode
from kdcache.texts import first_of

__all__ = ["PackOptions", "Packed", "open_source", "pack"]

_FORMATS = {"jpg": "jpg", "jpeg": "jpg", "png": "png"}
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif")  # one is in any file that has EXIF
_LISTED = 10  # bad images


@dataclass(frozen=True)
class PackOptions:
    """How images become tars.

    shuffle_seed: 0 to 2**64 - 1, or None to keep the source's order.
    shorter_side: larger images are resized to it, in pixels; None keeps all sizes.
    quality: of JPEG, 1 to 100.
    image_format: what is written; None keeps files that need no resize as they are, resized WebP
        files become jpg, and arrays and PIL images png.
    bad: images that cannot be decoded are refused, once all are looked at, or skipped. keep: files
        that are not re-encoded are not looked at.
    """

    rows_per_tar: int = 1024
    shuffle_seed: int | None = None
    shorter_side: int | None = None
    quality: int = 92
    image_format: Literal["jpg", "png"] | None = None
    bad: Literal["refuse", "skip", "keep"] = "refuse"

    def __post_init__(self) -> None:
        for name, least, most in (
            ("rows_per_tar", 1, 2**32 - 1),
            ("shuffle_seed", 0, 2**64 - 1),
            ("shorter_side", 1, 2**16),
            ("quality", 1, 100),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} is {value}, expected {least} to {most}")
        if self.image_format not in ("jpg", "png", None):
            raise UsageError(f"image_format is {self.image_format}, expected jpg, png or none")


@dataclass(frozen=True)
class Packed:
    """A saved dataset, the bad images that it lacks, and how many EXIF turns where it is applied.

    skipped: of each where it is, and what is wrong.
    """

    dataset: Dataset
    skipped: tuple[str, ...]
    num_turned: int


@dataclass
class _Tally:
    bad: list[str] = field(default_factory=list)
    num_turned: int = 0


def pack(
    source: Source,
    out: Path,
    *,
    options: PackOptions,
    progress: Callable[[int], None] | None = None,
) -> Packed:
    """Write a source's images as tars to a new or empty folder, with their dataset.

    The work is done in a folder beside it, named .NAME.kdcache-partial.
    progress: called after each image with 1.

    Raises:
        UsageError: the folder is not empty or cannot be written.
        DataError: images cannot be read or decoded; names the first. Or all are skipped.
    """
    out = Path(os.path.abspath(out))
    partial = out.with_name(f".{out.name}.kdcache-partial")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not an empty folder; name another")
        partial.mkdir(parents=True, exist_ok=True)
        with alone(partial, "another process is packing there; wait for it"):
            return _pack(source, out, partial=partial, options=options, progress=progress)
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}; free space or name another folder") from error


def _pack(
    source: Source,
    out: Path,
    *,
    partial: Path,
    options: PackOptions,
    progress: Callable[[int], None] | None,
) -> Packed:
    tally = _Tally()
    try:
        for leftover in partial.iterdir():  # of a killed run
            if leftover.name != LOCK:
                leftover.unlink()
        samples = _samples(source, options, tally=tally, progress=progress)
        paths = _write_tars(samples, partial, rows=options.rows_per_tar)
        if tally.bad and (options.bad != "skip" or not paths):
            raise DataError(_told(tally.bad, of=len(source.keys)))
        dataset = build_index(paths, root=partial, classes=source.classes)
        save_dataset(dataset, partial)
        (partial / LOCK).unlink()
        os.replace(partial, out)
        sync(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Packed(replace(dataset, root=out), tuple(tally.bad), tally.num_turned)


def _told(bad: Sequence[str], *, of: int) -> str:
    advice = "replace or remove them" + (", or leave them out with --skip-bad" * (len(bad) < of))
    listed = "; ".join(first_of(bad, _LISTED))
    return f"{len(bad)} of {of} images cannot be used: {listed}; {advice}"


def _samples(
    source: Source,
    options: PackOptions,
    *,
    tally: _Tally,
    progress: Callable[[int], None] | None,
) -> Iterator[dict[str, str | bytes]]:
    """Yield the members of each image that can be used, and tally the others."""
    for row in _order(source.keys, options.shuffle_seed):
        try:
            image = source.read(row)
            extension, data = _encode(image, options)
            tally.num_turned += _is_turned(data)
            members: dict[str, str | bytes] = {"__key__": source.keys[row], extension: data}
            if image.label >= 0:
                members["cls"] = str(image.label).encode()
        except DataError as error:
            tally.bad.append(str(error))
        else:
            yield members
        if progress is not None:
            progress(1)


def _write_tars(
    samples: Iterator[dict[str, str | bytes]], folder: Path, *, rows: int
) -> list[Path]:
    from webdataset import TarWriter  # imports torch: not before it is needed

    paths: list[Path] = []
    while (first := next(samples, None)) is not None:
        path = folder / f"{len(paths):06d}.tar"
        with path.open("wb") as file:
            with TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o444) as writer:
                for members in itertools.chain([first], itertools.islice(samples, rows - 1)):
                    writer.write(members)
            file.flush()
            os.fsync(file.fileno())
        paths.append(path)
    return paths


def _order(keys: Sequence[str], seed: int | None) -> list[int]:
    if seed is None:
        return list(range(len(keys)))
    uids = np.array([sample_uid(key) for key in keys], np.uint64)
    drawn = uniforms(seed, uids, view=0, count=1)[:, 0]
    return [int(row) for row in np.argsort(drawn, kind="stable")]


def _encode(source: SourceImage, options: PackOptions) -> tuple[str, bytes]:
    """Return the extension and the bytes to write; a file that is right already is kept.

    Raises:
        DataError: the image cannot be decoded.
    """
    own = _FORMATS.get(source.extension)
    file = source.data if isinstance(source.data, bytes) else None
    kept = file if options.image_format in (None, own) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF and of many pixels
            if kept is not None and options.shorter_side is None:
                return source.extension, _checked(kept, options)
            image = _open(source.data)
            size = _size(image.size, options.shorter_side)
            if kept is not None and size == image.size:
                return source.extension, _checked(kept, options)
            file_format = options.image_format or own or "jpg"
            return file_format, _save(image, size, file_format=file_format, quality=options.quality)
    except Exception as error:  # Pillow raises many kinds for bytes that are no image
        reason = str(error).removeprefix("cannot be decoded: ")
        raise DataError(f"{source.name}: cannot be decoded: {reason}") from error


def _checked(file: bytes, options: PackOptions) -> bytes:
    """Return a file that a recipe's views can be made of.

    Raises:
        DataError: it is damaged, no image, or has more pixels than any recipe takes.
    """
    if options.bad != "keep":
        header = read_header(file, Decode())
        decode_image(file, header, scale=8 if header.scalable else 1)
    return file


def _is_turned(file: bytes) -> bool:
    """Return whether EXIF turns an image, for recipes that apply it."""
    if not any(mark in file for mark in _EXIF_MARKS):
        return False
    try:
        return read_header(file, Decode(exif="apply"), whole=False).turned
    except DataError:
        return False


def _open(data: bytes | Image.Image) -> Image.Image:
    return data if isinstance(data, Image.Image) else open_image(data)


def _size(size: tuple[int, int], shorter_side: int | None) -> tuple[int, int]:
    """Return size shrunk to a shorter side, sides rounded to the nearest pixel."""
    short = min(size)
    if shorter_side is None or short <= shorter_side:
        return size
    width, height = ((2 * side * shorter_side + short) // (2 * short) for side in size)
    return width, height


def _save(image: Image.Image, size: tuple[int, int], *, file_format: str, quality: int) -> bytes:
    """Return an image's bytes as L or RGB, with nothing of its EXIF but the orientation."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits")
    pixels = image.convert("L" if image.mode == "L" else "RGB")
    pixels.info = {}
    if size != pixels.size:
        pixels = pixels.resize(size, Image.Resampling.LANCZOS)
    options: dict[str, Any] = {"quality": quality} if file_format == "jpg" else {}
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in range(2, 9):
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG" if file_format == "jpg" else "PNG", **options)
    return buffer.getvalue()
