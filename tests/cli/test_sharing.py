"""Claims about the commands of catalogues: what they print, their exit codes, two teams."""

import json
from pathlib import Path

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.sealing import seal
from kdcache.cache.store import open_cache
from tests.cli.conftest import Run
from tests.cli.making import check_refusal
from tests.sharing import catalogues, signing

LICENCES = ["--licence-data", "cc-by-4.0", "--licence-weights", "MIT"]
LICENCES += ["--licence-output", "LicenseRef-ours"]


@pytest.fixture
def place(tmp_path: Path, kdcache: Run) -> Path:
    """A catalogue with a complete cache, named best, and a part of another one."""
    cache = catalogues.part(tmp_path / "cache")
    part = catalogues.part(tmp_path / "part", [Span(0, 0), Span(1, 0)], teacher="u", num_classes=9)
    found = tmp_path / "catalogue"
    done = kdcache("publish", cache.path, found, *LICENCES, "--ref", "best", "--who", "Team A")
    assert (done.code, done.stderr) == (0, "")
    assert "6 spans of 4 views" in done.stdout
    done = kdcache("publish", part.path, found, "--licence-unknown", "--json")
    assert (done.value["spans_sent"], done.value["complete"]) == (2, False)
    return found


def _ids(found: Path) -> list[str]:
    return sorted(path.name for path in (found / "caches").iterdir())


def test_publish_refuses_licences_that_nobody_knows(kdcache: Run, tmp_path: Path) -> None:
    cache = catalogues.part(tmp_path / "cache", [Span(0, 0)])
    found = tmp_path / "catalogue"
    asked = kdcache("publish", cache.path, found, "--licence-data", "MIT")
    check_refusal(asked, 2, "licence of weights, output: not known", "--licence-unknown")
    asked = kdcache("publish", cache.path, found, *LICENCES, "--licence-data", "my own")
    check_refusal(asked, 2, "--licence-data", "no licence of the SPDX list")
    assert not found.exists()
    given = kdcache("publish", cache.path, found, *LICENCES, "--json").value["licences"]
    assert given == {"data": "CC-BY-4.0", "weights": "MIT", "output": "LicenseRef-ours"}


def test_licences_that_are_published_need_not_be_given_again(
    kdcache: Run, place: Path, tmp_path: Path
) -> None:
    again = kdcache("publish", tmp_path / "cache", place, "--json")
    assert (again.code, again.value["spans_there"]) == (0, 6)
    assert again.value["licences"]["data"] == "CC-BY-4.0"
    other = kdcache("publish", tmp_path / "cache", place, "--licence-data", "MIT")
    check_refusal(other, 3, "published with the data licence CC-BY-4.0, here it is MIT")


@pytest.mark.parametrize("name", ["refs/best", "caches/ID"])
@pytest.mark.parametrize(
    ("command", "options"),
    [("extend", ["--views", 8]), ("merge", ["cache"]), ("repair", ["--from", "cache"])],
)
def test_nothing_is_written_into_a_published_cache(
    kdcache: Run, place: Path, tmp_path: Path, command: str, options: list[object], name: str
) -> None:
    complete = next(i for i in _ids(place) if open_cache(place / "caches" / i).missing() == [])
    target = place / name.replace("ID", complete)
    next((place / "caches" / complete).rglob("values/c/0/0/0/0")).unlink()
    before = catalogues.files(place)
    given = [tmp_path / "cache" if option == "cache" else option for option in options]
    told = kdcache(command, target, *given)
    check_refusal(told, 2, ": is published", "kdcache fetch")
    assert catalogues.files(place) == before


def test_licences_are_corrected_by_who_says_so(kdcache: Run, place: Path, tmp_path: Path) -> None:
    given = ["--again", "--licence-data", "MIT", "--json"]
    done = kdcache("publish", tmp_path / "cache", place, *given)
    assert (done.code, done.value["licences"]["data"]) == (0, "MIT"), done.stderr
    again = kdcache("publish", tmp_path / "cache", place, "--again", "--json")
    assert again.value["licences"]["data"] == "MIT"


def test_a_place_that_is_no_catalogue_is_left_alone(kdcache: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for command in ("find", "rebuild", "gc"):
        asked = kdcache(command, tmp_path / "photos")
        check_refusal(asked, 2, "photos: no catalogue here", "kdcache publish")
    assert list((tmp_path / "photos").iterdir()) == []


def test_a_new_folder_is_named_as_one(kdcache: Run, place: Path, tmp_path: Path) -> None:
    done = kdcache("publish", tmp_path / "cache", tmp_path / "new", *LICENCES, "--ref", "mine")
    assert f"{tmp_path / 'new'}, a new folder here" in done.stdout
    again = kdcache("publish", tmp_path / "cache", place, "--who", "Team B")
    for words in ("licences", "data CC-BY-4.0", "published by", "Team B"):
        assert words in again.stdout
    assert "a new folder" not in again.stdout


def test_whoever_publishes_over_a_signature_is_told(kdcache: Run, tmp_path: Path) -> None:
    part = catalogues.part(tmp_path / "part", [Span(0, 0)])
    kdcache("keys", "make", tmp_path / "key", "--name", "A")
    done = kdcache("publish", part.path, tmp_path / "c", *LICENCES, "--sign", tmp_path / "key")
    assert "signed with" in done.stdout
    whole = catalogues.part(tmp_path / "whole")
    more = kdcache("publish", whole.path, tmp_path / "c")
    assert "until somebody runs kdcache sign" in more.stdout


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_path_into_a_catalogue_is_told_how_to_go_on(
    kdcache: Run, place: Path, command: str
) -> None:
    check_refusal(kdcache(command, place), 2, "a catalogue: give", "refs/NAME")
    check_refusal(kdcache(command, place / "refs" / "bset"), 2, "no such ref; kdcache find")
    check_refusal(kdcache(command, place / "caches" / "0123"), 2, "give the whole id")
    assert kdcache(command, place / "refs" / "best").code == 0


def test_who_publishes_is_an_option_or_the_environment(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_WHO", "Team E")
    for number, options in enumerate(([], ["--who", "Team O"])):
        cache = catalogues.part(tmp_path / f"{number}", [Span(number, 0)])
        kdcache("publish", cache.path, tmp_path / "c", "--licence-unknown", *options)
    shown = kdcache("show", tmp_path / "c", _ids(tmp_path / "c")[0], "--json").value
    assert {part["who"] for part in shown["contributions"]} == {"Team E", "Team O"}
    for name in ("", "x" * 201):
        asked = kdcache("publish", cache.path, tmp_path / "c", "--licence-unknown", "--who", name)
        check_refusal(asked, 2, "expected a name")


def test_find_lists_what_is_wanted(kdcache: Run, place: Path) -> None:
    both = kdcache("find", place)
    assert (both.code, both.stderr) == (0, "")
    assert len(both.stdout.splitlines()) == 3
    assert "best" in both.stdout
    assert "1 of 4" in both.stdout
    caches = {
        cache["teacher"]["id"]: cache for cache in kdcache("find", place, "--json").value["caches"]
    }
    assert [caches[t]["complete"] for t in "tu"] == [True, False]
    dataset, recipe = (caches["t"][name]["id"] for name in ("dataset", "recipe"))
    for options, teachers in (
        (["--dataset", dataset], "tu"),
        (["--dataset", dataset[:10]], "tu"),
        (["--dataset", "0" * 10], ""),
        (["--recipe", recipe[:8]], "tu"),
        (["--recipe", "funmatch"], ""),
        (["--teacher", "none"], "tu"),
        (["--teacher", "u"], "u"),
        (["--classes", 9], "u"),
        (["--licence", "cc-by"], "t"),
        (["--views", 4], "tu"),
        (["--views", 5], ""),
        (["--classes", 5, "--licence", "ours"], "t"),
    ):
        found = kdcache("find", place, *options, "--json").value["caches"]
        assert {cache["teacher"]["id"] for cache in found} == set(teachers), options
    none = kdcache("find", place, "--views", 5).stdout
    count = caches["t"]["dataset"]["num_samples"]
    assert f"no such cache, of 2 that are there, of images {count} ({dataset[:8]}); kdcache" in none
    assert f"kdcache find {place} lists all\n" in none
    check_refusal(kdcache("find", place, "--recipe", "nothing"), 2, "--recipe", "funmatch")
    check_refusal(kdcache("find", place.parent / "none"), 2, "no such folder")


def test_show_lists_the_caches_of_a_catalogue_of_which_none_is_named(
    kdcache: Run, place: Path
) -> None:
    for options in ([], ["--json"]):
        shown, found = (kdcache(command, place, *options) for command in ("show", "find"))
        assert (shown.code, shown.stdout) == (0, found.stdout)
    check_refusal(kdcache("show", place, "--images", 3), 2, "--images: has no effect on the list")


def test_show_says_what_a_cache_is_and_who_signed_it(
    kdcache: Run, place: Path, tmp_path: Path
) -> None:
    signing.make_signer(tmp_path, "Team A")
    signing.trusting(tmp_path, "Team A")
    trusted = ["--trusted", tmp_path / "trusted"]
    unsigned = kdcache("show", place, "best", *trusted)
    assert (unsigned.code, unsigned.stderr) == (0, "")
    for words in ("Team A", "CC-BY-4.0", "complete", "no: no signature", "best"):
        assert words in unsigned.stdout
    out = ["fetch", place, "best", tmp_path / "out", "--require-signature", *trusted]
    check_refusal(kdcache(*out), 6, "no signature")
    assert not (tmp_path / "out").exists()
    signed = kdcache("sign", place, "best", "--key", tmp_path / "Team A")
    assert (signed.code, signed.stderr) == (0, "")
    shown = kdcache("show", place, "best", *trusted, "--json").value
    assert (shown["signed_by"], shown["doubt"], shown["refs"]) == ("Team A", None, ["best"])
    assert kdcache(*out, "--json").value["signed_by"] == "Team A"


def test_publish_signs(kdcache: Run, tmp_path: Path) -> None:
    signing.make_signer(tmp_path, "us")
    signing.trusting(tmp_path, "us")
    cache = catalogues.part(tmp_path / "cache")
    kdcache("publish", cache.path, tmp_path / "c", "--licence-unknown", "--sign", tmp_path / "us")
    (cache_id,) = _ids(tmp_path / "c")
    trusted = ["--trusted", tmp_path / "trusted", "--json"]
    assert kdcache("show", tmp_path / "c", cache_id, *trusted).value["signed_by"] == "us"


def test_fetch_brings_the_whole_cache_or_a_part(kdcache: Run, place: Path, tmp_path: Path) -> None:
    whole = kdcache("fetch", place, "best", tmp_path / "whole")
    assert (whole.code, whole.stderr) == (0, "")
    assert "complete" in whole.stdout
    seal(open_cache(tmp_path / "cache"))
    assert catalogues.files(tmp_path / "whole") == catalogues.files(tmp_path / "cache")
    part = kdcache(
        "fetch",
        place,
        "best",
        tmp_path / "some",
        "--views",
        4,
        "--from",
        2,
        "--tars",
        "0..1",
        "--json",
    )
    assert (part.code, part.value["spans_fetched"], part.value["spans_missing"]) == (0, 2, 4)
    again = kdcache("fetch", place, "best", tmp_path / "whole", "--json").value
    assert (again["spans_fetched"], again["spans_there"]) == (0, 6)
    check_refusal(kdcache("fetch", place, "best", tmp_path / "odd", "--views", 3), 2, "spans of 2")


def test_fetch_says_what_is_not_published(kdcache: Run, place: Path, tmp_path: Path) -> None:
    found = kdcache("find", place, "--teacher", "u", "--json").value["caches"][0]["cache"]
    outcome = kdcache("fetch", place, found[:8], tmp_path / "out", "--json")
    assert outcome.code == 4
    assert outcome.value["spans_unpublished"] == ["0-1", "1-1", "2-0", "2-1"]
    assert "4 spans are not published, the first is 0-1" in outcome.stderr


def test_fetch_names_what_was_tampered_with(kdcache: Run, place: Path, tmp_path: Path) -> None:
    cache = json.loads((place / "refs/best.json").read_bytes())["cache"]
    path = place / "caches" / cache / "values/c/1/0/0/0"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    outcome = kdcache("fetch", place, "best", tmp_path / "out", "--json")
    assert outcome.code == 5
    assert "values/c/1/0/0/0: its sha256 differs" in outcome.stderr
    assert outcome.value["spans_fetched"] == 5
    again = kdcache("publish", tmp_path / "cache", place, *LICENCES, "--again")
    assert again.code == 0
    assert kdcache("fetch", place, "best", tmp_path / "out").code == 0


def test_ref_sets_and_prints_with_history(kdcache: Run, place: Path) -> None:
    one, other = _ids(place)
    for cache in (one, other):
        kdcache("ref", place, "latest", cache[:9], "--who", "us")
    value = kdcache("ref", place, "latest", "--json").value
    assert value["cache"] == other
    assert [change["cache"] for change in value["history"]] == [one, other]
    assert json.loads((place / "catalog.json").read_bytes())["refs"].keys() == {"best", "latest"}
    check_refusal(kdcache("ref", place, "nothing"), 2, "has no ref nothing")
    check_refusal(kdcache("ref", place, "../x", one), 2, "expected a name")


def test_rebuild_and_gc_say_what_they_did(kdcache: Run, place: Path) -> None:
    (place / "catalog.json").unlink()
    assert kdcache("rebuild", place, "--json").value == {"caches": 2, "mended": [], "damaged": []}
    assert (place / "catalog.json").exists()
    one = _ids(place)[0]
    (place / "caches" / one / "left").write_bytes(b"over")
    assert kdcache("gc", place, "--json").value["objects"] == []
    dry = kdcache("gc", place, "--days", 0, "--json").value
    assert (dry["objects"], dry["size_bytes"]) == ([f"caches/{one}/left"], 4)
    assert "to be deleted with --delete" in kdcache("gc", place, "--days", 0).stdout
    assert kdcache("gc", place, "--days", 0, "--delete").code == 0
    assert not (place / "caches" / one / "left").exists()
    assert "nothing" in kdcache("gc", place, "--days", 0).stdout
    (place / "caches" / one / "manifest.json").write_bytes(b"{}")
    check_refusal(kdcache("rebuild", place), 5, "1 thing is damaged")
