"""Claims about a new cache: the arrays of the format, made whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from kdcache import __version__
from kdcache.cache.audit import check_objects
from kdcache.cache.create import create_cache
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.zarr_path import read_by_zarr
from kdcache.errors import CorruptError, KdcacheError, UsageError
from kdcache.identity import FORMAT_NEEDS, FORMAT_VERSION, digest
from tests import tiny
from tests.cache.filling import empty, full

LZ4 = ("lz4", "bitshuffle")
ZSTD = ("zstd", "bitshuffle")
ZSTD_BYTES = ("zstd", "shuffle")
ZSTD_PLAIN = ("zstd", "noshuffle")
# Arrays of each encoding of C classes: width, dtype, fill and compression; docs/format.md.
FORMATS: dict[tuple[str, int], dict[str, tuple[int, str, float | str, tuple[str, str]]]] = {
    ("topk:3", 5): {
        "indices": (3, "uint16", 65535, LZ4),
        "values": (3, "uint8", 255, ZSTD),
        "tails": (3, "float16", "NaN", ZSTD_BYTES),
    },
    ("topk:5", 65_535): {
        "indices": (5, "uint16", 65535, LZ4),
        "values": (5, "uint8", 255, ZSTD),
        "tails": (3, "float16", "NaN", ZSTD_BYTES),
    },
    ("topk:5", 65_536): {
        "indices": (5, "uint32", 2**32 - 1, LZ4),
        "values": (5, "uint8", 255, ZSTD),
        "tails": (3, "float16", "NaN", ZSTD_BYTES),
    },
    ("packed:3", 5): {
        "gaps": (3, "uint16", 0, ZSTD_BYTES),
        "codes": (3, "uint8", 255, LZ4),
        "tails": (3, "uint8", 255, LZ4),
    },
    ("packed:5", 65_536): {
        "gaps": (5, "uint16", 0, ZSTD_BYTES),
        "codes": (5, "uint8", 255, LZ4),
        "tails": (3, "uint8", 255, LZ4),
    },
    ("packed:5", 65_537): {
        "gaps": (5, "uint32", 0, ZSTD_BYTES),
        "codes": (5, "uint8", 255, LZ4),
        "tails": (3, "uint8", 255, LZ4),
    },
    ("adaptive:0.1", 200): {
        "gaps": (128, "uint16", 0, ZSTD_BYTES),
        "codes": (128, "uint8", 255, LZ4),
        "tails": (3, "uint8", 255, LZ4),
        "counts": (1, "uint8", 0, ZSTD_PLAIN),
    },
    ("dense:f2", 5): {"logits": (5, "float16", "NaN", ZSTD_BYTES)},
    ("dense:u1", 5): {
        "codes": (5, "uint8", 255, ZSTD),
        "ranges": (1, "float32", "NaN", ZSTD_BYTES),
    },
}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
CRC = {"name": "crc32c"}


def metadata(path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / name / "zarr.json").read_text())
    return found


@pytest.mark.parametrize(("encoding", "num_classes"), FORMATS)
def test_target_arrays_are_those_of_the_format(
    tmp_path: Path, encoding: str, num_classes: int
) -> None:
    path = empty(
        tmp_path / "c", encoding=encoding, num_classes=num_classes, num_views=12, span_views=None
    ).cache.path
    arrays = FORMATS[encoding, num_classes]
    others = {"witness", "uids", "contents", "rows"}
    assert {p.parent.name for p in path.glob("*/zarr.json")} == arrays.keys() | others
    for name, (width, dtype, fill, (compressor, shuffle)) in arrays.items():
        found = metadata(path, name)
        assert (found["zarr_format"], found["node_type"]) == (3, "array")
        assert (found["data_type"], found["fill_value"]) == (dtype, fill)
        ragged = "counts" in arrays and name in ("gaps", "codes")
        rows = [9 * width] if ragged else [9, width]
        assert found["shape"] == [3, 12, *rows]
        assert found["chunk_grid"]["configuration"]["chunk_shape"] == [1, 6, *rows]
        (shard,) = found["codecs"]
        assert shard["name"] == "sharding_indexed"
        inside = shard["configuration"]
        assert inside["chunk_shape"] == [1, 1, *rows]
        assert (inside["index_codecs"], inside["index_location"]) == ([LITTLE, CRC], "end")
        to_bytes, blosc, checksum = inside["codecs"]
        assert to_bytes == (LITTLE if dtype != "uint8" else {"name": "bytes"})
        assert checksum == CRC
        assert blosc["name"] == "blosc"
        typesize = int(dtype.lstrip("uintfloa")) // 8
        expected = {"cname": compressor, "shuffle": shuffle, "typesize": typesize}
        assert blosc["configuration"].items() >= expected.items()


def test_witness_and_sample_arrays_are_those_of_the_format(tmp_path: Path) -> None:
    path = empty(tmp_path / "c", num_views=12, span_views=4).cache.path
    expected = {  # 9 rows in blocks of 4 are 3 blocks
        "witness": ("uint64", [3, 12, 3], [1, 4, 3]),
        "uids": ("uint64", [3, 9], [1, 9]),
        "contents": ("uint64", [3, 9], [1, 9]),
        "rows": ("uint32", [3], [3]),
    }
    for name, (dtype, shape, chunk) in expected.items():
        found = metadata(path, name)
        assert (found["data_type"], found["shape"], found["fill_value"]) == (dtype, shape, 0)
        assert found["chunk_grid"]["configuration"]["chunk_shape"] == chunk
        assert found["codecs"] == [LITTLE, CRC]


def test_sample_names_and_counts_are_read_back(tmp_path: Path) -> None:
    cache = empty(tmp_path / "c", rows=(6, 1, 9)).cache
    assert cache.rows.tolist() == [6, 1, 9]
    uids = [cache.uids(tar) for tar in range(3)]
    assert np.concatenate(uids).tolist() == list(range(1, 17))
    assert [len(part) for part in uids] == [6, 1, 9]
    for tar in range(3):
        np.testing.assert_array_equal(cache.contents(tar), ~uids[tar])


def test_root_attributes_hold_ids_and_text(tmp_path: Path) -> None:
    cache = empty(tmp_path / "c").cache
    attributes = json.loads((cache.path / "zarr.json").read_text())["attributes"]["kdcache"]
    assert (attributes["format"], attributes["needs"]) == (FORMAT_VERSION, FORMAT_NEEDS)
    assert (attributes["id"], attributes["encoding"]) == (cache.info.id, "topk:3")
    assert attributes["recipe"] == tiny.make_recipe(block=4).canonical()
    assert attributes["grid"] == {"views": 4, "span_views": 2, "max_rows": 9}
    assert attributes.pop("digest") == digest(attributes)
    assert open_cache(cache.path).info == cache.info


@pytest.mark.parametrize(("encoding", "num_classes"), FORMATS)
def test_expected_metadata_are_the_written_ones(
    tmp_path: Path, encoding: str, num_classes: int
) -> None:
    cache = empty(tmp_path / "c", encoding=encoding, num_classes=num_classes).cache
    expected = cache.array_metadata()
    assert {path.parent.name for path in cache.path.glob("*/zarr.json")} == expected.keys()
    for name, found in expected.items():
        assert metadata(cache.path, name) == found


def test_creation_leaves_nothing_beside_the_cache(tmp_path: Path) -> None:
    empty(tmp_path / "deep" / "er" / "c")
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["c"]


def test_a_path_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"c: cannot create the cache: Directory not empty"):
        empty(tmp_path / "c")
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UsageError, match="cannot create the cache"):
        empty(tmp_path / "f")
    with pytest.raises(UsageError, match="cannot create the cache"):
        empty(tmp_path / "f" / "below")
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert names == ["c", "c/notes.txt", "f"]


def test_views_that_do_not_fill_spans_create_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 views in spans of 2"):
        empty(tmp_path / "c", num_views=5, span_views=2)
    assert list(tmp_path.iterdir()) == []


def _edit(path: Path, **changes: Any) -> None:
    """Change attributes as another writer would, their digest right."""
    document = json.loads((path / "zarr.json").read_text())
    body = document["attributes"]["kdcache"]
    body.update(changes)
    del body["digest"]
    body["digest"] = digest(body)
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_refused(tmp_path: Path, version: object) -> None:
    path = empty(tmp_path / "c").cache.path
    _edit(path, format=version)
    with pytest.raises(UsageError, match=f"format {version}, this kdcache {__version__} reads 1"):
        open_cache(path)


def test_a_newer_format_names_the_kdcache_that_reads_it(tmp_path: Path) -> None:
    """Whatever else it changed, its digest too."""
    path = empty(tmp_path / "c").cache.path
    body = {"format": 2, "needs": "0.9", "what": ["is", "not", "known"]}
    (path / "zarr.json").write_text(json.dumps({"attributes": {"kdcache": body}}))
    with pytest.raises(UsageError, match=r"cache format 2, .* install kdcache 0\.9 or newer"):
        open_cache(path)


def test_attributes_that_are_not_known_survive_sealing(tmp_path: Path) -> None:
    """Ours of a later kdcache, and those of others beside them."""
    filled = full(tmp_path / "c")
    document = json.loads((filled.cache.path / "zarr.json").read_text())
    document["attributes"] = {"before": 1, **document["attributes"], "other": {"deep": [None]}}
    (filled.cache.path / "zarr.json").write_text(json.dumps(document))
    _edit(filled.cache.path, later={"x": 1.5}, sooner=None)
    before = open_cache(filled.cache.path)
    assert before.info.unknown == {"later": {"x": 1.5}, "sooner": None}
    assert before.info.id == filled.cache.info.id
    attributes = before.attributes()
    seal(before)
    after = open_cache(filled.cache.path)
    assert list(check_objects(after)) == []
    assert after.attributes() == attributes
    assert list(after.attributes()) == ["before", "kdcache", "other"]
    assert after.info == before.info
    assert after.info.attributes(after.grid) == attributes["kdcache"]
    filled.check_all(after)


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "topk:2"},
        {"encoding": "topk:9"},
        {"encoding": "adaptive:2"},
        {"encoding": None},
        {"teacher": {"id": "other"}},
        {"teacher": {}},
        {"dataset": []},
        {"recipe": {}},
        {"recipe": None},
        {"num_classes": None},
        {"num_classes": 2},
        {"classes": 3},
        {"grid": None},
        {"grid": {}},
    ],
)
def test_attributes_that_do_not_give_their_id_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = empty(tmp_path / "c").cache.path
    _edit(path, **change)
    with pytest.raises(CorruptError, match=r"c/zarr\.json: "):
        open_cache(path)


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no cache here; make one with kdcache precompute"):
        open_cache(tmp_path / "none")
    with pytest.raises(UsageError, match="no cache here"):
        open_cache(tmp_path)
    zarr.create_group(tmp_path / "foreign", attributes={"answer": 42})
    with pytest.raises(UsageError, match="a Zarr group, but no kdcache cache"):
        open_cache(tmp_path / "foreign")
    zarr.create_array(tmp_path / "array", shape=(1,), dtype="u1")
    with pytest.raises(KdcacheError, match="array"):
        open_cache(tmp_path / "array")


def test_a_pipeline_of_zarr_that_skips_checksums_is_refused_where_zarr_is_used(
    cache: Cache,
) -> None:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        again = open_cache(cache.path)
        assert again.read_tile(0, 0).usable.all()
        with pytest.raises(UsageError, match=r"skips checksums.*unset codec_pipeline"):
            read_by_zarr(again, 0, 0)
        with pytest.raises(UsageError, match="skips checksums"):
            list(check_objects(again))


def test_nan_is_the_fill_of_floats(tmp_path: Path) -> None:
    cache = empty(tmp_path / "c", encoding="dense:u1").cache
    array = zarr.open_array(cache.path / "ranges", mode="r")
    assert math.isnan(array.fill_value)


def test_a_tar_has_as_many_contents_as_uids(tmp_path: Path) -> None:
    names = np.arange(3, dtype=np.uint64)
    with pytest.raises(ValueError, match="could not broadcast"):
        create_cache(
            tmp_path / "c",
            tiny.make_info(5, "topk:3", uids=[names], contents=[names]),
            num_views=1,
            uids=[names],
            contents=[np.arange(4, dtype=np.uint64)],
        )
    assert list(tmp_path.iterdir()) == []
