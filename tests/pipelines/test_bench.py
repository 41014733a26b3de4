"""The benchmarks run end to end, say what they found, and measure what they say."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.bench import photos
from pipelines.bench.material import FULL, QUICK, Material
from pipelines.bench.peers import PeerError, run_peer
from pipelines.bench.photos import SETS, make_photos, photo
from pipelines.bench.pixels import MICRO_BARS, ONE_VIEW_BARS, STREAM_BARS
from pipelines.bench.record import Record, make_bar, make_record, show, write_record
from pipelines.bench.timing import Batches, Cost, Meter, alternate, between, speedups, timed

ROOT = Path(__file__).parents[2]

# --- a short trial, through everything -----------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a short trial, as `make bench-pixels ARGS=--quick` runs it."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "pipelines.bench.pixels", "--quick", "--out", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stream_vs" in done.stdout
    return Record.model_validate_json((out / "pixels.json").read_text())


def test_a_trial_has_every_bar_and_says_that_it_is_one(quick: Record) -> None:
    names = [bar.name for bar in quick.bars]
    expected = {f"one_view_{kind}_simplejpeg" for kind in ONE_VIEW_BARS["simplejpeg"]}
    expected |= {"4_views_imagenet_simplejpeg", "8_views_imagenet_simplejpeg"}
    expected |= {f"stream_vs_{name}" for name in STREAM_BARS}
    expected |= {f"{name}_us" for name in MICRO_BARS}
    expected |= {"worker_own_memory_growth", "worker_resident_memory_growth"}
    expected |= {"shared_memory_left_after_kill", "workers_left_after_kill"}
    assert len(names) == len(set(names))
    assert expected <= set(names)
    assert {name.rpartition("_")[2] for name in set(names) - expected} <= {"turbojpeg"}
    assert quick.figures["quick"] is True
    assert quick.name == "pixels"
    assert quick.machine.cores >= 1
    assert {"python", "torch", "torchvision", "webdataset"} <= quick.versions.keys()


def test_costs_of_a_trial_are_those_of_work_that_was_done(quick: Record) -> None:
    stream = quick.figures["stream"]
    for loader in ("kdcache", "webdataset", "imagefolder", "decode_and_resize"):
        assert 1 < stream[loader]["images_per_s"] < 100_000
        assert stream[loader]["cpu_us_per_image"] > 100
    assert quick.figures["memory"]["workers"] == 2
    assert quick.figures["memory"]["images"] == QUICK.memory_images
    assert 1 < quick.figures["memory"]["worker_own_mb"] < 10_000
    assert quick.figures["killed_run"]["workers"] == 2


def test_every_stage_of_the_profile_is_found_in_the_code(quick: Record) -> None:
    profile = quick.figures["profile"]
    assert profile["unmatched_stages"] == []
    assert all(profile["us_per_image"][stage] > 0 for stage in ("tar_read", "decode", "resize"))


def test_a_killed_run_leaves_neither_shared_memory_nor_workers(quick: Record) -> None:
    assert quick.figures["killed_run"]["entries_left"] == 0
    assert quick.figures["killed_run"]["workers_left"] == 0


def test_a_trial_and_a_full_run_measure_the_same_things() -> None:
    assert QUICK.images.keys() == FULL.images.keys() == SETS.keys()
    assert QUICK.view_images.keys() == FULL.view_images.keys()
    assert FULL.rounds >= 5
    for sizes in (QUICK, FULL):
        assert sizes.images["imagenet"] >= 2 * sizes.rows_per_tar  # a tar for each worker
        assert all(sizes.view_images[name] <= sizes.images[name] for name in SETS)


# --- records -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "bar", "better", "holds"),
    [
        ([2.0, 1.0, 3.0], 2.0, "higher", True),
        ([2.0, 1.9, 3.0, 1.0], 2.0, "higher", False),
        ([2.0, 1.0, 3.0], 2.0, "lower", True),
        ([2.0, 2.1, 3.0], 2.0, "lower", False),
        ([0], 0, "lower", True),
    ],
)
def test_a_bar_holds_the_median_of_its_runs_against_it(
    runs: list[float], bar: float, better: str, holds: bool
) -> None:
    made = make_bar("name", runs, bar=bar, better=better)  # type: ignore[arg-type]  # parametrised
    assert made.holds is holds
    assert made.runs == tuple(runs)


def test_rounding_does_not_lift_a_value_over_its_bar() -> None:
    made = make_bar("name", [1.99999], bar=2.0)
    assert made.value == 2.0
    assert not made.holds


def test_a_record_is_read_back_as_it_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = [make_bar("fast", [3.0, 4.0, 5.0], bar=2.0), make_bar("slow", [1.0], bar=2.0)]
    record = make_record("x", bars, figures={"group": {"a": 1}, "b": 2}, packages=["numpy", "no"])
    path = write_record(record, tmp_path / "new")
    assert path == tmp_path / "new/x.json"
    assert Record.model_validate_json(path.read_text()) == record
    keys = ["name", "date", "commit", "machine", "versions", "bars", "figures"]
    assert list(json.loads(path.read_text())) == keys
    assert set(record.versions) == {"python", "numpy"}
    show(record)
    shown = capsys.readouterr().out
    assert "holds" in shown
    assert "FAILS" in shown


def test_an_unknown_field_of_a_record_is_an_error(tmp_path: Path) -> None:
    record = make_record("x", [], figures={}, packages=[])
    text = json.dumps(json.loads(record.model_dump_json()) | {"speed": 1})
    with pytest.raises(ValidationError, match="speed"):
        Record.model_validate_json(text)


def test_committed_results_are_records_of_full_runs() -> None:
    for path in (ROOT / "pipelines/bench/results").rglob("*.json"):
        record = Record.model_validate_json(path.read_text())
        assert record.name == path.stem
        assert not record.figures.get("quick")


# --- times ---------------------------------------------------------------------------------


def test_rounds_take_turns_and_the_first_is_not_counted() -> None:
    order: list[tuple[str, int]] = []

    def work(name: str, number: int) -> Cost:
        order.append((name, number))
        return Cost(number, number)

    works = {"a": lambda n: work("a", n), "b": lambda n: work("b", n)}
    costs = alternate(works, rounds=2)
    assert order == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert costs == {"a": [Cost(1, 1), Cost(2, 2)], "b": [Cost(1, 1), Cost(2, 2)]}


def test_a_speedup_is_taken_within_a_round() -> None:
    ours, theirs = [Cost(1, 2), Cost(2, 4)], [Cost(3, 8), Cost(4, 4)]
    assert speedups(ours, theirs, clock="wall") == [3, 2]
    assert speedups(ours, theirs, clock="cpu") == [4, 1]


def test_only_images_between_start_and_stop_are_timed() -> None:
    def batches() -> Batches:
        time.sleep(0.3)
        yield 10
        for _ in range(4):
            time.sleep(0.01)
            yield 10
        time.sleep(0.3)
        yield 10

    cost = between(batches(), start=10, stop=45)
    assert 0.01 <= cost.wall_s * 10 < 0.06


def _spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_cpu_seconds_count_children_and_not_waiting() -> None:
    import multiprocessing

    meter = Meter()
    child = multiprocessing.get_context("fork").Process(target=_spin, args=(0.2,))
    child.start()
    child.join()
    time.sleep(0.2)
    cost = meter.read(1)
    assert 0.15 < cost.cpu_s < 0.35
    assert cost.wall_s >= 0.4


def test_work_is_timed_per_image() -> None:
    def two(_: int) -> int:
        _spin(0.02)
        return 2

    cost = timed(two)(0)
    assert 0.009 < cost.cpu_s < 0.03


# --- photographs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_photo_is_fixed_by_its_set_and_number(name: str) -> None:
    first = photo(SETS[name], 3)
    photos._plane.cache_clear()
    assert photo(SETS[name], 3) == first
    assert photo(SETS[name], 4) != first


def test_sets_are_made_once_and_again_when_they_differ(tmp_path: Path) -> None:
    kind = SETS["imagenet"]
    paths = make_photos(kind, tmp_path, count=3)
    assert [path.stem for path in paths] == ["00000", "00001", "00002"]
    assert paths[1].read_bytes() == photo(kind, 1)
    paths[0].write_bytes(b"kept")
    assert make_photos(kind, tmp_path, count=3)[0].read_bytes() == b"kept"
    assert make_photos(kind, tmp_path, count=2)[0].read_bytes() == photo(kind, 0)
    assert not (tmp_path / "imagenet/class_2").exists()


def test_photos_cost_as_many_bytes_as_real_ones() -> None:
    """ImageNet has about 110 kB an image of 500 x 375 pixels."""
    size = sum(len(photo(SETS["imagenet"], number)) for number in range(24)) / 24
    assert 80_000 < size < 140_000


# --- peers ---------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path: Path) -> Material:
    """A folder of as many images as a batch of the trial has."""
    make_photos(SETS["imagenet"], tmp_path, count=QUICK.batch)
    return Material(tmp_path, tmp_path, tmp_path)


def test_a_peer_that_is_not_installed_is_left_out_with_the_reason(
    few: Material, tmp_path: Path
) -> None:
    python = Path(sys.executable)
    with pytest.raises(PeerError, match="No module named 'litdata'"):
        run_peer("litdata", python=python, material=few, sizes=QUICK, work=tmp_path / "work")
