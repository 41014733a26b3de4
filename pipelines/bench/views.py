"""Views from files in memory: kdcache's against torchvision's PIL path, on one thread.

    python -m pipelines.bench.views --photos build/bench/photos --out views.json

A process of its own, since the JPEG backend is chosen once per process: KDCACHE_JPEG in the
environment names it. Costs are CPU-seconds per image, everything included from the file's bytes to
uint8 pixels in one array for the block, which both sides write again and again. Ours decodes what
the views need, as a student does; whole files are decoded by the teacher's side only, once.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from kdcache.errors import KdcacheError
from kdcache.pixels.conformance import chosen_backends
from kdcache.pixels.render import render_drawn
from kdcache.recipe.plan import draw_view
from kdcache.recipe.schema import Recipe
from pipelines.bench.limit import Bare
from pipelines.bench.material import FULL, QUICK, Files, Material, Sizes, plain_recipe
from pipelines.bench.timing import Work, alternate, rounded, speedups, summary, timed

MANY_VIEWS = (4, 8)
Pixels = NDArray[np.uint8]


def pil_crop(size: int) -> transforms.Compose:
    """Return torchvision's crop and flip, of PIL images."""
    crop = transforms.RandomResizedCrop(size, scale=(0.05, 1.0))
    return transforms.Compose([crop, transforms.RandomHorizontalFlip()])


def torchvision_block(files: Files, out_VNHW3: Pixels) -> None:
    """Write views, each decoded, cropped and flipped by itself."""
    crop = pil_crop(out_VNHW3.shape[2])
    for out_NHW3 in out_VNHW3:
        for data, out in zip(files.data, out_NHW3, strict=True):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            out[:] = np.asarray(crop(image))


def compare(
    files: Files, sizes: Sizes, *, num_views: int
) -> tuple[list[float], dict[str, dict[str, float]]]:
    """Return our speed-ups in CPU-seconds, round by round, and both sides' costs of an image."""
    recipe = plain_recipe()
    blocks = files.blocks(recipe.block)
    memory = np.zeros((num_views, recipe.block, recipe.size, recipe.size, 3), np.uint8)

    def over_blocks(render: Callable[[Files, range], None]) -> Callable[[int], int]:
        def work(number: int) -> int:
            views = range(number * num_views, (number + 1) * num_views)
            for block in blocks:
                render(block, views)
            return len(files.data)

        return work

    def ours(block: Files, views: range) -> None:
        drawn = [draw_view(recipe, block.uids, view=view) for view in views]
        out = memory[:, : len(block.data)]
        render_drawn(recipe, block.data, drawn, whole=False, out_GNHW3=out)

    def theirs(block: Files, views: range) -> None:
        torchvision_block(block, memory[: len(views), : len(block.data)])

    works = {"kdcache": timed(over_blocks(ours)), "torchvision": timed(over_blocks(theirs))}
    if num_views == 1:
        works |= bare_works(files, recipe, sizes)
    costs = alternate(works, rounds=sizes.rounds)
    ratios = speedups(costs["kdcache"], costs["torchvision"], clock="cpu")
    return ratios, {name: summary(found) for name, found in costs.items()}


def bare_works(files: Files, recipe: Recipe, sizes: Sizes) -> dict[str, Work]:
    """Return what a view cannot do without: decoding alone, and decoding with resizing."""
    bare, rows = Bare(files, recipe, num_views=sizes.rounds + 1), slice(len(files.data))
    out = bare.block()

    def decode(number: int) -> int:
        return sum(1 for _ in bare.crops(number, rows))

    def resize(number: int) -> int:
        bare.resized(number, rows, out)
        return len(files.data)

    return {"decode": timed(decode), "decode_and_resize": timed(resize)}


def measure_views(photos: Path, sizes: Sizes) -> dict[str, dict[str, object]]:
    """Return ratios and costs by comparison: one view of each photo set, several of imagenet."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    material = Material(photos, photos, photos)  # of which only the photos are read
    found: dict[str, dict[str, object]] = {}
    for name, count in sizes.view_images.items():
        files = material.files(name, count=count)
        ratios, costs = compare(files, sizes, num_views=1)
        found[f"one_view_{name}"] = {"runs": [rounded(run) for run in ratios], **costs}
    files = material.files("imagenet", count=min(64, sizes.view_images["imagenet"]))
    for num_views in MANY_VIEWS:
        ratios, costs = compare(files, sizes, num_views=num_views)
        found[f"{num_views}_views_imagenet"] = {"runs": [rounded(run) for run in ratios], **costs}
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure with the backend of this process and write what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.views",
        description="Compare kdcache's views with torchvision's; KDCACHE_JPEG names the decoder.",
    )
    parser.add_argument("--photos", type=Path, default=Path("build/bench/photos"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a short trial on few images")
    options = parser.parse_args(arguments)
    if not (options.photos / "imagenet").is_dir():
        parser.error(f"{options.photos}: no photo sets; run python -m pipelines.bench.photos")
    try:
        chosen_backends()  # before anything is measured
    except KdcacheError as error:
        sys.exit(str(error))
    found = measure_views(options.photos, QUICK if options.quick else FULL)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
