"""Small tars and images for the tests of kdcache.data."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_iterator


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write members to a tar whose padding ends with the second end-of-archive block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset + 2 * tarfile.BLOCKSIZE
    with path.open("r+b") as file:
        file.truncate(end)
    return path


def webdataset_samples(path: Path) -> list[dict[str, Any]]:
    """Return a tar's samples as webdataset's own reader groups them."""
    with path.open("rb") as file:
        members = ({**member, "__url__": str(path)} for member in tar_file_iterator(file))
        return list(group_by_keys(members))


def photo(seed: int = 0, *, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Image.Image:
    """Return an image of smooth colours; size is (width, height)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image's file bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
