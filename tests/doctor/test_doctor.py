"""Claims about kdcache doctor: its table, its verdict, its exit codes."""

import os
import signal
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache import audit
from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.doctor import caches, disk, replay
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.witness import Layer, pixel_versions
from kdcache.processes import terminable
from tests.cli.conftest import Run
from tests.pixels.altering import alter, one_off

SECTIONS = ["system", "pixels", "libraries", "decoders", "processor", "cores", "memory", "shared"]
SECTIONS += ["files", "gpus", "disk", "replay"]


REPLAY = replay.replay
replay_once = lru_cache(maxsize=1)(REPLAY)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks are measured in a test of their own; one self-test does for all but one test."""
    monkeypatch.setattr(replay, "replay", replay_once)
    monkeypatch.setattr(disk, "MOST_FILES", 2)
    monkeypatch.setattr(disk, "MOST_BYTES", disk.PIECE_BYTES)


def test_the_verdict_is_the_last_line(kdcache: Run, tmp_path: Path) -> None:
    outcome = kdcache("doctor", "--folder", tmp_path)
    assert outcome.code == 0
    assert outcome.stderr == ""
    lines = outcome.stdout.splitlines()
    assert [line[:11].strip() for line in lines] == [*SECTIONS, "verdict"]
    assert lines[-1].split(maxsplit=1)[1] == "caches made elsewhere replay bit for bit here"
    assert all(f"{name} {version}" in lines[1] for name, version in pixel_versions().items())
    assert str(tmp_path) in lines[SECTIONS.index("disk")]


def test_sigterm_leaves_nothing_in_the_folder(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(path: Path) -> float:
        assert path.is_file()
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    monkeypatch.setattr(disk, "_read", terminated)
    with terminable():  # of this test's own process, should doctor not see to it
        outcome = kdcache("doctor", "--folder", tmp_path)
    assert (outcome.code, outcome.stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []


def test_json_has_the_same_for_programs(kdcache: Run, tmp_path: Path) -> None:
    found = kdcache("doctor", "--folder", tmp_path, "--json").value
    assert set(found) == {"verdict", "replays", "sections"}
    assert (found["verdict"], found["replays"]) == (replay.HOLDS, True)
    assert list(found["sections"]) == SECTIONS
    for section in found["sections"].values():
        assert section["state"] in ("fine", "warning")
        assert section["text"]
    assert found["sections"]["pixels"]["versions"] == pixel_versions()
    assert found["sections"]["replay"]["views"] == 64


def test_a_layer_that_is_off_ends_with_code_3_and_its_library(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "replay", REPLAY)
    plain = RESIZE["torch"]
    monkeypatch.setitem(RESIZE, "torch", lambda pixels, size: one_off(plain(pixels, size)))
    for more in ([], ["--json"]):
        outcome = kdcache("doctor", "--folder", tmp_path, *more)
        assert outcome.code == 3
        assert outcome.stderr.startswith("kdcache: caches made elsewhere do not replay bit for bit")
        assert f"resize torch makes other pixels with torch {pixel_versions()['torch']}" in (
            outcome.stderr
        )
    assert (outcome.value["replays"], outcome.value["sections"]["replay"]["state"]) == (
        False,
        "failed",
    )


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("ftp://me:hunter2@host/x?sig=hunter2", "ftp://…: unknown kind of store"),
        ("s3://me:hunter2@bucket/x?sig=hunter2", "s3://bucket/x: credentials in the address"),
        ("https://me:hunter2@host:port/x?sig=hunter2", "https://…: names no bucket or host"),
    ],
)
def test_steps_that_fail_end_nothing_and_no_secret_shows(
    kdcache: Run, tmp_path: Path, store: str, told: str
) -> None:
    outcome = kdcache("doctor", "--folder", tmp_path / "none", "--store", store)
    assert outcome.code == 0
    assert "disk       failed: " in outcome.stdout
    assert f"store      failed: {told}" in outcome.stdout
    assert outcome.stdout.endswith(f"{replay.HOLDS}\n")
    assert "hunter2" not in outcome.stdout


def test_a_cache_replays(kdcache: Run, complete: Path, dataset: Dataset, tmp_path: Path) -> None:
    outcome = kdcache("doctor", "--cache", complete, "--data", dataset.root, "--folder", tmp_path)
    assert outcome.code == 0
    assert "made with the versions of this machine; 3 blocks made again, all equal" in (
        outcome.stdout
    )
    plain = kdcache("doctor", "--cache", complete, "--folder", tmp_path, "--json").value
    assert plain["sections"]["cache"]["blocks"] == 0
    assert "--data" in plain["sections"]["cache"]["text"]


def test_a_cache_of_other_pixels_ends_with_code_3(
    kdcache: Run,
    complete: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay_once()
    alter(monkeypatch, Layer.RESIZE)
    outcome = kdcache("doctor", "--cache", complete, "--data", dataset.root, "--folder", tmp_path)
    assert outcome.code == 3
    assert "the first layer that differs is resize (torch" in outcome.stderr
    assert outcome.stdout.splitlines()[-1].startswith("verdict")
    assert replay.HOLDS not in outcome.stdout


def test_versions_of_a_cache_are_compared(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {**pixel_versions(), "torch": "99.0"}
    monkeypatch.setattr(caches, "pixel_versions", lambda: here)
    assert f"made with torch {pixel_versions()['torch']} (99.0 here)" in (
        caches.check_cache(cache.path, None).text
    )


def test_a_cache_that_is_not_there_ends_with_its_own_code(kdcache: Run, tmp_path: Path) -> None:
    outcome = kdcache("doctor", "--cache", tmp_path / "none", "--folder", tmp_path)
    assert outcome.code == 2
    assert f"cache      failed: {tmp_path / 'none'}: no cache here" in outcome.stdout


def test_data_without_a_cache_is_refused(kdcache: Run, tmp_path: Path) -> None:
    outcome = kdcache("doctor", "--data", tmp_path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "--data: goes with --cache" in outcome.stderr


def test_tars_are_sampled_evenly_and_in_bounded_time(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(caches, "MOST_TARS", 2)
    check = audit.check_blocks
    monkeypatch.setattr(
        caches,
        "check_blocks",
        lambda c, s, items: check(c, s, (made.append(i) or i for i in items)),
    )
    caches.check_cache(cache.path, dataset.root)
    assert [item[0].tar for item in made] == [0, 2]
    made.clear()
    monkeypatch.setattr(caches, "LIMIT_S", 0.0)
    caches.check_cache(cache.path, dataset.root)
    assert [item[0].tar for item in made] == [0]
