import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.pixels.witness import Layer
from tests import tiny
from tests.cli.conftest import Run
from tests.cli.making import check_refusal
from tests.pixels.altering import alter
from tests.report.making import metrics, write_run
from tests.report.test_page import Page


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _titles(path: Path) -> list[str]:
    return Page(path.read_text()).text["h2"]


def test_a_cache_becomes_a_page_named_after_it(
    kdcache: Run, tmp_path: Path, cache: Cache, dataset: Dataset
) -> None:
    outcome = kdcache("show", cache.path, "--data", dataset.root, "--images", "3")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "11 with 14 views, of which 0 differ" in outcome.stdout
    titles = _titles(tmp_path / "copy.html")
    assert titles == [
        *("What it is", "What is there", "What the teacher said", "Classes"),
        *("Images", "Most certain views", "Least certain views"),
    ]


def test_the_page_is_fixed_by_its_seed(
    kdcache: Run, tmp_path: Path, cache: Cache, dataset: Dataset
) -> None:
    pages = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.html"
        given = ("--data", dataset.root, "--images", "2", "--seed", seed, "--out", out)
        assert kdcache("show", cache.path, *given).code == 0
        pages.append(out.read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_without_images_the_page_says_how_to_get_them(
    kdcache: Run, tmp_path: Path, cache: Cache
) -> None:
    outcome = kdcache("show", cache.path, "--json")
    assert outcome.code == 0
    value = outcome.value
    assert (value["images"], value["tiles_read"], value["differing"]) == (0, 12, [])
    assert value["size_bytes"] == (tmp_path / "copy.html").stat().st_size
    html = (tmp_path / "copy.html").read_text()
    assert "Give the images (--data)" in html
    assert "<script>" not in html


def test_only_our_own_page_is_written_over(kdcache: Run, tmp_path: Path, cache: Cache) -> None:
    out = tmp_path / "copy.html"
    out.write_text("<!doctype html><p>the user's")
    outcome = kdcache("show", cache.path)
    assert outcome.code == 2
    assert "is no page of kdcache" in outcome.stderr
    assert out.read_text() == "<!doctype html><p>the user's"
    out.unlink()
    assert kdcache("show", cache.path).code == 0
    assert kdcache("show", cache.path).code == 0
    for bad in (tmp_path / "x.png", tmp_path / "none/x.html"):
        assert kdcache("show", cache.path, "--out", bad).code == 2


@pytest.mark.parametrize("command", ["show", "compare"])
def test_a_page_is_a_file(kdcache: Run, tmp_path: Path, command: str) -> None:
    run = write_run(tmp_path / "run", metrics(4))
    os.mkfifo(tmp_path / "f.html")
    (tmp_path / "d.html").mkdir()
    for name in ("f.html", "d.html"):
        option = "--out" if command == "show" else "--page"
        check_refusal(kdcache(command, run, option, tmp_path / name), 2, "is no page of kdcache")


def test_an_incomplete_cache_is_shown_as_far_as_it_goes(
    kdcache: Run, tmp_path: Path, dataset: Dataset
) -> None:
    tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=2)
    outcome = kdcache("show", tmp_path / "c", "--data", dataset.root, "--images", "1")
    assert outcome.code == 4
    assert outcome.stderr.count("\n") == 1
    assert "the page shows what is there, but 4 spans are missing" in outcome.stderr
    assert "33.3% of the views are there: 2 of 6 spans." in (tmp_path / "c.html").read_text()


def test_damaged_tiles_are_named_on_the_page(kdcache: Run, tmp_path: Path, cache: Cache) -> None:
    path = cache.path / "values/c/1/0/0/0"
    path.write_bytes(path.read_bytes()[::-1])
    outcome = kdcache("show", cache.path)
    assert outcome.code == 5
    assert outcome.stderr.count("\n") == 1
    assert f"; run kdcache repair {cache.path}, --from a sound copy if there" in outcome.stderr
    page = Page((tmp_path / "copy.html").read_text())
    assert page.text["h2"][0] == "Damaged"
    assert any("tar 1, view 0" in text for text in page.text["p"])


@pytest.mark.parametrize(
    ("text", "words"), [("[1]", "no object of JSON"), ("9" * 5000, "a number of 5000 digits")]
)
def test_damage_is_told_in_our_words_with_the_next_step(
    kdcache: Run, cache: Cache, text: str, words: str
) -> None:
    (cache.path / "values/zarr.json").write_text(text)
    mend = f"zarr.json: damaged: {words}; run kdcache repair {cache.path}, --from a sound copy"
    check_refusal(kdcache("show", cache.path), 5, f"{cache.path}: 1 thing is damaged; ", mend)
    (cache.path / "zarr.json").write_text(text)
    check_refusal(kdcache("show", cache.path), 5, f"{words}; run kdcache repair --from a sound")


def test_pixels_that_are_made_otherwise_here_are_told_loudly(
    kdcache: Run, tmp_path: Path, cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(monkeypatch, Layer.RESIZE)
    outcome = kdcache("show", cache.path, "--data", dataset.root, "--images", "1", "--json")
    assert outcome.code == 3
    assert len(outcome.value["differing"]) > 1
    assert "views are made otherwise here: tar " in outcome.stderr
    assert _titles(tmp_path / "copy.html")[0] == "Not what the teacher saw"


def test_images_of_another_dataset_are_refused(kdcache: Run, tmp_path: Path, cache: Cache) -> None:
    other = tiny.make_dataset(tmp_path / "other", seed=1)
    outcome = kdcache("show", cache.path, "--data", other.root)
    assert outcome.code == 3
    assert not (tmp_path / "copy.html").exists()


def test_a_run_becomes_a_page(kdcache: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run", metrics(4))
    outcome = kdcache("show", tmp_path / "run", "--json")
    assert outcome.code == 0
    assert outcome.value["epochs_done"] == 4
    assert _titles(tmp_path / "run.html")[:2] == ["What it reached", "Curves"]


def test_several_runs_become_a_page(kdcache: Run, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, metrics(4), seed=n) for n, name in enumerate("ab")]
    assert kdcache("compare", *runs, "--page", tmp_path / "both.html").code == 0
    page = Page((tmp_path / "both.html").read_text())
    assert page.text["h2"] == ["What they reached", "Curves", "Settings that differ"]
    assert page.text["td"][:2] == ["a", "4/4"]
    assert kdcache("compare", *runs, "--page", tmp_path / "both.txt").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none: no cache and no run here"),
        (["cache", "--images", "2"], "--images: shows images, which need --data"),
        (["cache", "--port", "80"], "--port: is of --serve"),
        (
            ["cache", "--serve", "--out", "x.html"],
            "--out, --images and --json: are of a page that is written",
        ),
        (["cache", "--trusted", "x"], "--trusted: has no effect on the page of a cache"),
        (["run", "--data", "x"], "--data: has no effect on the page of a run"),
        (["run", "--serve"], "--serve: has no effect on the page of a run"),
        (["catalogue", "best", "--out", "x.html"], "--out: has no effect on the text"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    kdcache: Run, tmp_path: Path, complete: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "cache").symlink_to(complete)
    write_run(tmp_path / "run", [])
    outcome = kdcache("show", *arguments)
    assert outcome.code == 2
    assert outcome.stderr.startswith(f"kdcache: {words}")
    assert outcome.stderr.count("\n") == 1


SERVE = "from kdcache.cli.app import main; main()"


def test_pages_are_served_until_ctrl_c(complete: Path, dataset: Dataset) -> None:
    arguments = ["show", str(complete), "--data", str(dataset.root), "--serve"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments],
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.match(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert found is not None
        with urlopen(found[0], timeout=60) as answer:
            assert b"What it is" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
