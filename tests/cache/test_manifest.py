"""Claims about commit records and the seal: they are right, or refused, or not there."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.layout import Grid, Span
from kdcache.cache.manifest import (
    SEAL,
    Commit,
    Seal,
    committed,
    missing,
    read_commit,
    read_seal,
    summarise,
    write_commit,
    write_seal,
)
from kdcache.cache.objects import Folder
from kdcache.cache.sealing import seal
from kdcache.cache.shard import Place
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, IncompleteError, MismatchError
from kdcache.identity import digest
from kdcache.targets.fidelity import NO_ROWS, Fidelity

FIDELITY = Fidelity(40, (0.1 + 0.2, 0.0, 1e-9), 39, (1e-30, 0.5, 1e300), (1.0, 2.0, 3.0))
ID = "5e" * 32
COMMIT = Commit(
    cache=ID,
    tar=2,
    run=1,
    views=(4, 5, 6, 7),
    rows=10,
    unusable=(3, 9),
    objects={"values/c/2/1/0/0": {"size_bytes": 77, "sha256": "ab" * 32}},
    tiles={"values": (Place(0, 30, 2**32 - 1), Place(30, 23, 0))},
    layers={"draw": "0f" * 8},
    fidelity=FIDELITY,
    versions={"torch": "2", "device": "é"},
    seconds={"wall": 1.25},
)
SPAN = Span(2, 1)

numbers = st.integers(0, 2**40)
ascending = st.lists(numbers, unique=True).map(sorted).map(tuple)
commits = st.builds(
    Commit,
    cache=st.text(),
    tar=st.integers(0, 9),
    run=st.integers(0, 9),
    views=ascending,
    rows=numbers.map(lambda number: number + 2**40 + 1),
    unusable=ascending,
    objects=st.dictionaries(
        st.text(), st.fixed_dictionaries({"size_bytes": numbers, "sha256": st.text()})
    ),
    tiles=st.dictionaries(
        st.text(),
        st.lists(st.builds(Place, numbers, numbers, st.integers(0, 2**32 - 1)), min_size=1).map(
            tuple
        ),
    ),
    layers=st.dictionaries(st.text(), st.text()),
    fidelity=st.builds(
        Fidelity,
        numbers,
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3),
        numbers,
        *(st.tuples(*[st.floats(0, 1e300)] * 3) for _ in range(2)),
    ),
    versions=st.dictionaries(st.text(), st.text()),
    seconds=st.dictionaries(st.text(), st.floats(0, 1e9)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@settings(max_examples=50, deadline=None)
@given(commit=commits)
def test_a_record_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, commit: Commit
) -> None:
    folder = Folder(tmp_path_factory.mktemp("records"))
    write_commit(folder, commit)
    assert read_commit(folder, Span(commit.tar, commit.run), cache=commit.cache) == commit


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = Folder(tmp_path_factory.mktemp("record"))
    write_commit(folder, COMMIT)
    return folder.path, folder.read(SPAN.commit_name)


def _is_refused(path: Path, data: bytes) -> bool:
    """Read a record with other bytes: it is refused, or, where they mean the same, equal."""
    (path / SPAN.commit_name).write_bytes(data)
    try:
        found = read_commit(Folder(path), SPAN, cache=ID)
    except CorruptError as error:
        message = str(error)
    else:
        assert found == COMMIT
        return False
    assert f"{path / SPAN.commit_name}: " in message
    assert "run kdcache repair" in message
    return True


def test_a_record_with_any_bit_flipped_is_refused(record: tuple[Path, bytes]) -> None:
    path, data = record
    flipped = [
        data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))
    ]
    refused = sum(_is_refused(path, other) for other in flipped)
    assert refused > 0.98 * len(data), "only a capital in an exponent or escape means the same"


def _write_without(folder: Folder, name: str) -> None:
    """Write a record that lacks a field, as one of another version may, its digest right."""
    write_commit(folder, COMMIT)
    body = json.loads(folder.read(SPAN.commit_name))
    del body[name], body["digest"]
    text = json.dumps({**body, "digest": digest(body)})
    (folder.path / SPAN.commit_name).write_text(text)


@pytest.mark.parametrize("name", [f.name for f in fields(Commit)])
def test_a_record_that_lacks_a_field_is_refused(folder: Folder, name: str) -> None:
    _write_without(folder, name)
    with pytest.raises(CorruptError, match=f"{SPAN.commit_name}: is no commit record; run kd"):
        read_commit(folder, SPAN, cache=ID)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_record_is_refused_or_equal(
    record: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, whole = record
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    _is_refused(path, whole[:start] + data.draw(st.binary(max_size=9)) + whole[stop:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '"x"',
        "7",
        '{"digest": "x"}',
        "\0" * 99,
        pytest.param("[" * 99_999, id="deep"),
    ],
)
def test_other_text_in_place_of_a_record_or_the_seal_is_refused(folder: Folder, text: str) -> None:
    for name in (SPAN.commit_name, SEAL):
        folder.publish(name, text.encode())
    with pytest.raises(CorruptError, match=f"{SPAN.commit_name}: "):
        read_commit(folder, SPAN, cache=ID)
    with pytest.raises(CorruptError, match=f"{SEAL}: "):
        read_seal(folder)


def test_a_record_under_the_name_of_another_span_is_refused(folder: Folder) -> None:
    write_commit(folder, COMMIT)
    shutil.copy(folder.path / SPAN.commit_name, folder.path / Span(2, 0).commit_name)
    with pytest.raises(CorruptError, match=r"commits/2-0\.json: the record of span 2-1 of cache"):
        read_commit(folder, Span(2, 0), cache=ID)


def test_a_record_of_another_cache_is_refused(folder: Folder) -> None:
    write_commit(folder, replace(COMMIT, cache="another"))
    with pytest.raises(CorruptError, match="of cache another, expected 2-1 of 5e5e5e5e5e5e; run"):
        read_commit(folder, SPAN, cache=ID)


def test_a_seal_in_place_of_a_record_is_refused(folder: Folder) -> None:
    write_seal(folder, Seal("id", 4, 77, {}, FIDELITY))
    folder.publish(SPAN.commit_name, folder.read(SEAL))
    with pytest.raises(CorruptError, match="is no commit record"):
        read_commit(folder, SPAN, cache=ID)


OBJECT = {"size_bytes": 77, "sha256": "ab" * 32}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache", 7),
        ("cache", None),
        ("tar", "2"),
        ("tar", True),
        ("run", 1.0),
        ("views", 4),
        ("views", [5, 4]),
        ("rows", -1),
        ("rows", 2**70),
        ("unusable", [3, 3]),
        ("unusable", [10]),
        ("unusable", ["3"]),
        ("objects", []),
        ("objects", {"x": 7}),
        ("objects", {"x": OBJECT | {"size_bytes": -1}}),
        ("objects", {"x": OBJECT | {"size_bytes": "77"}}),
        ("objects", {"x": OBJECT | {"sha256": 7}}),
        ("tiles", {"values": []}),
        ("tiles", {"values": [[0, 30]]}),
        ("tiles", {"values": [[0, -30, 0]]}),
        ("tiles", {"values": [[0, 30, "0"]]}),
        ("tiles", {"values": 7}),
        ("layers", ["draw"]),
        ("layers", {"draw": 7}),
        ("fidelity", {}),
        ("fidelity", 7),
        ("versions", {"torch": 2}),
        ("seconds", {"wall": "1"}),
    ],
)
def test_a_record_of_other_types_is_refused(folder: Folder, name: str, value: object) -> None:
    """Such a record was signed: no damage makes it."""
    write_commit(folder, COMMIT)
    body = json.loads(folder.read(SPAN.commit_name))
    body.pop("digest")
    body[name] = value
    body["digest"] = digest(body)
    folder.publish(SPAN.commit_name, json.dumps(body).encode(), replace=True)
    with pytest.raises(CorruptError, match=r"is no commit record; run kdcache repair$"):
        read_commit(folder, SPAN, cache=ID)


def test_a_missing_record_says_to_run_precompute_again(folder: Folder) -> None:
    with pytest.raises(IncompleteError, match="span 2-1 is not computed; run kdcache precompute"):
        read_commit(folder, SPAN, cache=ID)


def test_a_record_is_made_once(folder: Folder) -> None:
    write_commit(folder, COMMIT)
    first = folder.read(SPAN.commit_name)
    write_commit(folder, replace(COMMIT, seconds={"wall": 99.0}))
    assert folder.read(SPAN.commit_name) == first, "equal objects: the first record stays"
    other = replace(COMMIT, objects={"values/c/2/1/0/0": {"size_bytes": 77, "sha256": "cd" * 32}})
    with pytest.raises(MismatchError, match=r"commits/2-1\.json: another process committed"):
        write_commit(folder, other)
    assert folder.read(SPAN.commit_name) == first
    assert folder.names("commits") == ["2-1.json"]


def test_only_records_count_as_committed(folder: Folder) -> None:
    assert committed(folder) == set()
    write_commit(folder, COMMIT)
    for name in (".2-0.json.123.partial", "2-0.json.partial", "x-1.json", "2.json", "-1.json"):
        (folder.path / "commits" / name).write_bytes(b"{}")
    assert committed(folder) == {SPAN}
    grid = Grid(3, 8, 4, 10, 4)
    assert missing(folder, grid) == [span for span in grid.spans() if span != SPAN]


def test_totals_are_the_sums_of_the_records(folder: Folder) -> None:
    grid = Grid(3, 8, 4, 10, 4)
    write_commit(folder, COMMIT)
    write_commit(folder, replace(COMMIT, run=0, unusable=(0, 3)))
    write_commit(folder, replace(COMMIT, tar=0, unusable=()))
    write_commit(folder, replace(COMMIT, tar=9))
    found = summarise(folder, grid, ID)
    assert found.unusable == {2: (0, 3, 9)}
    assert found.size_bytes == 3 * 77, "tar 9 is outside the grid"
    assert found.fidelity == FIDELITY + FIDELITY + FIDELITY


def test_a_seal_is_read_as_it_was_written(folder: Folder) -> None:
    assert read_seal(folder) is None
    for one in (Seal("id", 4, 77, {0: (1, 2), 11: (0,)}, FIDELITY), Seal("x", 8, 0, {}, NO_ROWS)):
        write_seal(folder, one)
        assert read_seal(folder) == one


def test_a_damaged_seal_is_refused(folder: Folder) -> None:
    write_seal(folder, Seal("id", 4, 77, {0: (1, 2)}, FIDELITY))
    body = json.loads(folder.read(SEAL))
    body["unusable"]["0"] = [1]
    (folder.path / SEAL).write_text(json.dumps(body))
    with pytest.raises(CorruptError, match=r"seal\.json"):
        read_seal(folder)


@pytest.mark.parametrize("change", [{"views": 8}, {"cache": "another"}])
def test_a_stale_seal_is_ignored(cache: Cache, change: dict[str, object]) -> None:
    truth = cache.totals()
    wrong = replace(truth, size_bytes=1, unusable={0: (0,)})
    write_seal(cache.folder, wrong)
    assert cache.totals() == wrong, "a seal that fits is believed"
    write_seal(cache.folder, replace(wrong, **change))
    assert cache.totals() == truth


def test_an_incomplete_cache_is_not_sealed(cache: Cache) -> None:
    (cache.path / SEAL).unlink()
    (cache.path / Span(1, 1).commit_name).unlink()
    with pytest.raises(IncompleteError, match="1 spans are missing, the first is 1-1"):
        seal(cache)
    assert read_seal(cache.folder) is None
