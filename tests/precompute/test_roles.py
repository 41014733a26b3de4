"""Claims about teachers that see a view at another size than the student: proven on both sides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.audit import check_objects, check_replay, check_teacher
from kdcache.cache.extend import extend_cache
from kdcache.cache.merge import prepare_merge, prepare_slice, run_copying
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.precompute.engines import run_inline
from kdcache.recipe.schema import Recipe
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from tests import tiny

STUDENT, TEACHER = 16, 24
RECIPE = tiny.make_recipe(size=STUDENT, teacher={"size": TEACHER, "resize": "pillow-bicubic"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.make_dataset(tmp_path_factory.mktemp("roles"), 24)


def pixels_seen(path: Path, dataset: Dataset, recipe: Recipe) -> tuple[Cache, list[NDArray[Any]]]:
    """Return a new cache, and the pixels (H, W, 3) that its teacher saw."""
    seen: list[NDArray[Any]] = []
    job = tiny.make_job(path, dataset, recipe)
    run_inline(replace(job, teacher=tiny.watched(job.teacher, seen.extend)))
    return job.cache, seen


def views(cache: Cache, dataset: Dataset, **options: Any) -> list[NDArray[Any]]:
    stream = replay_stream(cache, dataset, StreamOptions(batch_size=4, shuffle=False, **options))
    return [image.permute(1, 2, 0).numpy() for batch in stream for image in batch.pixels]


def test_each_sees_the_view_at_its_own_size(tmp_path: Path, dataset: Dataset) -> None:
    cache, taught = pixels_seen(tmp_path / "c", dataset, RECIPE)
    replayed = views(cache, dataset, num_epochs=4)
    assert {image.shape for image in taught} == {(TEACHER, TEACHER, 3)}
    assert {image.shape for image in replayed} == {(STUDENT, STUDENT, 3)}
    # In the teacher's order: spans of two views, blocks of four rows.
    names = [
        (view, int(cache.grid.max_rows * span.tar) + row)
        for span in cache.grid.spans()
        for rows in dataset_source(dataset, RECIPE).blocks(span.tar)
        for view in cache.grid.views(span)
        for row in range(rows.start, rows.stop)
    ]
    by_name = dict(zip(names, taught, strict=True))
    in_order = [by_name[name] for name in sorted(by_name)]
    small = [
        np.asarray(Image.fromarray(image).resize((STUDENT, STUDENT), Image.Resampling.BILINEAR))
        for image in in_order
    ]
    apart = np.abs(np.stack(small).astype(int) - np.stack(replayed)).mean((1, 2, 3))
    shuffled = np.abs(np.stack(small[1:]).astype(int) - np.stack(replayed[:-1])).mean((1, 2, 3))
    assert len(apart) == 24 * 4
    assert np.median(apart) < 6
    assert apart.max() < shuffled.mean() / 2


def test_students_of_one_size_see_equal_views_whatever_the_teacher_sees(
    tmp_path: Path, dataset: Dataset
) -> None:
    alone = tiny.precompute(tmp_path / "a", dataset, tiny.make_recipe(size=STUDENT))
    beside = tiny.precompute(tmp_path / "b", dataset, RECIPE)
    assert alone.info.id != beside.info.id
    assert alone.info.recipe.student_id == beside.info.recipe.student_id
    for ours, theirs in zip(views(alone, dataset), views(beside, dataset), strict=True):
        assert np.array_equal(ours, theirs)


def test_render_workers_store_the_same_bytes(tmp_path: Path, dataset: Dataset) -> None:
    tiny.precompute(tmp_path / "one", dataset, RECIPE)
    job = tiny.make_job(tmp_path / "two", dataset, RECIPE)
    run_inline(replace(job, num_workers=2))
    assert tiny.tree(tmp_path / "one") == tiny.tree(tmp_path / "two")


def test_a_row_that_cannot_be_used_is_left_out_of_both(tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "images", 12)
    bad = sorted(folder.rglob("*.jpg"))[3]
    bad.write_bytes(bad.read_bytes()[:200])
    dataset = tiny.pack_images(folder, tmp_path / "data")
    cache = tiny.precompute(tmp_path / "c", dataset, RECIPE, skip_bad=True)
    assert sum(map(len, cache.totals().unusable.values())) == 1
    assert len(views(cache, dataset, num_epochs=4)) == 4 * 11


def test_both_witnesses_are_checked(tmp_path: Path, dataset: Dataset) -> None:
    path = tmp_path / "c"
    cache = tiny.precompute(path, dataset, RECIPE)
    source = dataset_source(dataset, RECIPE)
    assert not list(check_objects(cache))
    found = list(check_replay(cache, source, share=1))
    assert len(found) == 2 * 4 * sum(len(source.blocks(tar)) for tar in range(3))
    assert not any(found)
    # Other pixels for one of them only: the recipe says so, the witnesses do not.
    for changed, words in (
        (tiny.make_recipe(size=STUDENT, teacher={"size": TEACHER}), "as the teacher sees them"),
        (RECIPE.model_copy(update={"resize": "pillow-bicubic"}), "rows 0 to 3$"),
    ):
        findings = [f for f in check_replay(cache, replace(source, recipe=changed), share=1) if f]
        assert len(findings) == len(found) / 2
        assert all(f.where.endswith("as the teacher sees them") for f in findings) == (
            words == "as the teacher sees them"
        )
    assert check_teacher(cache, source, tiny.make_teacher(), share=1).rows_equal == 1


def test_a_damaged_witness_of_the_teacher_is_found(tmp_path: Path, dataset: Dataset) -> None:
    path = tmp_path / "c"
    tiny.precompute(path, dataset, RECIPE)
    name = path / "teacher_witness/c/1/0/0"
    data = bytearray(name.read_bytes())
    data[3] ^= 1
    name.write_bytes(data)
    (finding,) = check_objects(open_cache(path))
    assert finding.where == "teacher_witness/c/1/0/0"


def test_caches_with_two_witnesses_are_extended_merged_and_sliced(
    tmp_path: Path, dataset: Dataset
) -> None:
    whole = tiny.precompute(tmp_path / "whole", dataset, RECIPE)
    tiny.precompute(tmp_path / "grown", dataset, RECIPE, num_views=2)
    extend_cache(tmp_path / "grown", num_views=4)
    grown = tiny.precompute(tmp_path / "grown", dataset, RECIPE)
    assert tiny.tree(whole.path) == tiny.tree(grown.path)
    part = tmp_path / "part"
    run_copying(prepare_slice(whole.path, part, num_views=4, first_view=2, tars=range(1, 3)))
    merging = prepare_merge(tmp_path / "merged", [part, whole.path])
    run_copying(merging)
    seal(merging.target)
    assert tiny.tree(whole.path) == tiny.tree(tmp_path / "merged")


def test_to_learn_online_both_see_the_same(tmp_path: Path, dataset: Dataset) -> None:
    from kdcache.models.ensemble import TeacherSpec
    from kdcache.student.config import make_config
    from kdcache.student.setup import make_run
    from kdcache.student.sources import Sources

    config = make_config(student="tests.tiny:linear_teacher", epochs=1, learn="online")
    teacher = TeacherSpec("tests.tiny:linear_teacher", None)
    sources = Sources(dataset.root, recipe=RECIPE, teacher=teacher)
    with pytest.raises(UsageError, match="without \\[teacher\\]"):
        make_run(config, sources, folder=tmp_path / "run")
