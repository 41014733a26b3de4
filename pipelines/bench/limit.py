"""The limit of the cores: processes that only decode and resize, from memory into memory.

As many as the loaders have workers, with the decoder, scales, boxes and resize that views have;
headers and boxes are known beforehand, and nothing is flipped, mixed or handed over.
"""

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from kdcache.pixels.decode import Pixels, decode_image, read_header
from kdcache.pixels.render import jpeg_scale, scaled_window
from kdcache.pixels.resize import RESIZE
from kdcache.recipe.plan import plan_block
from kdcache.recipe.schema import Recipe
from pipelines.bench.material import WORKERS, Files, Sizes, plain_recipe
from pipelines.bench.timing import Cost


class Bare:
    """Images of which only decoding and resizing is left to do. boxes_VN4: of each view."""

    def __init__(self, files: Files, recipe: Recipe, *, num_views: int) -> None:
        self.recipe, self._files = recipe, files.data
        self._headers = [read_header(data, recipe.decode) for data in files.data]
        sizes_N2 = np.array([(h.width, h.height) for h in self._headers], np.int64)
        views = range(num_views)
        plans = [plan_block(recipe, files.uids, view=view, sizes_N2=sizes_N2) for view in views]
        self.boxes_VN4 = np.stack([plan.boxes_N4 for plan in plans])

    def crops(self, view: int, rows: slice) -> Iterator[Pixels]:
        """Yield what the boxes of some images hold, decoded as the renderer decodes."""
        least = self.recipe.decode.guard * self.recipe.size
        boxes = self.boxes_VN4[view, rows].tolist()
        for data, header, box in zip(self._files[rows], self._headers[rows], boxes, strict=True):
            scale = jpeg_scale(box[2], box[3], least=least)
            window = scaled_window(box, scale=scale, size=(header.width, header.height))
            pixels, x, y = decode_image(data, header, scale=scale, window=window)
            left, top, right, bottom = window
            yield np.ascontiguousarray(pixels[top - y : bottom - y, left - x : right - x])

    def resized(self, view: int, rows: slice, out_NHW3: Pixels) -> None:
        """Write the views of some images to an array, which is used again and again."""
        resize, size = RESIZE[self.recipe.resize], self.recipe.size
        for row, crop in enumerate(self.crops(view, rows)):
            out_NHW3[row % len(out_NHW3)] = resize(crop, size)

    def block(self) -> Pixels:
        """Return memory for the views of a block."""
        size = self.recipe.size
        return np.zeros((self.recipe.block, size, size, 3), np.uint8)


class Limit:
    """What the cores could render if nothing else were to be done."""

    def __init__(self, files: Files, sizes: Sizes) -> None:
        self._bare = Bare(files, plain_recipe(), num_views=sizes.epochs)
        self._images = len(files.data)

    def work(self, number: int) -> Cost:
        """Return the cost of an image over all processes together."""
        del number
        fork = multiprocessing.get_context("fork")
        start, results = fork.Barrier(WORKERS), fork.SimpleQueue()
        shares = [slice(worker, None, WORKERS) for worker in range(WORKERS)]
        children = [
            fork.Process(target=self._run, args=(share, start, results), daemon=True)
            for share in shares
        ]
        for child in children:
            child.start()
        found = [results.get() for _ in children]
        for child in children:
            child.join()
        began, ended, cpu_s = zip(*found, strict=True)
        images = self._images * len(self._bare.boxes_VN4)
        return Cost((max(ended) - min(began)) / images, sum(cpu_s) / images)

    def _run(self, share: slice, start: Any, results: Any) -> None:
        torch.set_num_threads(1)
        out = self._bare.block()
        warm_up = slice(share.start, 2 * len(out), share.step)
        self._bare.resized(0, warm_up, out)
        start.wait()
        began, cpu_s = time.perf_counter(), time.process_time()
        for view in range(len(self._bare.boxes_VN4)):
            self._bare.resized(view, share, out)
        results.put((began, time.perf_counter(), time.process_time() - cpu_s))
