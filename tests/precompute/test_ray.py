"""Claims about the Ray engine, on a real Ray: one cache, whatever actor or machine dies.

These tests run in a network namespace of their own, as root, where they see who listens.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.precompute.engines import run_inline
from tests import tiny
from tests.cli.making import write_recipe
from tests.precompute.fatal import DEATHS, PARENT, SLOW, TEACHER, make_white, prepare
from tests.worlds import ISOLATED, can_isolate

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
ROOT = Path(__file__).parents[2]


pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: make ray"
    ),
    pytest.mark.skipif(not can_isolate(), reason="no network namespaces here, which need root"),
]


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with an image at which processes die."""
    return make_white(tmp_path_factory.mktemp("white"))


def _run(case: str, dataset: Dataset, folder: Path, *, deaths: int = 0) -> dict[str, object]:
    """Run a case of ray_cases.py in a namespace of its own; return what it says."""
    environment = {**os.environ, DEATHS: f"{folder / 'deaths'}:{deaths}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.precompute.ray_cases", case, dataset.root, folder]
    done = subprocess.run(
        [*ISOLATED, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def whole(white: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the cache that this process makes alone."""
    spec = prepare(tmp_path_factory.mktemp("whole") / "c", white)
    run_inline(spec.open("cpu"))
    return tiny.tree(spec.cache)


def _stored(path: Path) -> dict[str, bytes]:
    """Return the files of a cache, but for the last words of writers that were killed."""
    files = tiny.tree(path).items()
    return {name: data for name, data in files if not name.startswith("writers/")}


def test_actors_make_one_cache_though_one_is_killed(
    white: Dataset, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARENT, "yes")  # of the process that computes: the actor
    prepare(tmp_path / "c", white)
    said = _run("kill", white, tmp_path, deaths=1)
    listeners = said.pop("listeners")
    assert isinstance(listeners, list)
    assert listeners
    assert set(listeners) <= LOOPBACK
    assert said == {"committed": 10, "images": 40, "sealed": True}
    assert len((tmp_path / "deaths").read_text().splitlines()) == 1
    assert _stored(tmp_path / "c") == whole


def test_machines_join_and_disappear(
    white: Dataset, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "c", white)
    monkeypatch.setenv(SLOW, str(tmp_path / "batches"))
    said = _run("machines", white, tmp_path)
    assert (said["committed"], said["sealed"]) == (10, True)
    assert int(str(said["processes"])) >= 2
    assert _stored(tmp_path / "c") == whole


def test_a_span_that_kills_its_actors_is_set_aside(white: Dataset, tmp_path: Path) -> None:
    prepare(tmp_path / "c", white)
    said = _run("poison", white, tmp_path, deaths=1000)
    assert "are quarantined, see kdcache inspect" in str(said["error"])
    cache = open_cache(tmp_path / "c")
    assert set(quarantined(cache.folder)) == set(cache.missing())
    assert len({span.tar for span in cache.missing()}) == 1


def test_sigterm_ends_the_job_in_order_within_seconds(
    white: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepare(tmp_path / "c", white)
    recipe = write_recipe(tmp_path / "recipe.toml", open_cache(spec.cache).info.recipe)
    monkeypatch.setenv(SLOW, str(tmp_path / "batches"))
    options = {
        "--data": white.root,
        "--teacher": TEACHER.spec,
        "--mean": "0,0,0",
        "--std": "1,1,1",
        "--recipe": recipe,
        "--views": 4,
        "--cache": spec.cache,
        "--engine": "ray",
    }
    words = [str(word) for pair in options.items() for word in pair]
    job = subprocess.Popen(
        [*ISOLATED, str(Path(sys.executable).parent / "kdcache"), "precompute", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    commits = spec.cache / "commits"
    for _ in range(1200):
        if commits.is_dir() and any(commits.iterdir()):
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=10)
    assert (job.returncode, "stopped; " in said) == (143, True)
    deadline = time.monotonic() + 60  # one that is still starting ends when it has
    while (spec.cache / "writers").exists():
        assert time.monotonic() < deadline, "its processes did not end in order"
        time.sleep(0.1)
