"""The cache benchmark runs end to end, and counts and compares what it says."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.layout import Span
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError
from pipelines.bench.encodings import OTHERS, RIVALS, WITH_BARS, stored
from pipelines.bench.filled import (
    DEFAULT,
    FULL,
    QUICK,
    SPAN_VIEWS,
    Targets,
    empty_cache,
    encode,
    fill_span,
    filled_cache,
    sealed_empty,
)
from pipelines.bench.logits import KINDS, simulate_logits
from pipelines.bench.record import Record
from pipelines.bench.stores import NpyFiles, Pickles, Records, TorchFiles, ZarrArrays, entries
from pipelines.bench.tiles import BARS, OTHER_ENCODINGS, Reader, check_readers
from pipelines.bench.watch import resident_bytes, watch_opening, watch_reading
from pipelines.bench.writing import Writer, written_bytes

ROOT = Path(__file__).parents[2]
NUM_ROWS = 16

# --- a short trial, through everything -----------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a short trial, as `make bench-cache ARGS=--quick` runs it."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "pipelines.bench.cache", "--quick", "--out", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "packed_32_bytes" in done.stdout
    assert "a_tile_of_1024" in done.stdout
    return Record.model_validate_json((out / "cache.json").read_text())


def test_a_trial_has_every_bar_and_says_that_it_is_one(quick: Record) -> None:
    assert [bar.name for bar in quick.bars] == [
        *(
            f"{name}_bytes"
            for name in ("packed_32", "adaptive_0.0022", "packed_10", "adaptive_0.01")
        ),
        *(f"{name}_error_t{t}" for name in ("packed_32", "adaptive_0.0022") for t in (1, 2)),
        "packed_10_error_t1",
        "adaptive_0.01_error_t1",
        *(f"adaptive_0.0022_{what}_vs_packed_32" for what in ("bytes", "error_t1", "error_t2")),
        *(f"adaptive_0.01_{what}_vs_packed_10" for what in ("bytes", "error_t1")),
        *(f"tile_read_vs_{name}_1024" for name in BARS),
        "tile_read_vs_np_load_8192",
        "memory_growth_while_reading",
        "open_ms",
        "open_memory",
        "write_per_core",
        "write_amplification",
    ]
    assert quick.figures["quick"] is True
    assert quick.name == "cache"
    assert {"python", "numpy", "numcodecs", "torch", "zarr"} <= quick.versions.keys()


def test_a_trial_tells_of_every_encoding_of_every_kind(quick: Record) -> None:
    for kind in KINDS:
        table = quick.figures[f"a_view_of_{kind}"]
        assert list(table) == [*WITH_BARS, *OTHERS]
        assert (
            table["packed:10"]["bytes"] < table["packed:32"]["bytes"] < table["dense:f2"]["bytes"]
        )
        assert table["packed:10"]["error_t1"] > table["packed:32"]["error_t1"] > 0
        assert table["dense:f2"]["kl_t1"] < 1e-5
        assert table["dense:f2"]["top1"] == 1


def test_costs_of_a_trial_are_those_of_work_that_was_done(quick: Record) -> None:
    tiles = quick.figures["a_tile_of_1024"]
    others = {f"kdcache_{name.replace(':', '_')}" for name in OTHER_ENCODINGS}
    assert {"kdcache", "kdcache_entries", "kdcache_first_reading", *others, *BARS} <= tiles.keys()
    for costs in tiles.values():
        assert costs["wall_us"] > 1
        assert costs["cpu_us"] > 1
    assert quick.figures["memory_while_reading"]["tiles"] == QUICK.read_tiles
    assert quick.figures["writing_spans"]["zarr"]["bytes_written_per_byte"] >= 1
    assert all(row["cpu_us"] > 0 for row in quick.figures["encoding_a_view"].values())
    many, few = QUICK.opened_views
    assert {f"{many}_views", f"{few}_views", "times_as_long"} == quick.figures["opening"].keys()


def test_a_full_run_is_of_the_sizes_that_its_bars_name() -> None:
    assert (FULL.rows, FULL.large_rows, FULL.tars, FULL.opened_views[0]) == (1024, 8192, 1281, 300)
    assert FULL.rounds >= 5
    assert FULL.read_tiles == 200
    assert {*FULL.kind_rows, "ce"} == {*QUICK.kind_rows, "ce"} == set(KINDS)
    assert {*RIVALS, *(rival for rival, _ in RIVALS.values())} == set(WITH_BARS)


# --- bytes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def targets() -> Targets:
    """Targets of the default encoding, eight tiles of them."""
    return encode(DEFAULT, simulate_logits("ce", num_rows=SPAN_VIEWS * NUM_ROWS))


def test_bytes_of_a_view_are_those_of_its_files(tmp_path: Path, targets: Targets) -> None:
    found = stored(tmp_path, targets, num_rows=NUM_ROWS)
    cache = filled_cache(tmp_path / "cache", targets, num_rows=NUM_ROWS, num_views=SPAN_VIEWS)
    names = [spec.name for spec in cache.info.specs]
    files = [path for name in names for path in (cache.path / name / "c").rglob("*")]
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert found.bytes_per_view == size / (SPAN_VIEWS * NUM_ROWS)
    assert found.error(1) == targets.fidelity.summary()["gradient_error"]["1"]


@pytest.mark.parametrize("num_rows", [NUM_ROWS, 4 * NUM_ROWS])
def test_no_two_tiles_are_alike(targets: Targets, num_rows: int) -> None:
    tiles = targets.tiles(num_rows)
    assert tiles["gaps"].shape == (SPAN_VIEWS, num_rows, 32)
    assert len({tile.tobytes() for tile in tiles["gaps"]}) == SPAN_VIEWS


def test_what_is_written_is_counted_once(tmp_path: Path, targets: Targets) -> None:
    before = written_bytes()
    (tmp_path / "file").write_bytes(b"x" * 12_345)
    assert written_bytes() - before == 12_345


def test_both_writers_write_the_same_objects(tmp_path: Path, targets: Targets) -> None:
    tiles = targets.tiles(NUM_ROWS)
    caches = {}
    for name in ("ours", "zarr"):
        caches[name] = empty_cache(
            tmp_path / name, DEFAULT, rows=[NUM_ROWS], num_views=32, span_views=SPAN_VIEWS
        )
        writer = Writer(caches[name], tiles, spans=2)
        for number in range(2):
            assert getattr(writer, name)(number) == 2 * SPAN_VIEWS * NUM_ROWS
        assert len(writer.written) == 2
    for array in tiles:
        for run in range(4):
            name = f"{array}/c/0/{run}/0/0"
            written = [(cache.path / name).read_bytes() for cache in caches.values()]
            assert written[0] == written[1]


# --- readers -------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, targets: Targets) -> Cache:
    """A full cache of one tar and eight views."""
    return filled_cache(tmp_path / "cache", targets, num_rows=NUM_ROWS, num_views=SPAN_VIEWS)


def test_entries_are_the_decoded_target(cache: Cache) -> None:
    tile = cache.read_tile(0, 3)
    classes_NK, below_NK = entries(tile)
    target = cache.info.encoding.decode(tile.fields, num_classes=1000, temperature=1.0)
    assert target.indices_NK is not None
    np.testing.assert_array_equal(classes_NK, target.indices_NK.numpy())
    log_probs_NK = target.log_probs_NK.numpy()
    expected = log_probs_NK.max(1, keepdims=True) - log_probs_NK
    np.testing.assert_allclose(below_NK, expected, rtol=1e-3, atol=1e-5)


def test_every_store_gives_the_arrays_of_the_cache(cache: Cache, tmp_path: Path) -> None:
    views = range(SPAN_VIEWS)
    held = [entries(cache.read_tile(0, view)) for view in views]
    records = Records(tmp_path / "records", held)
    readers = {
        "npy": Reader(NpyFiles(tmp_path / "npy", cache, views=views).read, 1),
        "zarr": Reader(ZarrArrays(cache).read, 1),
        "pickles": Reader(Pickles(tmp_path / "pickles", held).read, 1),
        "torch": Reader(TorchFiles(tmp_path / "torch", held).read, 1),
        "records": Reader(records.read, 1),
    }
    check_readers(readers, cache)
    for name, reader in readers.items():
        other = Reader(lambda view, reader=reader: reader.read(view ^ 1), 1)
        with pytest.raises(AssertionError, match=name):
            check_readers({name: other}, cache)
    records.close()


def test_work_counts_the_rows_that_it_read(cache: Cache) -> None:
    asked: list[int] = []
    cost = Reader(asked.append, 20).work(NUM_ROWS)(0)
    assert asked == [*range(8), *range(8), *range(4)]
    assert 0 < cost.wall_s < 1


# --- memory and opening --------------------------------------------------------------------


def test_an_empty_cache_of_any_extent_opens_as_complete(tmp_path: Path) -> None:
    cache = sealed_empty(tmp_path / "cache", num_tars=3, num_views=12)
    assert len(cache.rows) == 3
    assert watch_opening(cache.path)["ms"] > 0


def test_resident_memory_is_seen_to_grow() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 2**26) as held:  # from the system: an allocator might hold such pages
        held.write(b"\1" * len(held))
        assert resident_bytes() - before > len(held) / 2


def test_every_tile_is_read_while_memory_is_watched(tmp_path: Path, targets: Targets) -> None:
    cache = filled_cache(tmp_path / "cache", targets, num_rows=NUM_ROWS, num_views=16)
    found = watch_reading(cache.path, tiles=16)
    assert found["tile_mb"] == NUM_ROWS * (2 * 32 + 32 + 3) / 1e6
    last = [cache.path / name / "c/0/1/0/0" for name in ("gaps", "codes", "tails")]
    for path in last:
        path.unlink()
    with pytest.raises(CorruptError, match="missing"):
        watch_reading(cache.path, tiles=16)


def test_a_filled_span_holds_what_was_encoded(tmp_path: Path, targets: Targets) -> None:
    cache = empty_cache(tmp_path / "cache", DEFAULT, rows=[NUM_ROWS], num_views=SPAN_VIEWS)
    tiles = targets.tiles(NUM_ROWS)
    fill_span(cache, Span(0, 0), tiles)
    for view in range(SPAN_VIEWS):
        for name, tensor in cache.read_tile(0, view).fields.items():
            np.testing.assert_array_equal(tensor.numpy(), tiles[name][view])


def test_make_runs_the_benchmark() -> None:
    for words in (["bench-cache"], ["bench"]):
        done = subprocess.run(
            ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "-m pipelines.bench.cache" in done.stdout
