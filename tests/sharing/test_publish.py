import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.extend import extend_cache
from kdcache.cache.layout import Span
from kdcache.cache.metadata import ROOT
from kdcache.cache.published import Licences
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, IncompleteError, MismatchError, UsageError
from kdcache.sharing.catalogue import Catalogue, Published
from kdcache.sharing.draft import choose_contributions, contribute, contribution_name
from kdcache.sharing.publish import publish
from kdcache.sharing.rebuild import rebuild
from kdcache.stores.location import Location
from tests.cache import filling
from tests.sharing import catalogues
from tests.sharing.catalogues import TEAM, Dying, KilledError, Watching

SMALL: dict[str, Any] = {"rows": (3,), "num_views": 2, "span_views": 1, "encoding": "dense:f2"}


def test_a_published_cache_is_the_local_one_and_what_tells_of_it(tmp_path: Path) -> None:
    cache, catalogue = catalogues.part(tmp_path / "cache"), catalogues.new(tmp_path / "catalogue")
    sent = catalogues.send(cache, catalogue)
    seal(cache)
    there = catalogues.files(tmp_path / "catalogue" / "caches" / cache.info.id)
    local = catalogues.files(cache.path)
    assert {name: data for name, data in there.items() if name in local} == local
    beside = {name.partition("/")[0] for name in there.keys() - local.keys()}
    assert beside == {"manifest.json", "croissant.json", "README.md", "contributions", "documents"}
    assert local.keys() < sent.published.manifest.objects.keys() | {"seal.json"}
    catalogues.check_whole(sent.published)
    open_cache(tmp_path / "catalogue" / "caches" / cache.info.id)


def test_a_manifest_says_what_the_cache_is_and_who_made_it(tmp_path: Path) -> None:
    cache = catalogues.part(tmp_path / "cache", unusable={1: (0,)})
    found = catalogues.send(cache, catalogues.new(tmp_path / "catalogue")).published.manifest
    assert (found.cache, found.num_classes, found.encoding) == (cache.info.id, 5, "topk:3")
    assert (found.views, found.span_views, found.spans) == (4, 2, 6)
    assert found.is_complete
    assert (found.dataset.id, found.dataset.num_samples) == (cache.info.dataset["id"], 16)
    assert found.recipe.text == cache.info.recipe.canonical()
    assert found.licences == catalogues.LICENCES
    (contribution,) = found.contributions
    assert (contribution.who, contribution.when, contribution.spans) == ("a team", TEAM.when, 6)
    wall = sum(cache.commit(span).seconds["wall"] for span in cache.grid.spans())
    assert contribution.device_hours == pytest.approx(wall / 3600, abs=1e-6)
    assert contribution.kdcache == "0"


def test_objects_go_before_their_record_and_these_before_the_manifest(tmp_path: Path) -> None:
    cache, store = catalogues.part(tmp_path / "cache"), Watching(tmp_path / "catalogue")
    publish(cache, Catalogue(store.place, store=store), replace(TEAM, ref="best"))
    names = [name.removeprefix(f"caches/{cache.info.id}/") for name in store.written]
    manifest = names.index("manifest.json")
    for span in cache.grid.spans():
        record = names.index(span.commit_name)
        assert all(names.index(name) < record for name in cache.object_names(span).values())
        assert record < manifest
    assert {"zarr.json", "seal.json", "rows/c/0", "uids/c/0/0"} < set(names[:manifest])
    assert names[manifest + 1 :] == ["refs/best.json", "catalog.json"]


def test_only_committed_spans_are_published_and_a_later_publish_adds_the_others(
    tmp_path: Path,
) -> None:
    filled, catalogue = filling.empty(tmp_path / "cache"), catalogues.new(tmp_path / "catalogue")
    spans = list(filled.cache.grid.spans())
    for span in spans[:2]:
        filled.write(span)
    first = catalogues.send(filled.cache, catalogue)
    assert first.sent == tuple(spans[:2])
    assert (first.published.manifest.spans, first.published.manifest.is_complete) == (2, False)
    assert "seal.json" not in first.published.manifest.objects
    for span in spans[2:]:
        filled.write(span)
    second = catalogues.send(filled.cache, catalogue)
    assert (second.sent, second.there) == (tuple(spans[2:]), 2)
    assert second.published.manifest.is_complete
    assert sorted(c.spans for c in second.published.manifest.contributions) == [2, 4]
    catalogues.check_whole(second.published)
    third = catalogues.send(filled.cache, catalogue)
    assert (third.sent, third.size_bytes, third.there) == ((), 0, 6)
    assert third.published.data == second.published.data


def test_spans_of_two_teams_make_one_cache_whoever_comes_first(tmp_path: Path) -> None:
    whole = catalogues.part(tmp_path / "whole", [])
    spans = list(whole.grid.spans())
    one = catalogues.part(tmp_path / "one", spans[::2])
    other = catalogues.part(tmp_path / "other", spans[1::2])
    made = []
    for order in ((one, other), (other, one)):
        catalogue = catalogues.new(tmp_path / f"by {order[0].path.name}")
        for cache in order:
            last = publish(cache, catalogue, replace(TEAM, who=cache.path.name))
        catalogues.check_whole(last.published)
        made.append(last.published.manifest)
    assert made[0] == made[1]
    assert made[0].is_complete
    assert {c.who: c.spans for c in made[0].contributions} == {"one": 3, "other": 3}


def test_the_larger_number_of_views_wins_whoever_comes_first(tmp_path: Path) -> None:
    small = catalogues.part(tmp_path / "small", num_views=2)
    spans = list(small.grid.with_views(6).spans())
    large = catalogues.part(tmp_path / "large", [s for s in spans if s.run > 0], num_views=6)
    made = []
    for order in ((small, large), (large, small)):
        catalogue = catalogues.new(tmp_path / f"by {order[0].path.name}")
        for cache in order:
            last = catalogues.send(cache, catalogue)
        catalogues.check_whole(last.published)
        assert (last.published.manifest.views, last.published.manifest.is_complete) == (6, True)
        made.append(last.published.manifest)
        root = catalogues.stored(catalogue, small.info.id, ROOT)
        assert json.loads(root.read_bytes())["attributes"]["kdcache"]["grid"]["views"] == 6
        open_cache(root.parent)
    assert made[0] == made[1]


def test_a_span_that_is_there_with_other_objects_stays(tmp_path: Path) -> None:
    catalogue = catalogues.new(tmp_path / "catalogue")
    spans = list(catalogues.part(tmp_path / "none", []).grid.spans())
    ours = catalogues.part(tmp_path / "ours", spans[:2])
    theirs = catalogues.part(tmp_path / "theirs", spans[1:3], seed=1)
    catalogues.send(theirs, catalogue)
    sent = catalogues.send(ours, catalogue)
    assert (sent.sent, sent.differing, sent.there) == ((spans[0],), (spans[1],), 1)
    record = catalogues.stored(catalogue, ours.info.id, spans[1].commit_name)
    assert record.read_bytes() == (theirs.path / spans[1].commit_name).read_bytes()
    assert sorted(c.spans for c in sent.published.manifest.contributions) == [1, 2]
    catalogues.check_whole(sent.published)


def test_a_damaged_local_object_is_refused_and_named(tmp_path: Path) -> None:
    cache, catalogue = catalogues.part(tmp_path / "cache"), catalogues.new(tmp_path / "catalogue")
    name = cache.object_names(Span(1, 0))["values"]
    data = bytearray((cache.path / name).read_bytes())
    data[5] ^= 1
    (cache.path / name).write_bytes(data)
    with pytest.raises(CorruptError, match=f"{name}: its sha256 differs"):
        catalogues.send(cache, catalogue)
    assert catalogue.find(cache.info.id) is None
    assert not catalogues.stored(catalogue, cache.info.id, name).exists()


def test_what_cannot_be_published_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    catalogue = catalogues.new(tmp_path / "catalogue")
    with pytest.raises(IncompleteError, match="no span is computed"):
        catalogues.send(catalogues.part(tmp_path / "empty", []), catalogue)
    cache = catalogues.part(tmp_path / "cache")
    with pytest.raises(UsageError, match="ref a/b"):
        publish(cache, catalogue, replace(TEAM, ref="a/b"))
    with pytest.raises(UsageError, match="HTTP is for reading"):
        catalogues.send(cache, Catalogue(Location("https://localhost/x")))
    assert not any((tmp_path / "catalogue").glob("*"))
    catalogues.send(cache, catalogue)
    before = catalogues.files(tmp_path / "catalogue")
    with pytest.raises(MismatchError, match="span_views 2, here 1"):
        catalogues.send(catalogues.part(tmp_path / "single", span_views=1), catalogue)
    with pytest.raises(MismatchError, match=r"data licence CC-BY-4\.0, here it is MIT"):
        publish(
            cache,
            catalogue,
            replace(TEAM, licences=Licences(data="MIT", weights=None, output=None)),
        )
    assert catalogues.files(tmp_path / "catalogue") == before


def test_licences_that_one_team_knows_complete_those_of_another(tmp_path: Path) -> None:
    cache, catalogue = catalogues.part(tmp_path / "cache"), catalogues.new(tmp_path / "catalogue")
    for data, output in (("MIT", None), (None, "CC0-1.0"), (None, None)):
        licences = Licences(data=data, weights=None, output=output)
        sent = publish(cache, catalogue, replace(TEAM, licences=licences))
    assert sent.published.manifest.licences == Licences(data="MIT", weights=None, output="CC0-1.0")


def test_publishing_again_mends_what_is_damaged(tmp_path: Path) -> None:
    cache, catalogue = catalogues.part(tmp_path / "cache"), catalogues.new(tmp_path / "catalogue")
    before = catalogues.send(cache, catalogue).published
    sound = catalogues.files(tmp_path / "catalogue")
    for name in (cache.object_names(Span(0, 0))["values"], "uids/c/0/0", "manifest.json", ROOT):
        path = catalogues.stored(catalogue, cache.info.id, name)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptError, match="uids/c/0/0"):
        before.read("uids/c/0/0")
    catalogues.send(cache, catalogue, again=True)
    assert catalogues.files(tmp_path / "catalogue") == sound


def test_objects_that_were_lost_are_sent_again(tmp_path: Path) -> None:
    cache, catalogue = catalogues.part(tmp_path / "cache"), catalogues.new(tmp_path / "catalogue")
    catalogues.send(cache, catalogue)
    sound = catalogues.files(tmp_path / "catalogue")
    lost = cache.object_names(Span(0, 0))["values"]
    catalogues.stored(catalogue, cache.info.id, lost).unlink()
    sent = catalogues.send(cache, catalogue)
    assert sent.sent == (Span(0, 0),)
    assert catalogues.files(tmp_path / "catalogue") == sound


def test_a_span_whose_objects_are_not_there_is_in_no_manifest(tmp_path: Path) -> None:
    catalogue = catalogues.new(tmp_path / "catalogue")
    spans = list(catalogues.part(tmp_path / "none", []).grid.spans())
    catalogues.send(catalogues.part(tmp_path / "one", spans[:1]), catalogue)
    other = catalogues.part(tmp_path / "other", spans[1:3])
    for name, damage in ((spans[1].commit_name, b"damaged"), (spans[2].commit_name, None)):
        data = (other.path / name).read_bytes() if damage is None else damage
        catalogues.stored(catalogue, other.info.id, name).write_bytes(data)
    found = rebuild(catalogue)
    assert (found.caches, found.mended) == (1, ())
    assert [("damaged record" in text, "missing" in text) for text in found.damaged] == [
        (True, False),
        (False, True),
    ]
    assert catalogue.manifest(other.info.id).spans == 1


def test_rebuild_mends_a_manifest_whose_publisher_died(tmp_path: Path) -> None:
    catalogue = catalogues.new(tmp_path / "catalogue")
    spans = list(catalogues.part(tmp_path / "none", []).grid.spans())
    catalogues.send(catalogues.part(tmp_path / "one", spans[:3]), catalogue)
    other = catalogues.part(tmp_path / "other", spans[3:])
    shutil.copytree(
        other.path,
        catalogues.stored(catalogue, other.info.id, "."),
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("zarr.json", ".lock"),
    )
    found = rebuild(catalogue)
    assert (found.mended, found.damaged) == ((other.info.id,), ())
    assert catalogue.manifest(other.info.id).is_complete
    catalogues.check_whole(catalogue.published(other.info.id))
    assert rebuild(catalogue).mended == ()


def test_contributions_of_the_same_records_count_once_and_damaged_ones_never(
    tmp_path: Path,
) -> None:
    cache = catalogues.part(tmp_path / "cache", **SMALL)
    spans = list(cache.grid.spans())
    texts = [_contribution(cache, spans, f"2026-01-0{day}") for day in (3, 2, 4)]
    texts.append(_contribution(cache, spans[:1], "2026-01-05"))
    found = {contribution_name(data): data for data in texts}
    chosen = choose_contributions(found | {"contributions/0123456789abcdef.json": texts[0]})
    assert [(c.when, c.spans) for c in chosen.values()] == [("2026-01-02", 2), ("2026-01-05", 1)]


def _contribution(cache: Cache, spans: list[Span], when: str) -> bytes:
    records = [(cache.path / span.commit_name).read_bytes() for span in spans]
    commits = [cache.commit(span) for span in spans]
    return contribute(commits, records, who="us", when=when, commit=None)


# --- killed ------------------------------------------------------------------------------------


def _publish_small(place: Path, path: Path, *, at: int | None = None) -> int:
    """Publish a cache by a process that dies before a request; return the number of requests."""
    store = Dying(place, at=at)
    publish(open_cache(path), Catalogue(place, store=store), replace(TEAM, ref="best"))
    return store.calls


@pytest.mark.parametrize("first", [1, 2, 3])  # in parts, which run beside each other
def test_a_publish_that_is_killed_shows_nothing_and_goes_on(tmp_path: Path, first: int) -> None:
    catalogues.part(tmp_path / "cache", **SMALL)
    calls = _publish_small(tmp_path / "whole", tmp_path / "cache")
    expected = catalogues.files(tmp_path / "whole")
    assert calls > 40
    seen = set()
    for at in range(first, calls + 1, 3):
        place = tmp_path / f"killed {at}"
        with pytest.raises(KilledError):
            _publish_small(place, tmp_path / "cache", at=at)
        seen.add(_visible(Catalogue(place)))
        _publish_small(place, tmp_path / "cache")
        assert catalogues.files(place) == expected, at
    assert seen == {None, 2}


def _visible(catalogue: Catalogue) -> int | None:
    """Return the number of spans of the one cache of a catalogue, all of which are there."""
    if not isinstance(catalogue.place, Path) or not catalogue.place.is_dir():
        return None
    found: list[Published] = [catalogue.published(cache) for cache in catalogue.ids()]
    for published in found:
        catalogues.check_whole(published)
    return found[0].manifest.spans if found else None


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_publish_of_more_views_that_is_killed_leaves_the_older_cache_or_the_newer(
    tmp_path: Path, first: int
) -> None:
    filled = filling.full(tmp_path / "cache", **{**SMALL, "num_views": 1})
    _publish_small(tmp_path / "before", tmp_path / "cache")
    filled.cache = extend_cache(tmp_path / "cache", num_views=2)
    filled.write(Span(0, 1))
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    calls = _publish_small(tmp_path / "whole", tmp_path / "cache")
    expected = catalogues.files(tmp_path / "whole")
    seen = set()
    for at in range(first, calls + 1, 3):
        place = shutil.copytree(tmp_path / "before", tmp_path / f"killed {at}")
        with pytest.raises(KilledError):
            _publish_small(place, tmp_path / "cache", at=at)
        seen.add(_visible(Catalogue(place)))
        if at % 4 == 0:
            _publish_small(place, tmp_path / "cache")
            assert catalogues.files(place) == expected, at
    assert seen == {1, 2}
