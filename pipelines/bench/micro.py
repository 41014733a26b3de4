"""Costs of the small steps of a view, each by itself, in microseconds of CPU per image."""

from collections.abc import Callable
from itertools import cycle, islice

import numpy as np

from kdcache.data.blocks import dataset_source
from kdcache.pixels.decode import read_header
from kdcache.pixels.witness import witness
from kdcache.recipe.plan import draw_view, plan_drawn
from pipelines.bench.material import Material, Sizes, mixed_recipe
from pipelines.bench.timing import Meter

_IMAGES = 65_536  # of a run, for steps that take a microsecond
_FEW = 4_096  # for those that take more
_ROWS = 1_024  # of a tar


def micro_runs(material: Material, sizes: Sizes, *, quick: bool) -> dict[str, list[float]]:
    """Return the runs of each step: tar read, parameters of a view, witness, header."""
    recipe, dataset = mixed_recipe(), material.dataset()
    source = dataset_source(dataset, recipe)
    places = [(tar, rows) for tar in range(source.num_tars) for rows in source.blocks(tar)]
    files = material.files("imagenet", count=recipe.block)
    count, size = len(files.data), recipe.size
    headers = [read_header(data, recipe.decode) for data in files.data]
    sizes_N2 = np.array([(header.width, header.height) for header in headers], np.int64)
    rng = np.random.default_rng(0)
    uids = rng.integers(0, 2**64, _ROWS // count * count, np.uint64)
    pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)

    def read(number: int) -> int:
        done = 0
        for tar, rows in islice(cycle(places), number // recipe.block):
            done += len(source.read(tar, rows))
        return done

    def plan(number: int) -> int:
        """Draw for all rows of a tar at once and plan block by block, as the stream does."""
        done = 0
        for view in range(max(number // len(uids), 1)):
            drawn = draw_view(recipe, uids, view=view)
            for at in range(0, len(uids), recipe.block):
                block = drawn.rows(slice(at, at + recipe.block))
                done += len(plan_drawn(recipe, block, sizes_N2=sizes_N2).boxes_N4)
        return done

    def digest(number: int) -> int:
        for _ in range(number // count):
            witness(pixels)
        return number // count * count

    def header(number: int) -> int:
        for data in islice(cycle(files.data), number):
            read_header(data, recipe.decode)
        return number

    def runs(step: Callable[[int], int], images: int) -> list[float]:
        images //= 16 if quick else 1
        step(min(images, 10 * recipe.block))  # to warm up
        found = []
        for _ in range(sizes.rounds):
            meter = Meter()
            found.append(1e6 * meter.read(step(images)).cpu_s)
        return found

    return {
        "tar_read": runs(read, _FEW),
        "parameters": runs(plan, _IMAGES),
        "witness": runs(digest, _FEW),
        "header": runs(header, _FEW),
    }
