"""Claims about kdcache status: what is done, by whom, how fast, and what is set aside."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache import writers
from kdcache.cache.layout import Span
from kdcache.cache.quarantine import quarantine
from kdcache.cache.status import read_status
from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import DataError
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import run_span
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import check_refusal
from tests.tiny import files_of

RECIPE = tiny.make_recipe()


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.02)


def _table(outcome: Outcome) -> dict[str, str]:
    assert (outcome.code, outcome.stderr) == (0, "")
    rows = (re.split(r"  +", line.strip(), maxsplit=1) for line in outcome.stdout.splitlines())
    return dict(rows)


@pytest.fixture
def begun(dataset: Dataset, tmp_path: Path) -> Path:
    """A cache of which 3 of 6 spans are computed, 2 views each: tars of 10 and 10 images."""
    return tiny.precompute_first(tmp_path / "c", dataset, RECIPE, spans=3).path


def test_an_incomplete_cache_says_what_is_done(kdcache: Run, begun: Path) -> None:
    before = files_of(begun)
    value = kdcache("status", begun, "--json").value
    assert (value["spans_done"], value["spans"]) == (3, 6)
    assert (value["views_done"], value["views"], value["views_left"]) == (60, 96, 36)
    assert (value["tars_complete"], value["tars_begun"], value["tars"]) == (1, 1, 3)
    assert not value["complete"]
    assert not value["sealed"]
    assert value["size_is_exact"]
    assert value["size_bytes"] == kdcache("inspect", begun, "--json").value["size_bytes"]
    assert (value["views_per_s"], value["left_s"], value["writers"]) == (0, None, [])
    shown = _table(kdcache("status", begun))
    assert shown["coverage"] == "62.5%: 3 of 6 spans, 60 of 96 views"
    assert shown["tars"] == "1 of 3 complete, 1 begun"
    assert (shown["sealed"], shown["time left"], shown["writers"]) == ("no", "unknown", "none")
    assert files_of(begun) == before


def test_a_complete_cache_is_sealed_and_nothing_is_left(kdcache: Run, complete: Path) -> None:
    value = kdcache("status", complete, "--json").value
    assert value["complete"]
    assert value["sealed"]
    assert (value["views_left"], value["left_s"]) == (0, 0)
    assert value["size_bytes"] == kdcache("inspect", complete, "--json").value["size_bytes"]
    shown = _table(kdcache("status", complete))
    assert shown["coverage"] == "100.0%: 6 of 6 spans, 96 of 96 views"
    assert shown["sealed"] == "yes"
    assert "time left" not in shown


def test_a_complete_cache_without_a_sound_seal_says_so(kdcache: Run, cache: Any) -> None:
    (cache.path / "seal.json").write_bytes(b"{}")
    shown = _table(kdcache("status", cache.path))
    assert "run kdcache precompute again" in shown["sealed"]
    assert "seal.json: damaged record; run kdcache repair" in shown["note 1"]


def test_the_size_of_many_spans_is_estimated_from_some(
    kdcache: Run, dataset: Dataset, tmp_path: Path
) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, RECIPE, num_views=40, span_views=1)
    for span in job.cache.missing()[:70]:
        run_span(job, span)
    value = kdcache("status", tmp_path / "c", "--json").value
    exact = kdcache("inspect", tmp_path / "c", "--json").value["size_bytes"]
    assert not value["size_is_exact"]
    assert value["size_bytes"] == pytest.approx(exact, rel=0.05)
    assert _table(kdcache("status", tmp_path / "c"))["size"].startswith("about ")


def test_damaged_records_leave_the_size_unknown(kdcache: Run, begun: Path) -> None:
    for record in (begun / "commits").iterdir():
        record.write_bytes(b"")
    assert _table(kdcache("status", begun))["size"] == "unknown"


def test_quarantined_spans_are_counted_and_the_first_are_shown(
    kdcache: Run, dataset: Dataset, tmp_path: Path
) -> None:
    cache = tiny.make_job(tmp_path / "c", dataset, RECIPE, num_views=8).cache
    aside = cache.missing()[:7]
    for span in [*aside, Span(99, 0)]:  # one of another extent
        quarantine(cache.folder, span, DataError(f"a.tar, key {span}:\nno image"))
    value = kdcache("status", cache.path, "--json").value
    assert value["quarantined"] == {str(s): f"a.tar, key {s}:\nno image" for s in aside}
    assert value["views_left"] == 24 * 8 - 20 * 7
    shown = _table(kdcache("status", cache.path))
    assert shown["quarantined"].startswith("7 spans; ")
    assert shown["span 0-0"] == "a.tar, key 0-0: no image"
    assert "span 1-1" not in shown
    assert shown["…"].startswith("2 more")
    run_span(tiny.make_job(cache.path, dataset, RECIPE, num_views=8), aside[0])
    assert str(aside[0]) not in kdcache("status", cache.path, "--json").value["quarantined"]


# --- writers -------------------------------------------------------------------------------


def _work(path: Path, dataset: Dataset, pause_s: float) -> None:
    writers.BEAT_S = 0.05
    job = tiny.make_job(path, dataset, RECIPE, batch_size=4)
    run_inline(replace(job, teacher=tiny.watched(job.teacher, lambda _: time.sleep(pause_s))))


def test_a_job_in_another_process_is_alive_has_a_rate_and_is_silent_once_it_is_killed(
    kdcache: Run, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    child = tiny.start(_work, path, dataset, 0.2)
    _until(lambda: path.exists() and kdcache("status", path, "--json").value["views_done"] > 0)
    _until(lambda: kdcache("status", path, "--json").value["views_per_s"] > 0)
    value = kdcache("status", path, "--json").value
    (writer,) = value["writers"]
    assert (writer["pid"], writer["alive"], writer["device"]) == (child.pid, True, "cpu")
    assert writer["spans_todo"] == 6
    assert value["views_per_s"] == writer["views_per_s"] < 4 / 0.2
    assert value["left_s"] == pytest.approx(value["views_left"] / value["views_per_s"])
    text = _table(kdcache("status", path))[f"writer {writer['name']}"]
    assert re.fullmatch(r"cpu, \d+ views/s, \d spans?, \d+ views written, at span \d-\d", text)

    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    monkeypatch.setattr(writers, "GONE_S", 0.0)
    value = kdcache("status", path, "--json").value
    assert [writer["alive"] for writer in value["writers"]] == [False]
    assert (value["views_per_s"], value["left_s"]) == (0, None)
    text = _table(kdcache("status", path))[f"writer {writer['name']}"]
    assert re.search(r"views written, silent since 20.*:\d\d UTC \(\d+ s\)$", text)
    tiny.precompute(path, dataset, RECIPE)
    assert not (path / "writers").exists()


def test_a_damaged_writers_file_is_a_note(kdcache: Run, begun: Path) -> None:
    (begun / "writers").mkdir()
    (begun / "writers/node-1-0000.json").write_bytes(b'{"host": "node", "pi')
    shown = _table(kdcache("status", begun))
    assert shown["writers"] == "none"
    assert shown["note 1"] == f"{begun}/writers/node-1-0000.json: damaged; may be deleted"


def _status_without_rights(path: Path, result: Connection) -> None:
    tiny.without_root_rights()
    seen = read_status(open_cache(path))
    result.send((seen.spans, len(seen.writers), len(seen.alive), seen.notes))


def test_a_read_only_cache_has_a_status(begun: Path) -> None:
    (begun / "writers").mkdir()
    file = begun / "writers" / "node-1-0000.json"
    body = {"host": "node", "pid": 1, "device": "cpu", "started": "2026-01-01T00:00:00+00:00"}
    body |= {"updated": "2026-01-01T00:00:00+00:00", "spans_done": 0, "spans_todo": 1}
    file.write_text(json.dumps({**body, "views_done": 0, "views_per_s": 1, "span": None}))
    os.utime(file, (time.time() - 3600,) * 2)
    below = [begun, *begun.rglob("*")]
    for entry in below:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        ours, theirs = tiny.FORK.Pipe(duplex=False)
        child = tiny.start(_status_without_rights, begun, theirs)
        assert ours.recv() == ((3, 6), 1, 0, ())
        child.join()
    finally:
        for entry in below:
            entry.chmod(0o755)


# --- watching ------------------------------------------------------------------------------


def test_watching_writes_a_line_a_look_and_ends_with_the_job(
    kdcache: Run, dataset: Dataset, tmp_path: Path
) -> None:
    tiny.make_job(tmp_path / "c", dataset, RECIPE)
    child = tiny.start(_work, tmp_path / "c", dataset, 0.1)
    outcome = kdcache("status", tmp_path / "c", "--watch", "0.5")
    child.join()
    *looks, _, _, _, _, _, _ = outcome.stdout.splitlines()
    assert outcome.code == 0
    assert len(looks) >= 2
    for line in looks:
        assert re.match(
            r"20\S+ \S+ \d+\.\d%, \d of 6 spans, \d+ views/s, time left .*, [01] writer", line
        )
    assert "coverage  100.0%: 6 of 6 spans" in outcome.stdout
    assert "sealed    yes" in outcome.stdout


def test_watching_ends_when_only_quarantined_spans_are_left(
    kdcache: Run, dataset: Dataset, begun: Path
) -> None:
    cache = open_cache(begun)
    for span in cache.missing():
        quarantine(cache.folder, span, DataError("no image"))
    assert _table(kdcache("status", begun, "--watch", "60"))["quarantined"].startswith("3 spans")


def test_watching_ends_when_nobody_has_worked_for_long(
    kdcache: Run, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcache.cli.status.DESERTED_S", 0.6)
    outcome = kdcache("status", begun, "--watch", "0.5")
    assert outcome.code == 0
    assert "0 writers" in outcome.stdout


@pytest.mark.parametrize("shown", ["terminal", "log"])
def test_ctrl_c_ends_watching_in_order(
    kdcache: Run, begun: Path, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    if shown == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    pauses = iter([0.5, 0.5])

    def sleep(seconds: float) -> None:
        if next(pauses, None) != seconds:
            raise KeyboardInterrupt  # as Ctrl-C does, in the third pause

    monkeypatch.setattr("kdcache.cli.status.time.sleep", sleep)
    outcome = kdcache("status", begun, "--watch", "0.5")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.count("62.5%") >= 2
    drawn_over = "\x1b[1A" in outcome.stdout
    assert drawn_over == (shown == "terminal")


def test_watching_in_json_is_refused_and_so_is_no_cache(kdcache: Run, tmp_path: Path) -> None:
    check_refusal(kdcache("status", tmp_path, "--watch", "1", "--json"), 2, "--watch", "--json")
    check_refusal(kdcache("status", tmp_path), 2, str(tmp_path), "no cache here")
    shutil.rmtree(tmp_path)
    check_refusal(kdcache("status", tmp_path), 2, "no cache here")
