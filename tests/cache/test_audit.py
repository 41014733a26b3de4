"""Claims about verifying what is stored: each damaged object, record or document is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from kdcache.cache.audit import Finding, check_objects, check_replay
from kdcache.cache.layout import Span
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError
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
    """Computed again, it makes the seal right; until then the seal says too much."""
    (cache.path / "commits/1-0.json").unlink()
    again = open_cache(cache.path)
    assert again.missing() == [SPAN]
    (finding,) = check_objects(again)
    assert (finding.where, finding.span) == ("seal.json", None)
    assert finding.problem == "says that all spans are there, and span 1-0 is not"


def test_a_lost_seal_is_found(cache: Cache) -> None:
    (cache.path / "seal.json").unlink()
    (finding,) = check_objects(cache)
    assert finding == Finding("seal.json", "missing, though all spans are there", None)


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
    assert "damaged record; run kdcache repair" in finding.problem


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
    (finding,) = check_objects(cache)
    assert (finding.where, finding.span) == ("zarr.json", None)
    with pytest.raises(CorruptError, match=r"zarr\.json: is not the metadata of this cache; run"):
        open_cache(cache.path)


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
        assert [(f.where, f.span) for f in found] == [("uids/c/1/0, contents/c/1/0", None)]
        chunk.write_bytes(whole)
    _swap(chunk, cache.path / name / "c/0/0")
    found = _findings(cache.path)
    assert [f.where for f in found] == [f"uids/c/{tar}/0, contents/c/{tar}/0" for tar in (0, 1)]


def test_damaged_row_counts_stop_at_once(cache: Cache) -> None:
    _flip(cache.path / "rows/c/0", 0)
    with pytest.raises(CorruptError, match="rows"):
        open_cache(cache.path)
