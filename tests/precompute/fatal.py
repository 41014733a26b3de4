"""A teacher that kills its process, and images over which it does.

`tests.precompute.fatal:fatal_teacher` dies at white images, as often as the environment says.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor, nn

from kdcache.data.blocks import BlockSource
from kdcache.data.dataset import Dataset
from kdcache.models.ensemble import TeacherSpec
from kdcache.precompute.jobs import JobSpec
from tests import tiny

DEATHS = "KDCACHE_TEST_DEATHS"  # a file that gets a line for each, and how many there are to be
ALWAYS = "KDCACHE_TEST_ALWAYS"  # set: at every image
RENDERING = "KDCACHE_TEST_RENDERING"  # the tar at which the process that renders dies
PARENT = "KDCACHE_TEST_PARENT"  # set: it is the process' parent that dies
SLOW = "KDCACHE_TEST_SLOW"  # a file that gets a line for each batch, which then takes 0.2 s
TEACHER = TeacherSpec(f"{__name__}:fatal_teacher", None, preprocessing=tiny.PLAIN)


class _Fatal(tiny.Exact):
    def forward(self, images_N3HW: Tensor) -> Tensor:
        if SLOW in os.environ:
            tiny.append_line(Path(os.environ[SLOW]), str(os.getpid()))
            time.sleep(0.2)
        name, _, most = os.environ.get(DEATHS, "").rpartition(":")
        white = (images_N3HW.flatten(1) > 0.999).all(1).any()
        if name and (white or (ALWAYS in os.environ and len(images_N3HW) > 1)):
            deaths = Path(name)
            if not deaths.exists() or len(deaths.read_text().splitlines()) < int(most):
                tiny.append_line(deaths, str(os.getpid()))
                os.kill(os.getppid() if PARENT in os.environ else os.getpid(), signal.SIGKILL)
        return super().forward(images_N3HW)


def fatal_teacher(num_classes: int = tiny.NUM_CLASSES) -> nn.Module:
    """Return the teacher of `tests.tiny:linear_teacher`, which dies."""
    if RENDERING in os.environ:
        BlockSource.render = _dying(BlockSource.render)  # type: ignore[method-assign]
    return _Fatal(num_classes, seed=0)


def _dying(render: Any) -> Any:
    def render_or_die(source: BlockSource, tar: int, *args: Any, **options: Any) -> Any:
        if tar == int(os.environ.get(RENDERING, "-1")):
            os.kill(os.getpid(), signal.SIGKILL)
        return render(source, tar, *args, **options)

    return render_or_die


def make_white(root: Path) -> Dataset:
    """Return five tars of four images, of which one is white."""
    images = tiny.write_images(root / "images", 20)
    file = sorted(images.rglob("*.png"))[3]
    with Image.open(file) as image:
        Image.new("RGB", image.size, (255, 255, 255)).save(file)
    return tiny.pack_images(images, root / "data", rows_per_tar=4)


def prepare(path: Path, dataset: Dataset, *, num_workers: int = 0) -> JobSpec:
    """Return a job of ten spans, which may be begun by any process."""
    recipe = tiny.make_recipe(mix=None)
    tiny.make_job(path, dataset, recipe, teacher=TEACHER.load("cpu"), num_views=4, span_views=2)
    return JobSpec(dataset.root, path, TEACHER, 5, skip_bad=False, num_workers=num_workers)


def die(monkeypatch: pytest.MonkeyPatch, file: Path, most: int) -> None:
    """Let processes that are started from now on die at white images, `most` of them."""
    monkeypatch.setenv(DEATHS, f"{file}:{most}")
