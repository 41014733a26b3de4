from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.report import sampling
from kdcache.report.cache_page import cache_sections
from kdcache.report.contact import make_sheets
from kdcache.report.sampling import sample_cache
from tests import tiny
from tests.cache.filling import full
from tests.report.showing import inspect, mixed_recipe


def test_a_small_cache_is_counted_whole(cache: Cache) -> None:
    sample = sample_cache(cache, None, seed=0)
    assert sample.said is not None
    assert (sample.tiles, sample.of_tiles, len(sample.said)) == (12, 12, 24 * 4)
    names = zip(sample.said.tars, sample.said.views, sample.said.rows, strict=True)
    assert len({tuple(map(int, name)) for name in names}) == 24 * 4
    sealed = cache.totals()
    assert (sample.totals.records, sample.totals.views) == (6, 96)
    assert (sample.totals.size_bytes, sample.totals.fidelity) == (
        sealed.size_bytes,
        sealed.fidelity,
    )


def test_tiles_and_records_are_bounded_and_fixed_by_the_seed(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_TILES", 5)
    monkeypatch.setattr(sampling, "MOST_RECORDS", 2)
    (cache.path / "seal.json").unlink()
    seen = set()
    for seed in range(4):
        sample = sample_cache(open_cache(cache.path), None, seed=seed)
        assert (sample.tiles, sample.of_tiles, sample.totals.records) == (5, 12, 2)
        assert sample.totals.size_bytes > 0
        assert sample.said is not None
        seen.add(tuple(sample.said.tars.tolist()))
        again = sample_cache(open_cache(cache.path), None, seed=seed)
        assert again.said is not None
        assert np.array_equal(again.said.views, sample.said.views)
    assert len(seen) > 1
    monkeypatch.setattr(sampling, "MOST_ROWS", 1)
    assert sample_cache(cache, None, seed=0).tiles == 1


def test_what_is_damaged_is_named_and_the_rest_is_counted(cache: Cache) -> None:
    path = cache.path / "values/c/1/0/0/0"
    path.write_bytes(path.read_bytes()[::-1])
    (cache.path / "commits/2-1.json").write_text("{}")
    (cache.path / "seal.json").write_text("{}")
    sample = sample_cache(open_cache(cache.path), None, seed=0)
    assert sample.tiles == 8
    named = "\n".join(sample.damage)
    for place in ("seal.json", "span 2-1", "tar 1, view 0", "tar 1, view 1", "tar 2, view 3"):
        assert place in named
    assert "tar 0" not in named
    assert sample.totals.records == 5


def test_an_empty_cache_has_nothing_to_say(tmp_path: Path, dataset: Dataset) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    sample = sample_cache(job.cache, None, seed=0)
    assert (sample.said, sample.tiles, sample.of_tiles, sample.totals.records) == (None, 0, 0, 0)


def test_a_cache_of_images_without_targets_has_nothing_to_draw(tmp_path: Path) -> None:
    none = {0: (0, 1), 1: (0,)}
    cache = full(tmp_path / "c", rows=(2, 1), num_views=1, span_views=1, unusable=none).cache
    (said,) = (s for s in cache_sections(inspect(cache, None), loud={}) if "said" in s.title)
    assert (said.paragraphs, said.figures) == (["None of the images has targets."], ())


def test_labels_are_of_the_image_with_the_larger_share(tmp_path: Path, dataset: Dataset) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, mixed_recipe())
    seen = inspect(cache, dataset)
    said = seen.sample.said
    assert said is not None
    assert seen.source is not None
    for tar, view, row, label in zip(said.tars, said.views, said.rows, said.labels, strict=True):
        block = next(b for b in seen.source.blocks(int(tar)) if b.start <= row < b.stop)
        rendered = seen.source.render(int(tar), block, views=[int(view)])
        (params,), inside = rendered.params, int(row) - block.start
        main = inside if params.shares(12)[inside] >= 0.5 else int(params.partners_N[inside])
        assert label == seen.source.labels(int(tar), block)[main]


def test_labels_of_classes_of_other_names_are_not_compared_which_is_said_first(
    cache: Cache, dataset: Dataset
) -> None:
    assert dataset.classes is not None
    turned = inspect(cache, replace(dataset, classes=dataset.classes[::-1]))
    assert turned.sample.said is not None
    assert (turned.sample.said.labels == -1).all()
    first, *others = cache_sections(turned, loud={})
    assert first.title == "Classes of other names"
    assert (
        "4 of 5 classes have other names in the dataset; class 0 is 'class0'" in first.paragraphs[0]
    )
    (said,) = (section for section in others if section.title == "What the teacher said")
    assert said.paragraphs[-1].startswith("Labels are not compared")
    (sheet,) = make_sheets(turned, tar=0, rows=[0], views=[0])
    assert {whose for _, _, whose in sheet.views[0].top} == {""}
    alike = inspect(cache, replace(dataset, classes=tuple(map(str.upper, dataset.classes))))
    assert cache_sections(alike, loud={})[0].title == "What it is"


def test_labels_of_other_classes_are_not_compared(tmp_path: Path, dataset: Dataset) -> None:
    teacher = tiny.make_teacher(num_classes=7)
    cache = tiny.precompute(
        tmp_path / "c", dataset, tiny.make_recipe(), teacher=teacher, other_classes=True
    )
    said = inspect(cache, dataset).sample.said
    assert said is not None
    assert (said.labels == -1).all()
