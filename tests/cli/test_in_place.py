"""Claims about commands whose cache and images stay in a store."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from tests import tiny
from tests.cli.conftest import Run
from tests.cli.making import PLAIN, TEACHER, check_refusal, write_recipe
from tests.serving import Served, put_cache, served
from tests.student.making import centre_cache

STUDENT = "tests.student.nets:small"
RECIPE = ["--data", "d", "--teacher", "t", "--recipe", "r", "--views", 2]


class Lent(NamedTuple):
    """A server; addresses of a cache, of the images, and of a cache of one centre view of them."""

    server: Served
    cache: str
    data: str
    centre: str


@pytest.fixture
def lent(
    tmp_path: Path, complete: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lent]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    paths = (complete, centre_cache(tmp_path / "centre", dataset))
    names = [put_cache(open_cache(path), tmp_path / "web").name for path in paths]
    shutil.copytree(dataset.root, tmp_path / "web/data")
    with served(tmp_path / "web") as server:
        cache, centre = (str(server.location / "caches" / name) for name in names)
        yield Lent(server, cache, str(server.location / "data"), centre)


def test_inspect_says_the_same_of_a_published_cache(
    kdcache: Run, lent: Lent, complete: Path
) -> None:
    ours, theirs = kdcache("inspect", lent.cache), kdcache("inspect", complete)
    assert (ours.code, ours.stdout) == (0, theirs.stdout)
    assert kdcache("inspect", lent.cache, "--json").value["path"] == lent.cache


def test_show_draws_a_published_cache_as_it_does_one_on_this_disk(
    kdcache: Run, lent: Lent, complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    pages = []
    for name, cache, data in (("a", lent.cache, lent.data), ("b", complete, dataset.root)):
        out = tmp_path / f"{name}.html"
        outcome = kdcache("show", cache, "--data", data, "--images", 2, "--out", out)
        assert (outcome.code, outcome.stderr) == (0, "")
        pages.append(out.read_text().replace(str(cache), "PLACE"))
    assert pages[0] == pages[1]


def test_verify_reads_a_published_cache_whole_and_says_so(kdcache: Run, lent: Lent) -> None:
    outcome = kdcache("verify", lent.cache, "--data", lent.data, "--replay", 1)
    assert outcome.code == 0, outcome.stderr
    assert "all as committed, each read whole from its store" in outcome.stdout
    path = next(lent.server.root.rglob("values/c/1/1/0/0"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = kdcache("verify", lent.cache)
    check_refusal(outcome, 5, "1 object is damaged; ask who published it")
    assert "values/c/1/1/0/0: its sha256 differs" in outcome.stdout


def test_a_student_of_a_published_cache_is_that_of_a_local_one(
    kdcache: Run, lent: Lent, tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    options = ["--student", STUDENT, "--epochs", 2, "--batch-size", 8, "--device", "cpu"]
    places = {
        "local": (dataset.root, complete, tmp_path / "centre"),
        "lent": (lent.data, lent.cache, lent.centre),
    }
    for name, (data, cache, centre) in places.items():
        outcome = kdcache(
            *("train", "--data", data, "--cache", cache, "--val-data", data),
            *("--val-cache", centre, *options, "--workers", 1, "--out", tmp_path / name),
        )
        assert outcome.code == 0, outcome.stderr
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in places]
    assert weights[0] == weights[1]
    scores = [
        kdcache(
            *("eval", tmp_path / "lent", "--data", data, "--cache", cache, "--student", STUDENT),
            *("--workers", 1, "--device", "cpu", "--json"),
        )
        for data, _, cache in places.values()
    ]
    assert [score.code for score in scores] == [0, 0]
    assert scores[0].value == scores[1].value


def test_targets_of_images_in_a_store_are_those_of_local_ones(
    kdcache: Run, lent: Lent, tmp_path: Path, complete: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())
    outcome = kdcache(
        *("precompute", "--data", lent.data, "--teacher", TEACHER, *PLAIN, "--recipe", recipe),
        *("--views", 4, "--span-views", 2, "--encoding", "topk:3", "--batch-size", 5),
        *("--workers", 1, "--device", "cpu", "--cache", tmp_path / "made"),
    )
    assert outcome.code == 0, outcome.stderr
    made, expected = tiny.tree(tmp_path / "made"), tiny.tree(complete)
    arrays = [name for name in expected if "/c/" in name]
    assert {name: made[name] for name in arrays} == {name: expected[name] for name in arrays}


@pytest.mark.parametrize(
    "words",
    [
        ["extend", "CACHE", "--views", 8],
        ["merge", "CACHE", "other"],
        ["merge", "here", "CACHE"],
        ["slice", "CACHE", "out", "--views", 2],
        ["repair", "CACHE"],
        ["status", "CACHE"],
        [
            "precompute",
            *["--data", "d", "--teacher", "t", "--recipe", "r", "--views", "2", "--cache", "CACHE"],
        ],
        ["index", "d", "--out", "CACHE"],
    ],
    ids=lambda words: words[0],
)
def test_what_must_be_here_is_refused_elsewhere(kdcache: Run, words: list[object]) -> None:
    url = "https://someone:secret@team/caches/x"
    outcome = kdcache(*(url if word == "CACHE" else word for word in words))
    check_refusal(outcome, 2, "https://team/caches/x: this must be on this disk", "kdcache fetch")
    assert "secret" not in outcome.stderr


def test_an_index_of_a_bucket_needs_a_folder(kdcache: Run) -> None:
    check_refusal(kdcache("index", "s3://team/tars"), 2, "s3://team/tars: name a folder", "--out")


def test_nothing_is_written_through_to_a_store(kdcache: Run, lent: Lent, tmp_path: Path) -> None:
    outcome = kdcache(
        *("train", "--data", lent.data, "--cache", lent.cache, "--student", STUDENT),
        *("--epochs", 1, "--batch-size", 8, "--out", tmp_path / "run", "--device", "cpu"),
        *("--teacher", TEACHER, "--teacher-mean", "0,0,0", "--teacher-std", "1,1,1"),
        "--write-through",
    )
    check_refusal(outcome, 2, "--write-through writes to a cache on this disk", "kdcache fetch")


def test_an_unknown_store_is_named(kdcache: Run) -> None:
    check_refusal(kdcache("inspect", "ftp://host/x"), 2, "ftp://…: unknown kind of store")
