"""Claims about images that are not plain RGB: teacher and student see the same bytes of them."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdcache.data.dataset import Dataset
from kdcache.precompute.engines import run_inline
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from tests import tiny


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _images() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise, "RGBA")
    rgb = rgb.resize((56, 40), Image.Resampling.BICUBIC)
    deep = np.random.default_rng(1).integers(0, 65536, (31, 47), dtype=np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "one_pixel.png": _encoded(rgb.resize((1, 1)), "PNG"),
        "one_pixel_grey.jpg": _encoded(rgb.resize((1, 1)).convert("L"), "JPEG"),
        "one_row.jpg": _encoded(rgb.resize((70, 1)), "JPEG"),
        "one_column.png": _encoded(rgb.resize((1, 70)), "PNG"),
        "grey.jpg": _encoded(rgb.convert("L"), "JPEG"),
        "grey.png": _encoded(rgb.convert("L"), "PNG"),
        "bilevel.png": _encoded(rgb.convert("1"), "PNG"),
        "cmyk.jpg": _encoded(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": _encoded(rgb, "JPEG", progressive=True, subsampling=2),
        "full_chroma.jpg": _encoded(rgb, "JPEG", subsampling=0),
        "turned.jpg": _encoded(rgb, "JPEG", exif=turned),
        "palette.png": _encoded(rgb.convert("P"), "PNG"),
        "palette_clear.png": _encoded(rgb.convert("P"), "PNG", transparency=0),
        "alpha.png": _encoded(rgba, "PNG"),
        "grey_alpha.png": _encoded(rgba.convert("LA"), "PNG"),
        "alpha.webp": _encoded(rgba, "WEBP", lossless=True),
        "lossy.webp": _encoded(rgb, "WEBP", quality=60),
        "deep.png": _encoded(Image.fromarray(deep), "PNG"),
        "large.jpg": _encoded(rgb.resize((400, 300)), "JPEG"),
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("odd")
    for number, (name, data) in enumerate(_images().items()):
        folder = root / "images" / f"class{number % tiny.NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.replace(".", f"_{number}.", 1)).write_bytes(data)
    return tiny.pack_images(root / "images", root / "data")


@pytest.mark.parametrize("changes", [{}, {"decode": {"exif": "apply"}}, {"resize": "pillow"}])
def test_odd_images_are_replayed_to_the_byte(
    odd: Dataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    job = tiny.make_job(tmp_path / "c", odd, tiny.make_recipe(**changes))
    seen: list[int] = []

    def note(pixels: Any) -> None:
        seen.extend(tiny.pixel_digest(image) for image in pixels)

    run_inline(replace(job, teacher=tiny.watched(job.teacher, note)))
    assert len(seen) == len(_images()) * 4
    stream = replay_stream(
        job.cache, odd, StreamOptions(batch_size=7, num_epochs=4, shuffle=False, num_workers=1)
    )
    replayed = [
        tiny.pixel_digest(image)
        for batch in stream
        for image in batch.pixels.permute(0, 2, 3, 1).numpy()
    ]
    assert sorted(replayed) == sorted(seen)
