"""Claims about what commands print while they work."""

import json
import logging
import os
import pty
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcache.cli import output
from kdcache.cli.output import human_time, progress_bar
from kdcache.cli.shell import hoisted
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.pixels.conformance import chosen_backends
from kdcache.stores import clients
from kdcache.stores.location import Location
from tests.cli.conftest import Run
from tests.cli.making import check_refusal
from tests.report.making import metrics, write_run


def test_a_log_has_a_line_every_30_seconds_at_most_each_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    with progress_bar(
        "work", 1000, rates=lambda n, s: f"{'images, ' * 12}{n / s:.1f}/s"
    ) as advance:
        for _ in range(100):
            now += 1
            advance(10)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 3
    assert lines[0].startswith("work 310/1000 images")
    assert all(re.search(r" 10\.0/s, \S+ (s|min) left$", line) for line in lines)


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_terminal_has_a_bar_unless_it_cannot_draw_one(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TERM", kind)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        with progress_bar("work", 10, rates=lambda n, _: f"{n} images") as advance:
            advance(10)
        terminal.flush()
        os.write(writer, b"END")
        drawn = b""
        while not drawn.endswith(b"END"):
            drawn += os.read(reader, 4096)
    os.close(reader)
    text = drawn.decode()
    assert ("━" in text and "10/10" in text) == (kind == "xterm")


@pytest.fixture
def talk() -> Iterator[None]:
    """Afterwards, as much is written as before."""
    yield
    output.choose_talk(quiet=False, verbose=False)


def test_quiet_leaves_results_and_takes_progress_and_notes(
    talk: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "LOG_EVERY_S", -1.0)
    written = []
    for quiet in (False, True):
        output.choose_talk(quiet=quiet, verbose=False)
        with progress_bar("work", 2, rates=lambda n, _: f"{n} images") as advance:
            advance(1)
        output.say("a note", as_json=True)
        output.say("a line for people", as_json=False)
        output.give({"a": 1}, as_json=True, lines={})
        written.append(capsys.readouterr())
    assert written[0].out == written[1].out
    assert "work 1/2" in written[0].err
    assert "a note" in written[0].err
    assert written[1].err == ""


def test_json_has_null_for_a_number_that_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": float("nan"), "b": [1.5, (float("-inf"), "NaN")], "c": {"d": float("inf")}}
    output.give(value, as_json=True, lines={})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [1.5, [None, "NaN"]], "c": {"d": None}}


@pytest.mark.parametrize("before", [True, False])
def test_quiet_and_verbose_may_stand_anywhere(
    talk: None, kdcache: Run, complete: Path, dataset: Dataset, before: bool
) -> None:
    chosen_backends.cache_clear()
    words = ["verify", complete, "--data", dataset.root, "--json"]
    outcome = kdcache("--verbose", *words) if before else kdcache(*words, "-v")
    assert outcome.code == 0
    assert outcome.value["spans_missing"] == 0
    assert re.search(r"after \d+ ms: JPEGs are decoded by ", outcome.stderr)
    assert re.search(r"done in [\d.]+ s; this process took [\d.]+ s", outcome.stderr)
    outcome = kdcache("-q", *words) if before else kdcache(*words, "--quiet")
    assert (outcome.code, outcome.stderr) == (0, "")


def test_words_after_two_dashes_are_no_options() -> None:
    words = ["inspect", "-q", "a", "--", "-v"]
    assert hoisted(words) == ["-q", "inspect", "a", "--", "-v"]
    assert hoisted(["--json", "-q", *words]) == ["-q", "-q", "inspect", "a", "--json", "--", "-v"]
    assert hoisted(["--json", "--json"]) == ["--json", "--json"]


def test_json_may_stand_before_the_command(kdcache: Run, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(1))
    assert kdcache("--json", "compare", run).value["runs"][0]["epochs_done"] == 1


@pytest.mark.parametrize("words", [["-qv"], ["-v", "--quiet"]])
def test_quiet_and_verbose_exclude_each_other(kdcache: Run, words: list[str]) -> None:
    check_refusal(kdcache("compare", "x", *words), 2, "--quiet and --verbose: exclude each other")


def test_errors_of_the_system_are_one_line_of_the_name_that_people_know(
    kdcache: Run, tmp_path: Path
) -> None:
    (tmp_path / "a\nb\x1b/config.json").mkdir(parents=True)
    odd = kdcache("compare", tmp_path / "a\nb\x1b")
    check_refusal(odd, 2, "a b\\x1b/config.json: Is a directory; see that the path is right")
    page = tmp_path / ("x" * 248 + ".html")
    long = kdcache("show", write_run(tmp_path / "run", metrics(1)), "--out", page)
    check_refusal(long, 2, f"kdcache: {page}: File name too long; ")


def test_verbose_tells_where_an_error_arose_and_the_error_in_one_line_last(
    talk: None, kdcache: Run, tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text("size = [secret")
    words = ["recipe", "preview", tmp_path / "bad.toml", "--data", tmp_path, "--out", "x.png"]
    plain, full = kdcache(*words), kdcache("-v", *words)
    assert (plain.code, full.code) == (2, 2)
    assert plain.stderr.count("\n") == 1
    assert full.stderr.endswith(plain.stderr)
    assert "load_dataset" in full.stderr


def test_the_texts_of_causes_stay_untold(talk: None, capsys: pytest.CaptureFixture[str]) -> None:
    output.choose_talk(quiet=False, verbose=True)
    secret = "hunter2"
    try:
        try:
            raise ValueError(f"https://me:{secret}@host")
        except ValueError:
            raise UsageError("no such store") from None
    except UsageError as error:
        output.trace(error)
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert secret not in text


def test_a_store_that_is_opened_is_told_without_its_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="kdcache.stores"):
        clients.client(Location("https://me:hunter2@nowhere.invalid/a?sig=hunter2"))
    assert caplog.messages == ["opens the store https://nowhere.invalid/a"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (90, "1.5 min"),
        (7200, "2.0 h"),
        (129600, "36.0 h"),
        (864000, "10.0 days"),
    ],
)
def test_a_duration_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
