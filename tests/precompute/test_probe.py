"""Claims about the probe: the job's own parts and views, timed within bounds; bytes as stored."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import DataError, UsageError
from kdcache.models.teacher import Teacher
from kdcache.precompute.probe import ProbeOptions, probe_costs
from kdcache.targets.encoding import parse_encoding
from tests import tiny

OPTIONS = ProbeOptions(
    parse_encoding("topk:3", 5), num_classes=5, span_views=2, batch_size=5, seconds=0.3
)


@pytest.fixture(scope="module")
def source(dataset: Dataset) -> BlockSource:
    return dataset_source(dataset, tiny.make_recipe())


def slow(teacher: Teacher, seconds: float) -> Teacher:
    """Return a teacher that takes so many seconds more for each view."""
    return tiny.watched(teacher, lambda pixels: time.sleep(seconds * len(pixels)))


def test_a_slow_teacher_is_found_slow_and_idle(source: BlockSource) -> None:
    probe = probe_costs(source, slow(tiny.make_teacher(), 0.02), OPTIONS)
    assert 0.02 <= probe.costs.teacher_s < 0.2
    assert probe.costs.teacher_cores < 0.7  # asleep, not at work
    assert 0 < probe.costs.render_s < 0.02
    assert probe.costs.span_views == 2
    assert probe.costs.cores >= 1


def test_the_probe_ends_in_its_time_or_after_one_block(source: BlockSource) -> None:
    quick = probe_costs(source, tiny.make_teacher(), replace(OPTIONS, seconds=0))
    assert 0 < quick.rendered <= 8  # a block of 4 rows in 2 views
    assert quick.taught == 4
    assert quick.seconds < 5
    slowly = probe_costs(source, slow(tiny.make_teacher(), 0.01), replace(OPTIONS, seconds=1))
    assert 0.5 < slowly.seconds < 5
    assert probe_costs(source, tiny.make_teacher(), OPTIONS).taught > quick.taught


def test_the_teacher_sees_views_of_the_recipe(dataset: Dataset, source: BlockSource) -> None:
    seen: set[int] = set()

    def report(pixels_NHW3: NDArray[np.uint8]) -> None:
        seen.update(map(tiny.pixel_digest, pixels_NHW3))

    probe_costs(source, tiny.watched(tiny.make_teacher(), report), replace(OPTIONS, seconds=0))
    views = {
        tiny.pixel_digest(pixels)
        for tar in range(source.num_tars)
        for rows in source.blocks(tar)
        for view in source.render(tar, rows, views=[0, 1]).pixels_GNHW3
        for pixels in view
    }
    assert seen
    assert seen <= views


@pytest.mark.parametrize("encoding", ["topk:3", "packed:3", "dense:f2"])
def test_bytes_are_about_those_of_a_cache(tmp_path: Path, encoding: str) -> None:
    dataset, recipe = tiny.make_dataset(tmp_path, 80, rows_per_tar=40), tiny.make_recipe()
    # Long enough to fill a tile on a busy machine, too: a few rows cost more each.
    options = replace(OPTIONS, encoding=parse_encoding(encoding, 5), seconds=2.0)
    found = probe_costs(dataset_source(dataset, recipe), tiny.make_teacher(), options).costs
    job = tiny.make_job(tmp_path / "cache", dataset, recipe, encoding=encoding)
    commits = [tiny.run_span(job, span) for span in job.cache.grid.spans()]
    stored = sum(commit.size_bytes for commit in commits) / (4 * 80)
    assert 0.85 < found.target_bytes / stored < 1.15


def test_bad_images_are_left_out_and_nothing_else_is_refused(tmp_path: Path) -> None:
    images = tiny.write_images(tmp_path / "images", 8)
    bad = sorted(images.rglob("*.jpg"))[:2]
    for path in bad:
        path.write_bytes(b"no image")
    dataset = tiny.pack_images(images, tmp_path / "data")
    recipe = tiny.make_recipe()
    assert probe_costs(dataset_source(dataset, recipe), tiny.make_teacher(), OPTIONS).taught > 0
    for path in images.rglob("*.*"):
        path.write_bytes(b"no image")
    useless = tiny.pack_images(images, tmp_path / "useless")
    with pytest.raises(DataError, match="no image of the probe can be used"):
        probe_costs(dataset_source(useless, recipe), tiny.make_teacher(), OPTIONS)


def test_a_teacher_that_diverged_is_refused(source: BlockSource) -> None:
    teacher = tiny.make_teacher()
    next(teacher.network.parameters()).data[0] = math.nan
    with pytest.raises(UsageError, match="not finite"):
        probe_costs(source, teacher, OPTIONS)
