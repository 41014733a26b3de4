"""Claims about several processes on one machine: one cache, whoever dies."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdcache.cache.layout import Span
from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.precompute.engines import own_first, run_inline
from kdcache.precompute.processes import STRIKES, devices_for, run_processes
from tests import tiny
from tests.precompute.fatal import ALWAYS, RENDERING, die, make_white, prepare


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with an image at which processes die."""
    return make_white(tmp_path_factory.mktemp("white"))


@pytest.fixture(scope="module")
def whole(white: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the cache that this process makes alone."""
    spec = prepare(tmp_path_factory.mktemp("whole") / "c", white)
    run_inline(spec.open("cpu"))
    return tiny.tree(spec.cache)


@pytest.mark.slow
def test_processes_make_one_cache_though_one_is_killed(
    white: Dataset, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepare(tmp_path / "c", white, num_workers=1)
    die(monkeypatch, tmp_path / "deaths", 1)
    spans, done, images = open_cache(spec.cache).missing(), [], []
    seal = run_processes(
        spec, ["cpu", "cpu"], spans=spans, progress=images.append, committed=done.append
    )
    assert len((tmp_path / "deaths").read_text().splitlines()) == 1
    assert tiny.tree(spec.cache) == whole
    assert sorted(Span(commit.tar, commit.run) for commit in done) == spans
    assert sum(images) == 4 * len(spans)
    assert seal == open_cache(spec.cache).valid_seal()


@pytest.mark.slow
def test_a_span_that_kills_its_processes_is_set_aside(
    white: Dataset, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepare(tmp_path / "c", white)
    die(monkeypatch, tmp_path / "deaths", 1000)
    cache = open_cache(spec.cache)
    with pytest.raises(UsageError, match=r"died \(SIGKILL\).* are quarantined, see kdcache insp"):
        run_processes(spec, ["cpu"], spans=cache.missing())
    deadly = cache.missing()
    assert len({span.tar for span in deadly}) == 1
    assert set(quarantined(cache.folder)) == set(deadly)
    assert len((tmp_path / "deaths").read_text().splitlines()) == STRIKES * len(deadly)
    monkeypatch.undo()
    run_inline(spec.open("cpu"), retry_quarantined=True)
    assert tiny.tree(spec.cache) == whole


@pytest.mark.slow
def test_what_kills_renderers_is_found_and_set_aside(
    white: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is rendered ahead of others, which are not to blame."""
    spec = prepare(tmp_path / "c", white, num_workers=1)
    monkeypatch.setenv(RENDERING, "1")
    cache = open_cache(spec.cache)
    with pytest.raises(UsageError, match=r"2 are quarantined"):
        run_processes(spec, ["cpu"], spans=cache.missing())
    assert cache.missing() == list(quarantined(cache.folder)) == cache.grid.spans_of(1)


@pytest.mark.slow
def test_processes_that_always_die_end_the_job_and_set_nothing_aside(
    white: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepare(tmp_path / "c", white)
    die(monkeypatch, tmp_path / "deaths", 1000)
    monkeypatch.setenv(ALWAYS, "yes")
    cache = open_cache(spec.cache)
    with pytest.raises(UsageError, match="5 processes in a row died and committed nothing"):
        run_processes(spec, ["cpu"], spans=cache.missing())
    assert len(cache.missing()) == 10
    assert quarantined(cache.folder) == {}


def test_a_process_takes_part_with_the_cache_s_own_data_and_teacher_alone(
    white: Dataset, tmp_path: Path
) -> None:
    spec = prepare(tmp_path / "c", white)
    other = tiny.make_dataset(tmp_path / "other", 5)
    with pytest.raises(MismatchError, match="made with dataset"):
        replace(spec, data=other.root).open("cpu")
    teacher = replace(spec.teacher, spec="tests.tiny:other_teacher")
    with pytest.raises(MismatchError, match="with teacher"):
        replace(spec, teacher=teacher).open("cpu")


def test_each_process_begins_with_its_own_part() -> None:
    spans = [Span(tar, run) for tar in range(4) for run in range(3)]
    orders = [own_first(spans, part, 3) for part in range(3)]
    assert all(sorted(order) == spans for order in orders)
    assert len({span for order in orders for span in order[:4]}) == len(spans)


def test_processes_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices_for("auto", 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert len(devices_for("auto", None)) == 4
    assert devices_for("cpu", 2) == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="this machine has 4 GPUs"):
        devices_for("cuda", 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_for("auto", None) == ["cpu", "cpu"]
