"""Claims about targets on disk: what is read is what was written, or an error that says so."""

import shutil
import struct
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.audit import check_objects
from kdcache.cache.layout import Span, object_names
from kdcache.cache.sealing import seal
from kdcache.cache.shard import decode_tile, encode_tile
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, IncompleteError, KdcacheError
from kdcache.targets.encoding import parse_encoding, to_arrays
from kdcache.targets.fidelity import NO_ROWS
from kdcache.targets.packed import from_stored, to_stored
from tests.cache.filling import Filled, empty, full
from tests.tiny import tree

ENCODINGS = [("topk:1", 5), ("topk:3", 5), ("topk:5", 5), ("dense:f2", 5), ("dense:u1", 5)]
ENCODINGS += [("packed:1", 5), ("packed:3", 5), ("packed:5", 5)]
ENCODINGS += [("adaptive:0.1", 5), ("adaptive:1.0", 5)]


@pytest.fixture(scope="module", params=["topk:3", "packed:3", "dense:f2", "dense:u1"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A complete cache with an unusable row in the first tar; tests damage copies of it."""
    path = tmp_path_factory.mktemp("original") / "cache"
    return full(path, encoding=request.param, unusable={0: (2,)})


@pytest.fixture
def damaged(original: Filled, tmp_path: Path) -> Path:
    """The path of a copy of the original."""
    return Path(shutil.copytree(original.cache.path, tmp_path / "copy"))


# --- round trips ---------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    encoding=st.sampled_from([*ENCODINGS, ("topk:2", 70_000), ("packed:2", 70_000)]),
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    runs=st.integers(1, 2),
    span_views=st.integers(1, 3),
    data=st.data(),
)
def test_every_tile_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    encoding: tuple[str, int],
    rows: list[int],
    runs: int,
    span_views: int,
    data: st.DataObject,
) -> None:
    unusable = {
        tar: tuple(sorted(data.draw(st.sets(st.integers(0, count - 1)))))
        for tar, count in enumerate(rows)
    }
    filled = full(
        tmp_path_factory.mktemp("trip") / "cache",
        encoding=encoding[0],
        num_classes=encoding[1],
        rows=rows,
        unusable=unusable,
        num_views=runs * span_views,
        span_views=span_views,
    )
    again = open_cache(filled.cache.path)
    assert (again.info, again.grid) == (filled.cache.info, filled.cache.grid)
    assert again.missing() == []
    filled.check_all(again)
    assert again.totals().unusable == {tar: bad for tar, bad in unusable.items() if bad}
    for span in again.grid.spans():
        commit = again.commit(span)
        assert commit.unusable == unusable[span.tar]
        assert commit.views == tuple(again.grid.views(span))
        assert commit.objects == {
            name: again.folder.digest(name)
            for name in object_names(span, again.info.specs).values()
        }


def test_spans_may_be_written_in_any_order(tmp_path: Path) -> None:
    forward = full(tmp_path / "forward")
    backward = empty(tmp_path / "backward")
    for span in reversed(list(backward.cache.grid.spans())):
        backward.write(span)
    assert tree(forward.cache.path) == tree(backward.cache.path)


def test_a_span_written_again_is_the_same_bytes(tmp_path: Path) -> None:
    filled = full(tmp_path / "c")
    before, span = tree(filled.cache.path), Span(1, 0)
    leftover = filled.cache.path / "values/c/1/0/0/0.0123abcd.partial"
    leftover.write_bytes(b"cut")
    commit = filled.cache.commit(span)
    assert filled.write(span).objects == commit.objects
    assert tree(filled.cache.path) == before


def _inner_chunks(path: Path, count: int) -> list[bytes]:
    """Read a shard by the format's text: an index of offsets and lengths at the end, checksums."""
    data = path.read_bytes()
    index, check = data[-16 * count - 4 : -4], data[-4:]
    assert crc32c(index) == struct.unpack("<I", check)[0]
    chunks = []
    for offset, length in struct.iter_unpack("<QQ", index):
        chunk = data[offset : offset + length]
        assert crc32c(chunk[:-4]) == struct.unpack("<I", chunk[-4:])[0]
        chunks.append(chunk[:-4])
    return chunks


def test_objects_can_be_read_by_hand(original: Filled) -> None:
    cache = original.cache
    for span in cache.grid.spans():
        *shards, witness = (cache.path / name for name in _names(original, span))
        rows = int(cache.rows[span.tar])
        for spec, shard in zip(cache.info.specs, shards, strict=True):
            chunks = _inner_chunks(shard, cache.grid.span_views)
            for view, chunk in zip(cache.grid.views(span), chunks, strict=True):
                plain = numcodecs.blosc.decompress(chunk)
                array = np.frombuffer(plain, np.dtype(spec.dtype).newbyteorder("<"))
                array = array.reshape(cache.grid.max_rows, spec.width)
                written = original.fields[span.tar, view][spec.name]
                np.testing.assert_array_equal(array[:rows], written)
                expected = np.full_like(array[rows:], spec.fill)
                np.testing.assert_array_equal(array[rows:], expected)
        raw = witness.read_bytes()
        assert crc32c(raw[:-4]) == struct.unpack("<I", raw[-4:])[0]
        stored = np.frombuffer(raw[:-4], "<u8").reshape(cache.grid.span_views, -1)
        for view, found in zip(cache.grid.views(span), stored, strict=True):
            written = original.witness[span.tar, view]
            assert found[: len(written)].tolist() == written.tolist()
            assert not found[len(written) :].any()


def test_plain_zarr_reads_the_sealed_cache(cache: Cache) -> None:
    seal(cache)
    group = zarr.open_group(cache.path, mode="r")
    assert group.metadata.consolidated_metadata is not None
    tile = cache.read_tile(1, 3)
    for name, field in tile.fields.items():
        np.testing.assert_array_equal(group[name][1, 3].astype(field.numpy().dtype), field.numpy())


# --- what is not there ---------------------------------------------------------------------


def test_a_tile_without_commit_record_is_incomplete(original: Filled, damaged: Path) -> None:
    (damaged / Span(0, 1).commit_name).unlink()
    cache = open_cache(damaged)
    assert cache.missing() == [Span(0, 1)]
    for read in (cache.read_tile, cache.read_witness):
        for view in (2, 3):
            with pytest.raises(IncompleteError, match="span 0-1 is not computed"):
                read(0, view)
    original.check(cache, 0, 1)
    original.check(cache, 1, 2)


@pytest.mark.parametrize(("tar", "view"), [(0, 4), (0, -1), (3, 0), (-1, 0)])
def test_a_tile_outside_the_grid_is_incomplete(original: Filled, tar: int, view: int) -> None:
    for read in (original.cache.read_tile, original.cache.read_witness):
        with pytest.raises(IncompleteError):
            read(tar, view)


# --- damage --------------------------------------------------------------------------------


def _names(filled: Filled, span: Span) -> list[str]:
    return list(object_names(span, filled.cache.info.specs).values())


def _read(cache: Cache, name: str, view: int) -> None:
    """Read what an object of the last tar is part of."""
    if name.startswith("witness/"):
        cache.read_witness(2, view)
    else:
        cache.read_tile(2, view)


def _refuses(filled: Filled, cache: Cache, span: Span) -> bool:
    """Read a span's tiles: each is refused or right; returns whether any is refused."""
    messages = []
    for view in cache.grid.views(span):
        try:
            filled.check(cache, span.tar, view)
        except CorruptError as error:
            messages.append(str(error))
    assert all(str(cache.path) in message for message in messages)
    return bool(messages)


def test_a_deleted_object_is_found(original: Filled, damaged: Path) -> None:
    span = Span(2, 1)
    for name in _names(original, span):
        data = (damaged / name).read_bytes()
        (damaged / name).unlink()
        cache = open_cache(damaged)
        for view in cache.grid.views(span):
            with pytest.raises(CorruptError, match=f"{name}: missing; run kdcache repair"):
                _read(cache, name, view)
        (damaged / name).write_bytes(data)
    original.check_all(open_cache(damaged))


def test_a_cut_or_longer_object_is_found(original: Filled, damaged: Path) -> None:
    span = Span(2, 0)
    warm = open_cache(damaged)
    original.check_all(warm)
    for name in _names(original, span):
        data = (damaged / name).read_bytes()
        cuts = {0, 1, 4, 20, len(data) // 2, len(data) - 4, len(data) - 1}
        for other in [*(data[:cut] for cut in cuts), data + b"\0", data + data]:
            (damaged / name).write_bytes(other)
            assert _refuses(original, open_cache(damaged), span), (name, len(other))
            _refuses(original, warm, span)
        (damaged / name).write_bytes(data)
    original.check_all(warm)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_an_object_is_found(original: Filled, data: st.DataObject) -> None:
    """By a cache that is opened, and by one in use, which needs indices and witnesses once."""
    path = original.cache.path
    span = data.draw(st.sampled_from(list(original.cache.grid.spans())))
    array = data.draw(st.sampled_from([*(s.name for s in original.cache.info.specs), "witness"]))
    name = path / object_names(span, original.cache.info.specs)[array]
    whole = name.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    warm = open_cache(path)
    original.check_all(warm)
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        name.write_bytes(flipped)
        assert _refuses(original, open_cache(path), span)
        last = original.cache.commit(span).tiles[array][-1]
        needed = array != "witness" and bit // 8 < last.offset + last.size_bytes
        assert _refuses(original, warm, span) == needed
    finally:
        name.write_bytes(whole)


def test_an_object_of_another_span_is_found(original: Filled, damaged: Path) -> None:
    """Such an object is sound in itself: shapes and checksums agree."""
    span = Span(2, 0)
    for other in (Span(2, 1), Span(0, 0)):
        for mine, theirs in zip(_names(original, span), _names(original, other), strict=True):
            data = (damaged / mine).read_bytes()
            shutil.copy(original.cache.path / theirs, damaged / mine)
            with pytest.raises(CorruptError, match=mine):
                _read(open_cache(damaged), mine, 0)
            (damaged / mine).write_bytes(data)


def test_all_objects_of_another_span_are_found(original: Filled, damaged: Path) -> None:
    for mine, theirs in zip(
        _names(original, Span(2, 0)), _names(original, Span(2, 1)), strict=True
    ):
        shutil.copy(original.cache.path / theirs, damaged / mine)
    with pytest.raises(CorruptError):
        open_cache(damaged).read_tile(2, 0)


def test_damaged_sample_arrays_do_not_pass(original: Filled, damaged: Path) -> None:
    for name in ("rows/c/0", "uids/c/2/0", "contents/c/2/0"):
        data = (damaged / name).read_bytes()
        for other in (data[:-1], b"", data[:3] + bytes([data[3] ^ 16]) + data[4:], None):
            (damaged / name).unlink()
            if other is not None:
                (damaged / name).write_bytes(other)
            with pytest.raises(CorruptError):
                _read_all(damaged)
        (damaged / name).write_bytes(data)
    _read_all(damaged)


def _read_all(path: Path) -> None:
    cache = open_cache(path)
    for tar in range(cache.grid.num_tars):
        cache.read_tile(tar, 0)
        cache.uids(tar)
        cache.contents(tar)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_metadata_are_refused_or_change_no_target(
    original: Filled, data: st.DataObject
) -> None:
    path = original.cache.path
    name = data.draw(st.sampled_from(sorted(p.parent.name for p in path.glob("*/zarr.json"))))
    file = path / name / "zarr.json" if data.draw(st.booleans()) else path / "zarr.json"
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + 1 :]
    try:
        file.write_bytes(changed)
        cache = open_cache(path)
        assert cache.info.id == original.cache.info.id
        original.check_all(cache)
    except KdcacheError:
        pass
    finally:
        file.write_bytes(whole)


def test_a_missing_array_is_named(damaged: Path, original: Filled) -> None:
    name = original.cache.info.specs[-1].name
    shutil.rmtree(damaged / name)
    with pytest.raises(CorruptError, match=name):
        _read_all(damaged)


# --- classes -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["topk:3", "packed:3", "adaptive:0.1"])
def test_a_class_beyond_the_last_is_found(tmp_path: Path, encoding: str) -> None:
    """All digests are right, as where another writer has a bug."""
    options: dict[str, Any] = {"rows": (4,), "num_views": 1, "span_views": 1}
    filled = empty(tmp_path / "c", encoding=encoding, num_classes=5, **options)
    views = {name: array[None].copy() for name, array in _encoded(filled.cache, rows=4).items()}
    views["indices" if "indices" in views else "gaps"][0, 3, 0] = 5
    filled.cache.write_span(
        Span(0, 0),
        views,
        witnesses=[np.ones((1, 1), np.uint64)],
        layers={},
        fidelity=NO_ROWS,
        versions={},
        started=0.0,
    )
    cache = open_cache(tmp_path / "c")
    seal(cache)
    (finding,) = check_objects(cache)
    assert (finding.where, finding.span) == ("tar 0, view 0", Span(0, 0))
    assert finding.problem == "names classes that the teacher has not"


def _encoded(cache: Cache, *, rows: int) -> dict[str, Any]:
    logits = torch.arange(rows * 5).reshape(rows, 5) % 7 / 2
    return to_arrays(cache.info.encoding.encode(logits), cache.info.specs)


def test_seventy_thousand_classes_are_kept(tmp_path: Path) -> None:
    filled = full(tmp_path / "c", encoding="topk:4", num_classes=70_000, rows=(3,), num_views=2)
    assert {a["indices"].dtype.str for a in filled.fields.values()} == {"<u4"}
    assert max(a["indices"].max() for a in filled.fields.values()) > 65_535
    filled.check_all(open_cache(tmp_path / "c"))
    assert str(filled.cache.info.encoding) == str(parse_encoding("topk:4", 70_000))


@pytest.mark.parametrize("encoding", ["packed:3", "dense:f2"])
def test_a_chunk_of_another_length_is_refused(encoding: str) -> None:
    """Decompressing it would leave memory as it was."""
    parsed = parse_encoding(encoding, 10)
    specs = parsed.specs(10)
    rows = to_arrays(parsed.encode(torch.randn(4, 10)), specs)
    chunks = encode_tile(rows, specs, num_rows=4)
    for spec in specs:
        for num_rows in (3, 5):
            other = encode_tile({n: a[:3] for n, a in rows.items()}, specs, num_rows=num_rows)
            mixed = {**chunks, spec.name: other[spec.name]}
            with pytest.raises(CorruptError, match=f"here: {spec.name} is damaged"):
                decode_tile(mixed, specs, num_rows=4, max_rows=4, where="here")


def test_a_row_of_more_entries_than_are_kept_is_refused() -> None:
    parsed = parse_encoding("adaptive:0.1", 10)
    specs = parsed.specs(10)
    stored = to_stored(to_arrays(parsed.encode(torch.randn(4, 10)), specs), specs, num_rows=4)
    stored["counts"][2] = 11
    with pytest.raises(ValueError, match="a row of 11 entries, at most 10 are kept"):
        from_stored(stored, specs, num_rows=4)
