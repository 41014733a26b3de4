import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import CorruptError, UsageError
from kdcache.sharing.catalogue import Catalogue, open_catalogue
from kdcache.sharing.names import set_ref
from kdcache.sharing.publish import publish
from kdcache.sharing.rebuild import rebuild
from tests.sharing import catalogues
from tests.sharing.catalogues import TEAM, WHEN

FEW: dict[str, Any] = {"rows": (2,), "num_views": 1, "span_views": 1, "encoding": "dense:f2"}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """A catalogue of two caches."""
    found = catalogues.new(tmp_path / "catalogue")
    for teacher in ("t", "u"):
        catalogues.send(catalogues.part(tmp_path / teacher, teacher=teacher, **FEW), found)
    return found


def test_a_cache_is_named_by_its_id_its_first_digits_or_a_ref(catalogue: Catalogue) -> None:
    one, other = catalogue.ids()
    set_ref(catalogue, "best", other, who="us")
    assert [catalogue.resolve(text) for text in (one, one[:8], other[:20], "best")] == [
        *(one, one, other, other)
    ]


@pytest.mark.parametrize(
    "text", ["0" * 64, "0" * 8, "none", "", "../x", "a/b", "A" * 200, "0" * 7, "\x1b[2J", "BEST"]
)
def test_what_names_no_cache_is_refused(catalogue: Catalogue, text: str) -> None:
    with pytest.raises(UsageError, match="has no cache") as told:
        catalogue.resolve(text)
    assert "\x1b" not in str(told.value)


def test_digits_that_begin_several_ids_are_refused_with_the_candidates(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    one, other = catalogue.ids()
    twin = one[:12] + other[12:]
    folder = tmp_path / "catalogue" / "caches" / twin
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match=f"{one[:8]} begins the ids of 2 caches: {one[:12]}"):
        catalogue.resolve(one[:8])
    assert catalogue.resolve(one[:30]) == one


def test_a_ref_keeps_what_it_was(catalogue: Catalogue) -> None:
    one, other = catalogue.ids()
    for cache, who in ((one, "us"), (other, "them"), (other, "nobody"), (one, "us")):
        ref = set_ref(catalogue, "best-1.0", cache, who=who, when=WHEN)
        assert catalogue.ref("best-1.0") == ref
    assert ref.cache == one
    assert [(c.cache, c.who) for c in ref.history] == [(one, "us"), (other, "them"), (one, "us")]
    assert catalogue.refs() == ({"best-1.0": ref}, {})


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "ä", "x" * 129, "deadbeef", "a b", "a\n"])
def test_a_name_that_is_none_is_no_ref(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(UsageError, match="expected a name of letters"):
        set_ref(catalogue, name, catalogue.ids()[0], who="us")


def test_a_ref_to_a_cache_that_is_not_there_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(UsageError, match="has no cache 000000000000"):
        set_ref(catalogue, "best", "0" * 64, who="us")
    one = catalogue.ids()[0]
    set_ref(catalogue, "best", one, who="us")
    catalogue.store.delete([f"caches/{one}/manifest.json"])
    with pytest.raises(UsageError, match="which is not there"):
        catalogue.resolve("best")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"cache": "../../x", "history": []}',
        '{"cache": 1, "history": []}',
        '{"cache": "' + "0" * 64 + '", "history": [], "more": 1}',
        "[" * 100_000,
    ],
)
def test_a_damaged_ref_is_refused_and_named_and_can_be_set_again(
    catalogue: Catalogue, text: str
) -> None:
    catalogue.store.write("refs/best.json", text.encode())
    with pytest.raises(CorruptError, match=r"refs/best\.json: damaged"):
        catalogue.resolve("best")
    good, bad = catalogue.refs()
    assert (good, list(bad)) == ({}, ["best"])
    one = catalogue.ids()[0]
    set_ref(catalogue, "best", one, who="us")
    assert catalogue.resolve("best") == one


def test_a_small_object_that_is_large_is_not_read(catalogue: Catalogue) -> None:
    catalogue.store.write("refs/best.json", b" " * ((1 << 24) + 1))
    with pytest.raises(CorruptError, match="at most"):
        catalogue.ref("best")


def test_catalog_json_says_what_the_manifests_say(catalogue: Catalogue, tmp_path: Path) -> None:
    one, _ = catalogue.ids()
    set_ref(catalogue, "best", one, who="us")
    rebuild(catalogue)
    index = catalogue.index()
    summaries, damaged = catalogue.summaries()
    assert (index.caches, damaged) == (summaries, {})
    assert index.refs.keys() == {"best"}
    for cache, summary in summaries.items():
        manifest = catalogue.manifest(cache)
        assert summary.size_bytes == manifest.size_bytes
        assert summary.contributions == manifest.contributions


def test_whoever_publishes_next_adds_what_catalog_json_lost(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    ids = set(catalogue.ids())
    for text in (b'{"format":1,"caches":{},"refs":{}}', b"damaged", None):
        if text is None:
            catalogue.store.delete(["catalog.json"])
        else:
            catalogue.store.write("catalog.json", text)
        catalogues.send(catalogues.part(tmp_path / f"v{text!r:.9}", teacher="v", **FEW), catalogue)
        assert catalogue.index().caches.keys() > ids


def test_a_damaged_manifest_hides_no_other_cache(catalogue: Catalogue) -> None:
    one, other = catalogue.ids()
    catalogue.store.write(f"caches/{one}/manifest.json", b"{}")
    summaries, damaged = catalogue.summaries()
    assert (list(summaries), list(damaged)) == ([other], [one])
    assert "no manifest of a cache" in damaged[one]
    found = rebuild(catalogue)
    assert found.caches == 1
    assert len(found.damaged) == 1
    assert list(catalogue.index().caches) == [other]


def test_a_publisher_names_a_ref_at_once(catalogue: Catalogue, tmp_path: Path) -> None:
    cache = catalogues.part(tmp_path / "cache", teacher="w", **FEW)
    sent = publish(cache, catalogue, replace(TEAM, ref="newest"))
    assert sent.ref == catalogue.ref("newest")
    assert catalogue.index().refs["newest"].cache == cache.info.id
    text = json.loads(catalogue.store.read("refs/newest.json"))
    assert text["history"] == [{"cache": cache.info.id, "when": WHEN, "who": "a team"}]


def test_a_folder_that_is_not_there_is_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_catalogue(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no such folder"):
        open_catalogue(tmp_path / "file", create=True)
    with pytest.raises(UsageError, match="unknown kind of store"):
        open_catalogue("ftp://host/x")
    assert not (tmp_path / "none").exists()
    assert open_catalogue(tmp_path).ids() == []
    assert open_catalogue(tmp_path).refs() == ({}, {})
