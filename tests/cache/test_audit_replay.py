"""Claims about verifying what a cache was made from: pixels, the teacher; and about its summary."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from kdcache.cache.audit import Finding, check_objects, check_replay, check_teacher
from kdcache.cache.layout import Span
from kdcache.cache.shard import checksum
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.summary import summarise_cache
from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, DataError, IncompleteError
from kdcache.identity import digest
from tests import tiny
from tests.cache.keeping import flip

SPAN = Span(1, 0)  # views 0 and 1 of the second tar


def _source(cache: Cache, dataset: Dataset) -> BlockSource:
    return dataset_source(dataset, cache.info.recipe)


# --- replay --------------------------------------------------------------------------------


def test_a_replay_of_everything_renders_each_block_once(cache: Cache, dataset: Dataset) -> None:
    """Tars of 10, 10 and 4 rows in blocks of 4, in 4 views."""
    assert list(check_replay(cache, _source(cache, dataset), share=1)) == [None] * 28


@pytest.mark.parametrize(("share", "blocks"), [(1e-9, 1), (0.25, 7), (0.5, 14)])
def test_a_replay_renders_its_share_and_at_least_one_block(
    cache: Cache, dataset: Dataset, share: float, blocks: int
) -> None:
    assert list(check_replay(cache, _source(cache, dataset), share=share)) == [None] * blocks


def test_a_replay_of_an_incomplete_cache_covers_what_is_there(
    tmp_path: Path, dataset: Dataset
) -> None:
    recipe = tiny.make_recipe()
    part = tiny.precompute_first(tmp_path / "part", dataset, recipe, spans=1)
    assert list(check_replay(part, _source(part, dataset), share=1)) == [None] * 6
    none = tiny.precompute_first(tmp_path / "none", dataset, recipe, spans=0)
    assert list(check_replay(none, _source(none, dataset), share=1)) == []


def _replayed(cache: Cache, source: BlockSource) -> list[Finding]:
    return [found for found in check_replay(cache, source, share=1) if found is not None]


def test_a_replay_finds_the_block_whose_witness_changed(cache: Cache, dataset: Dataset) -> None:
    """The object is whole and committed: only the pixels tell."""
    witness = zarr.open_group(str(cache.path), mode="r+")["witness"]
    assert isinstance(witness, zarr.Array)
    values = np.asarray(witness[1, 0:2])
    values[1, 2] ^= np.uint64(1)
    witness[1, 0:2] = values
    name = "witness/c/1/0/0"

    record = cache.path / "commits/1-0.json"
    body = json.loads(record.read_text())
    body["objects"][name] = cache.folder.digest(name)
    body["tiles"]["witness"][0][2] = checksum(values.tobytes())
    del body["digest"]
    record.write_text(json.dumps({**body, "digest": digest(body)}))
    again = open_cache(cache.path)
    assert list(check_objects(again)) == []
    (finding,) = _replayed(again, _source(again, dataset))
    assert finding.where == "tar 1, view 1, rows 8 to 9"
    assert "pixels differ" in finding.problem
    assert finding.span is None


def test_a_replay_names_the_span_of_a_damaged_witness(cache: Cache, dataset: Dataset) -> None:
    flip(cache.path / "witness/c/1/0/0", 3)
    found = _replayed(cache, _source(cache, dataset))
    assert len(found) == 6  # two views of three blocks
    assert {finding.span for finding in found} == {SPAN}
    assert all(finding.where.startswith("tar 1, view") for finding in found)


def test_a_replay_names_the_span_of_a_damaged_record(cache: Cache, dataset: Dataset) -> None:
    flip(cache.path / "commits/1-0.json", 30)
    found = _replayed(cache, _source(cache, dataset))
    assert {finding.span for finding in found} == {SPAN}


def test_a_replay_under_another_seed_differs_in_every_block(cache: Cache, dataset: Dataset) -> None:
    other = dataset_source(dataset, tiny.make_recipe(seed=4))
    found = _replayed(cache, other)
    assert len(found) == 28
    assert {finding.span for finding in found} == {None}


def test_a_replay_over_other_images_differs_where_they_do(
    tmp_path: Path, cache: Cache, dataset: Dataset
) -> None:
    """One image of 24 is replaced: all views of its block differ, and no other."""
    folder = tiny.write_images(tmp_path / "images", 24)
    images = sorted(folder.rglob("*.*"))
    shutil.copyfile(images[0], images[13])
    changed = tiny.pack_images(folder, tmp_path / "data")
    assert np.array_equal(changed.uids, dataset.uids)
    source = _source(cache, changed)
    found = _replayed(cache, source)
    assert [finding.where for finding in found] == [
        f"tar 1, view {view}, rows 0 to 3" for view in range(4)
    ]


def test_a_replay_without_the_tars_says_so(tmp_path: Path, cache: Cache, dataset: Dataset) -> None:
    source = _source(cache, replace(dataset, root=tmp_path / "gone"))
    with pytest.raises(DataError, match="gone/000000"):
        list(check_replay(cache, source, share=1))


# --- the teacher ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["topk:3", "topk:5", "dense:f2", "dense:u1"])
def test_the_same_teacher_is_the_same_to_the_byte(
    tmp_path: Path, dataset: Dataset, encoding: str
) -> None:
    """Its arithmetic is exact, so that its batches do not matter."""
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), encoding=encoding)
    check = check_teacher(cache, _source(cache, dataset), tiny.make_teacher(), share=1)
    assert check.same
    assert check.rows == 96
    assert check.rows_equal == 1
    assert check.top1_agreement == 1
    assert check.max_difference == 0
    assert check.kl_nats == 0


@pytest.mark.parametrize("encoding", ["topk:3", "dense:f2"])
def test_another_teacher_is_not_the_same(tmp_path: Path, dataset: Dataset, encoding: str) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), encoding=encoding)
    other = tiny.make_teacher("other_teacher")
    check = check_teacher(cache, _source(cache, dataset), other, share=0.3)
    assert not check.same
    assert check.rows_equal < 0.5
    assert check.max_difference > 0.1
    assert check.kl_nats > 0.01


def test_a_teacher_a_little_off_is_the_same_though_not_to_the_byte(
    tmp_path: Path, dataset: Dataset
) -> None:
    """As another GPU would be."""
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), encoding="dense:f2")
    teacher = tiny.make_teacher()
    weight = next(teacher.network.parameters())
    weight.data *= 1.0005
    check = check_teacher(cache, _source(cache, dataset), teacher, share=1)
    assert check.same
    assert 0 < check.max_difference < 0.05
    assert check.rows_equal < 1
    assert check.top1_agreement == 1


def test_the_teacher_is_asked_about_usable_rows_alone(tmp_path: Path) -> None:
    dataset = _with_a_bad_image(tmp_path)
    recipe = tiny.make_recipe()
    cache = tiny.precompute(tmp_path / "c", dataset, recipe, skip_bad=True)
    check = check_teacher(cache, _source(cache, dataset), tiny.make_teacher(), share=1)
    assert check.rows == 4 * 11
    assert check.rows_equal == 1
    assert list(check_replay(cache, _source(cache, dataset), share=1)) == [None] * 16


def _with_a_bad_image(root: Path) -> Dataset:
    """Return a dataset of 12 images in tars of 10 and 2, the third of which is no image."""
    folder = tiny.write_images(root / "images", 12)
    sorted(folder.rglob("*.*"))[2].write_bytes(b"no image")
    return tiny.pack_images(folder, root / "data")


def test_a_teacher_without_anything_to_compare_is_incomplete(
    tmp_path: Path, dataset: Dataset
) -> None:
    empty = tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=0)
    with pytest.raises(IncompleteError, match="no target to compare"):
        check_teacher(empty, _source(empty, dataset), tiny.make_teacher(), share=1)


def test_a_damaged_tile_stops_the_teacher(cache: Cache, dataset: Dataset) -> None:
    flip(cache.path / "values/c/1/0/0/0", 30)
    with pytest.raises(CorruptError, match="values/c/1/0/0/0"):
        check_teacher(cache, _source(cache, dataset), tiny.make_teacher(), share=1)


# --- the summary ---------------------------------------------------------------------------


def test_the_summary_counts_what_is_stored(cache: Cache, dataset: Dataset) -> None:
    value = summarise_cache(cache)
    size = sum((cache.path / f).stat().st_size for f in tiny.tree(cache.path) if _is_target(f))
    assert value["size_bytes"] == size
    assert value["views_stored"] == 96
    assert value["bytes_per_view"] == size / 96
    assert (value["spans"], value["spans_missing"], value["coverage"]) == (6, 0, 1)
    assert (value["tars"], value["views"], value["span_views"]) == (3, 4, 2)
    assert value["dataset"] == {"id": dataset.id, "num_samples": 24}
    assert value["rows_unusable"] == 0
    assert json.loads(json.dumps(value, allow_nan=False))["encoding"] == "topk:3"


def _is_target(name: str) -> bool:
    return name.split("/")[0] in ("indices", "values", "tails", "witness") and "/c/" in name


def test_the_summary_of_a_part_covers_the_part(tmp_path: Path, dataset: Dataset) -> None:
    """The first three spans: two of a tar of 10 rows, one of another."""
    part = tiny.precompute_first(tmp_path / "part", dataset, tiny.make_recipe(), spans=3)
    value = summarise_cache(part)
    assert (value["spans_missing"], value["coverage"]) == (3, 0.5)
    assert value["views_stored"] == 60
    assert value["fidelity"]["kl_nats"]["1"] >= 0


def test_the_summary_of_nothing_has_no_means(tmp_path: Path, dataset: Dataset) -> None:
    empty = tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=0)
    value = summarise_cache(empty)
    assert (value["coverage"], value["views_stored"], value["size_bytes"]) == (0, 0, 0)
    assert value["bytes_per_view"] is None
    assert value["fidelity"] == {}


def test_the_summary_counts_unusable_images_once(tmp_path: Path) -> None:
    dataset = _with_a_bad_image(tmp_path)
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), skip_bad=True)
    assert summarise_cache(cache)["rows_unusable"] == 1
