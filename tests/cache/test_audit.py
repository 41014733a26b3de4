import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.cache.audit import Finding, check_objects, check_replay, check_teacher
from kdcache.cache.layout import Span
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.summary import summarise_cache
from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, DataError, IncompleteError, KdcacheError
from kdcache.identity import digest
from tests import tiny

SPAN = Span(1, 0)  # views 0 and 1 of the second tar
OBJECTS = ["indices/c/1/0/0/0", "values/c/1/0/0/0", "tails/c/1/0/0/0", "witness/c/1/0/0"]
ARRAYS = ["indices", "values", "tails", "witness", "uids", "contents", "rows"]


def _flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


def _findings(path: Path) -> list[Finding]:
    return list(check_objects(open_cache(path)))


def _source(cache: Cache, dataset: Dataset) -> BlockSource:
    return dataset_source(dataset, cache.info.recipe)


# --- objects -------------------------------------------------------------------------------


def test_a_sound_cache_has_no_findings(cache: Cache) -> None:
    assert (cache.path / "seal.json").exists()
    assert list(check_objects(cache)) == []


def test_a_sound_cache_that_is_not_sealed_has_no_findings(tmp_path: Path, dataset: Dataset) -> None:
    part = tiny.precompute_first(tmp_path / "part", dataset, tiny.make_recipe(), spans=3)
    assert not (part.path / "seal.json").exists()
    assert list(check_objects(part)) == []


@pytest.mark.parametrize("name", OBJECTS)
def test_a_flipped_bit_anywhere_in_an_object_is_found(cache: Cache, name: str) -> None:
    path = cache.path / name
    whole = path.read_bytes()
    for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        _flip(path, at, bit=at % 8)
        (finding,) = check_objects(cache)
        assert (finding.where, finding.span) == (name, SPAN)
        assert finding.problem.startswith("its sha256 differs")
        path.write_bytes(whole)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_cut_object_is_found_with_both_sizes(cache: Cache, name: str, left: int) -> None:
    size = (cache.path / name).stat().st_size
    os.truncate(cache.path / name, left if left >= 0 else size + left)
    (finding,) = check_objects(cache)
    assert (finding.where, finding.span) == (name, SPAN)
    now = (cache.path / name).stat().st_size
    assert f"{now} bytes, {size} committed" in finding.problem


@pytest.mark.parametrize("name", OBJECTS)
def test_a_missing_object_is_found(cache: Cache, name: str) -> None:
    (cache.path / name).unlink()
    assert list(check_objects(cache)) == [Finding(name, "missing", SPAN)]


@pytest.mark.parametrize("name", OBJECTS)
def test_swapped_objects_are_both_found(cache: Cache, name: str) -> None:
    """Each passes its own checksum."""
    other = name.replace("/1/0/", "/0/0/")
    _swap(cache.path / name, cache.path / other)
    found = list(check_objects(cache))
    assert [(f.where, f.span) for f in found] == [(other, Span(0, 0)), (name, SPAN)]


def test_objects_of_a_whole_span_in_the_place_of_another_are_found(cache: Cache) -> None:
    for name in OBJECTS:
        shutil.copyfile(cache.path / name.replace("/1/0/", "/1/1/", 1), cache.path / name)
    found = list(check_objects(cache))
    assert {(f.where, f.span) for f in found} == {(name, SPAN) for name in OBJECTS}


def test_all_damage_is_listed_at_once(cache: Cache) -> None:
    _flip(cache.path / OBJECTS[0], 5)
    (cache.path / "tails/c/2/1/0/0").unlink()
    _flip(cache.path / "commits/0-1.json", 30)
    found = {(f.where, f.span) for f in check_objects(cache)}
    assert found >= {
        (OBJECTS[0], SPAN),
        ("tails/c/2/1/0/0", Span(2, 1)),
        ("commits/0-1.json", Span(0, 1)),
    }


# --- records -------------------------------------------------------------------------------


def _flipped(path: Path) -> None:
    _flip(path, 40)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _list(path: Path) -> None:
    path.write_text("[1, 2]")


def _edited(path: Path) -> None:
    """Change a value, as an editor would."""
    body = json.loads(path.read_text())
    body["unusable" if path.parent.name == "commits" else "size_bytes"] = [1]
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    "damage", [_flipped, _cut, _empty, _list, _edited], ids=lambda damage: damage.__name__
)
def test_a_damaged_commit_record_is_found(cache: Cache, damage: Callable[[Path], None]) -> None:
    damage(cache.path / "commits/1-0.json")
    found = list(check_objects(cache))
    assert ("commits/1-0.json", SPAN) in [(f.where, f.span) for f in found]
    assert {f.where for f in found} <= {"commits/1-0.json", "seal.json"}


def test_the_commit_record_of_another_span_is_found(cache: Cache) -> None:
    shutil.copyfile(cache.path / "commits/0-0.json", cache.path / "commits/1-0.json")
    found = list(check_objects(cache))
    assert found[0].where == "commits/1-0.json"
    assert "the record of span 0-0" in found[0].problem


def test_the_commit_record_of_no_span_is_found_and_disturbs_no_replay(
    cache: Cache, dataset: Dataset
) -> None:
    shutil.copyfile(cache.path / "commits/0-0.json", cache.path / "commits/9-9.json")
    (finding,) = check_objects(cache)
    assert (finding.where, finding.span) == ("commits/9-9.json", Span(9, 9))
    replayed = list(check_replay(cache, _source(cache, dataset), share=1))
    assert replayed == [None] * 28


def test_a_lost_commit_record_of_a_sealed_cache_is_a_missing_span(cache: Cache) -> None:
    """Computed again, it makes the seal right."""
    (cache.path / "commits/1-0.json").unlink()
    again = open_cache(cache.path)
    assert again.missing() == [SPAN]
    assert list(check_objects(again)) == []


def test_a_seal_of_other_totals_is_found(cache: Cache) -> None:
    """Its own digest is right."""
    path = cache.path / "seal.json"

    def change(body: dict[str, Any]) -> None:
        body["size_bytes"] += 1
        del body["digest"]
        body["digest"] = digest(body)

    _edit(path, change)
    (finding,) = check_objects(cache)
    assert finding == Finding("seal.json", "differs from the commit records", None)


@pytest.mark.parametrize(
    "damage", [_flipped, _cut, _empty, _list, _edited], ids=lambda damage: damage.__name__
)
def test_a_damaged_seal_is_found(cache: Cache, damage: Callable[[Path], None]) -> None:
    damage(cache.path / "seal.json")
    (finding,) = check_objects(cache)
    assert (finding.where, finding.span) == ("seal.json", None)
    assert "delete it and run precompute again" in finding.problem


def test_the_seal_of_another_cache_is_found(cache: Cache, tmp_path: Path, dataset: Dataset) -> None:
    other = tiny.precompute(tmp_path / "other", dataset, tiny.make_recipe(seed=8))
    shutil.copyfile(other.path / "seal.json", cache.path / "seal.json")
    assert [f.where for f in check_objects(cache)] == ["seal.json"]


# --- metadata and names --------------------------------------------------------------------


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize("name", ARRAYS)
def test_changed_metadata_of_an_array_are_found(cache: Cache, name: str) -> None:
    """A changed fill value would read what is missing as something else."""
    _edit(cache.path / name / "zarr.json", lambda body: body.update(fill_value=1))
    (finding,) = check_objects(cache)
    assert (finding.where, finding.span) == (f"{name}/zarr.json", None)
    assert "differs" in finding.problem


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", [_cut, _list, Path.unlink], ids=lambda damage: damage.__name__)
def test_unreadable_metadata_of_an_array_are_found_or_stop_at_once(
    cache: Cache, name: str, damage: Callable[[Path], None]
) -> None:
    where = f"{name}/zarr.json"
    damage(cache.path / where)
    assert where in [f.where for f in check_objects(cache)]
    try:
        found = [f.where for f in _findings(cache.path)]
    except CorruptError as error:
        found = [where] if name in str(error) else []
    assert where in found


def test_changed_metadata_of_the_sealed_whole_are_found(cache: Cache) -> None:
    """Other readers take the arrays' metadata from there."""
    path = cache.path / "zarr.json"

    def change(body: dict[str, Any]) -> None:
        body["consolidated_metadata"]["metadata"]["tails"]["fill_value"] = 0.0

    _edit(path, change)
    tails = zarr.open_group(str(cache.path), mode="r")["tails"]
    assert isinstance(tails, zarr.Array)
    assert tails.fill_value == 0  # what another reader would believe
    (finding,) = _findings(cache.path)
    assert (finding.where, finding.span) == ("zarr.json", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 6),
        ("classes", ["cat"] * 5),
        ("licences", {"data": "CC0-1.0", "weights": None, "output": None}),
        ("versions", {"numpy": "1"}),
    ],
)
def test_changed_attributes_stop_at_once(cache: Cache, field: str, value: object) -> None:
    """Also those that the id does not cover."""
    path = cache.path / "zarr.json"
    _edit(path, lambda body: body["attributes"]["kdcache"].update({field: value}))
    with pytest.raises(CorruptError, match="differ from their digest"):
        open_cache(cache.path)
    assert [f.where for f in check_objects(cache)] == ["zarr.json"]


def test_a_changed_normalisation_stops_at_once(cache: Cache) -> None:
    """A student would otherwise see other numbers than its teacher."""

    def change(body: dict[str, Any]) -> None:
        body["attributes"]["kdcache"]["teacher"]["mean"][0] = 0.5

    _edit(cache.path / "zarr.json", change)
    with pytest.raises(CorruptError, match="differ from their digest"):
        open_cache(cache.path)


@pytest.mark.parametrize("name", ["uids", "contents"])
def test_damaged_sample_names_are_found(cache: Cache, name: str) -> None:
    chunk = cache.path / name / "c/1/0"
    whole = chunk.read_bytes()
    for damage in (lambda path: _flip(path, 9), _cut, Path.unlink):
        damage(chunk)
        found = _findings(cache.path)
        assert {(f.where, f.span) for f in found} == {("uids, contents", None)}
        chunk.write_bytes(whole)
    _swap(chunk, cache.path / name / "c/0/0")
    found = _findings(cache.path)
    assert [f.problem.split()[0] for f in found] == ["000000.tar", "000001.tar", "do"]


def test_damaged_row_counts_stop_at_once(cache: Cache) -> None:
    _flip(cache.path / "rows/c/0", 0)
    with pytest.raises(CorruptError, match="rows"):
        open_cache(cache.path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_flipped_bit_of_every_file_is_found(cache: Cache, data: st.DataObject) -> None:
    files = [path for path in cache.path.rglob("*") if path.is_file() and path.name != ".lock"]
    path = data.draw(st.sampled_from(sorted(files)))
    whole = path.read_bytes()
    try:
        _flip(path, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
        try:
            found = _findings(cache.path)
        except KdcacheError:
            return
        assert found
    finally:
        path.write_bytes(whole)


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

    def change(body: dict[str, Any]) -> None:
        body["objects"][name] = cache.folder.digest(name)
        del body["digest"]
        body["digest"] = digest(body)

    _edit(cache.path / "commits/1-0.json", change)
    again = open_cache(cache.path)
    assert list(check_objects(again)) == []
    (finding,) = _replayed(again, _source(again, dataset))
    assert finding.where == "tar 1, view 1, rows 8 to 9"
    assert "pixels differ" in finding.problem
    assert finding.span is None


def test_a_replay_names_the_span_of_a_damaged_witness(cache: Cache, dataset: Dataset) -> None:
    _flip(cache.path / "witness/c/1/0/0", 3)
    found = _replayed(cache, _source(cache, dataset))
    assert len(found) == 6  # two views of three blocks
    assert {finding.span for finding in found} == {SPAN}
    assert all(finding.where.startswith("tar 1, view") for finding in found)


def test_a_replay_names_the_span_of_a_damaged_record(cache: Cache, dataset: Dataset) -> None:
    _flip(cache.path / "commits/1-0.json", 30)
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
    _flip(cache.path / OBJECTS[1], 30)
    with pytest.raises(CorruptError, match=OBJECTS[1]):
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
    assert value["fidelity"]["kl_nats"] >= 0


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
