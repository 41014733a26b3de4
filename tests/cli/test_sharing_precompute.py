"""Claims about precompute beside a catalogue."""

from pathlib import Path

import pytest

from kdcache.data.dataset import Dataset
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import PLAIN, TEACHER, check_refusal, write_recipe
from tests.sharing import catalogues

KNOWN = ["--data-licence", "MIT", "--weights-licence", "MIT", "--output-licence", "MIT"]


@pytest.fixture
def precompute(kdcache: Run, tmp_path: Path, dataset: Dataset) -> Run:
    """A function that runs precompute with options on a new cache, NAME."""
    recipe = write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())

    def run(*arguments: object) -> Outcome:
        name, views, *options = arguments
        return kdcache(
            *("precompute", "--data", dataset.root, "--teacher", TEACHER, *PLAIN, "--json"),
            *("--recipe", recipe, "--views", views, "--encoding", "topk:3"),
            *("--cache", tmp_path / str(name), "--catalogue", tmp_path / "catalogue", *options),
        )

    return run


def test_precompute_publishes_when_done_and_others_fetch_instead_of_computing(
    precompute: Run, tmp_path: Path
) -> None:
    first = precompute("first", 2, "--span-views", 1, "--publish", *KNOWN)
    assert first.code == 0, first.stderr
    assert "has no cache" in first.stderr
    assert (first.value["spans_computed"], first.value["published"]["spans_sent"]) == (6, 6)
    looked = precompute("second", 2, "--fetch", *KNOWN)
    assert looked.code == 0, looked.stderr
    assert "all 2 views are there: fetching them" in looked.stderr
    assert (looked.value["spans_computed"], looked.value["spans_missing"]) == (0, 0)
    assert "published" not in looked.value
    second, there = (catalogues.files(tmp_path / name) for name in ("second", "first"))
    assert second == there


def test_what_precompute_publishes_has_a_name_and_a_signature(
    precompute: Run, kdcache: Run, tmp_path: Path
) -> None:
    made = kdcache("keys", "make", tmp_path / "key", "--name", "Vision team")
    assert made.code == 0, made.stderr
    told = ["--ref", "best", "--sign", tmp_path / "key", "--who", "Vision team"]
    done = precompute("first", 1, "--publish", *KNOWN, *told)
    assert done.code == 0, done.stderr
    assert done.value["published"]["ref"] == done.value["id"]
    shown = kdcache(
        "show", tmp_path / "catalogue", "best", "--json", "--trusted", f"{tmp_path}/key.pub"
    )
    assert shown.value["cache"] == done.value["id"]
    assert "Vision team" in shown.value["signed_by"]
    check_refusal(precompute("second", 1, "--ref", "best"), 2, "--ref: is of what is published")
    for wrong in (["--ref", "a b"], ["--sign", tmp_path / "none"], ["--who", "a\nb"]):
        refused = precompute("third", 1, "--publish", *KNOWN, *wrong)
        assert refused.code == 2
        assert not (tmp_path / "third").exists()


def test_a_name_in_the_environment_is_no_wish_to_publish(
    precompute: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_WHO", "Team E")
    assert precompute("first", 1, "--publish", *KNOWN).value["published"]["spans_sent"] == 3
    found = precompute("second", 1)
    assert found.code == 0, found.stderr


def test_precompute_computes_what_is_not_there_and_publishes_that(
    precompute: Run, tmp_path: Path
) -> None:
    precompute("first", 2, "--span-views", 1, "--publish", *KNOWN)
    said = precompute("second", 3, "--fetch", "--publish", *KNOWN)
    assert said.code == 0, said.stderr
    assert "views 0..1 of 3 are there" in said.stderr
    assert said.value["spans_computed"] == 3
    published = said.value["published"]
    assert (published["spans_sent"], published["spans_there"], published["views"]) == (3, 6, 3)
    assert published["complete"]


def test_precompute_only_looks_unless_told(precompute: Run) -> None:
    precompute("first", 1, "--publish", "--licence-unknown")
    alone = precompute("second", 1)
    assert "all 1 views are there" in alone.stderr
    assert alone.value["spans_computed"] == 3


def test_licences_are_checked_before_anything_is_computed(precompute: Run, tmp_path: Path) -> None:
    check = precompute("cache", 1, "--publish", *KNOWN[:2])
    assert check.code == 2
    assert "licence of weights, output: not known" in check.stderr
    assert not (tmp_path / "cache").exists()


def test_what_nobody_signed_is_not_fetched_where_that_is_required(
    precompute: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    precompute("first", 1, "--publish", "--licence-unknown")
    refused = precompute("second", 1, "--fetch", "--require-signature")
    assert refused.code == 6
    assert "no signature" in refused.stderr
    assert not (tmp_path / "second").exists()


def test_options_of_a_catalogue_need_one(kdcache: Run, tmp_path: Path, dataset: Dataset) -> None:
    for option in ("--fetch", "--publish", "--require-signature", "--licence-unknown"):
        outcome = kdcache(
            *("precompute", "--data", dataset.root, "--teacher", TEACHER, *PLAIN),
            *("--recipe", "funmatch", "--views", 1, "--cache", tmp_path / "c", option),
        )
        check_refusal(outcome, 2, f"{option}: name the catalogue with --catalogue")
