"""Claims about running a job: worker processes, slices, and an end by SIGTERM."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from tests import tiny
from tests.cli import making
from tests.cli.conftest import Outcome, Run
from tests.cli.making import (
    PLAIN,
    check_refusal,
    teacher_option,
    write_recipe,
    write_weights,
)

Precompute = Callable[..., Outcome]


@pytest.fixture
def precompute(kdcache: Run, tmp_path: Path, dataset: Dataset) -> Precompute:
    """A function that runs precompute over the dataset into tmp_path / "cache"; options go last."""
    recipe = write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())

    def run(*options: object) -> Outcome:
        return kdcache(
            *("precompute", "--data", dataset.root, *teacher_option(options), *PLAIN),
            *("--recipe", recipe, "--views", "4", "--span-views", "2", "--encoding", "topk:3"),
            *("--cache", tmp_path / "cache", *options),
        )

    return run


def test_two_slices_with_workers_make_the_whole_cache(
    precompute: Precompute, tmp_path: Path, complete: Path
) -> None:
    first = precompute("--slice", "1/2", "--workers", "1", "--json")
    assert (first.code, first.value["spans_computed"]) == (0, 3)
    assert len(open_cache(tmp_path / "cache").missing()) == 3
    assert precompute("--slice", "0/2", "--workers", "1").code == 0
    assert open_cache(tmp_path / "cache").valid_seal() is not None
    assert tiny.tree(tmp_path / "cache") == tiny.tree(complete)


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "0/0", "1/2/3", "", "9" * 5000 + "/2"])
def test_a_slice_that_is_none_is_refused(precompute: Precompute, text: str) -> None:
    check_refusal(precompute(f"--slice={text}"), 2, "--slice", "expected i/n")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_ends_the_job_which_goes_on_later(
    precompute: Precompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    options = ["--teacher", "tests.cli.making:terminated_teacher", "--batch-size", "8"]
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(making, "TERMINATE_AT", 8)
    outcome = precompute(*options, "--workers", workers)
    assert outcome.code == 143
    assert "the same command goes on from there" in outcome.stdout
    assert signal.getsignal(signal.SIGTERM) is before
    assert 0 < len(open_cache(tmp_path / "cache").missing()) < 6
    monkeypatch.setattr(making, "TERMINATE_AT", None)
    assert precompute(*options, "--workers", workers).code == 0
    assert open_cache(tmp_path / "cache").missing() == []


def test_the_death_of_a_renderer_is_no_fault_of_the_span(
    precompute: Precompute, tmp_path: Path
) -> None:
    teacher = ("--teacher", "tests.cli.making:bereft_teacher", "--weights")
    outcome = precompute(*teacher, write_weights(tmp_path / "w.safetensors"), "--workers", "1")
    check_refusal(outcome, 2, "a process that renders views died", "it goes on from what is kept")
    cache = open_cache(tmp_path / "cache")
    assert quarantined(cache.folder) == {}
    assert len(cache.missing()) == 6


def test_a_teacher_that_ends_the_program_is_refused(precompute: Precompute) -> None:
    outcome = precompute("--teacher", "tests.cli.making:leaving_teacher")
    check_refusal(outcome, 2, "leaving_teacher", "SystemExit")


@pytest.mark.slow
def test_processes_make_the_same_cache(
    precompute: Precompute, tmp_path: Path, complete: Path
) -> None:
    outcome = precompute("--engine", "processes", "--device", "cpu", "--json")
    assert (outcome.code, outcome.value["spans_computed"]) == (0, 6)
    assert tiny.tree(tmp_path / "cache") == tiny.tree(complete)


def test_the_batch_size_is_found(precompute: Precompute, tmp_path: Path, complete: Path) -> None:
    outcome = precompute("--batch-size", "auto")
    assert outcome.code == 0
    found = re.search(r"batches of (\d+) views", outcome.stdout)
    assert found is not None
    assert open_cache(tmp_path / "cache").commit(Span(0, 0)).versions["batch_size"] == found[1]
    assert tiny.tree(tmp_path / "cache") == tiny.tree(complete)


@pytest.mark.parametrize("text", ["0", "many", "-1", "9" * 5000])
def test_a_batch_size_that_is_none_is_refused(precompute: Precompute, text: str) -> None:
    check_refusal(precompute(f"--batch-size={text}"), 2, "--batch-size", "expected auto, or 1 to")
