import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.sharing.catalogue import Catalogue
from kdcache.sharing.publish import publish
from kdcache.sharing.rebuild import rebuild
from tests import tiny
from tests.sharing import catalogues
from tests.sharing.catalogues import TEAM, Lagging, Watching

PUBLISHERS = 8


def _publish(path: Path, place: Path, who: str) -> None:
    publish(open_cache(path), catalogues.new(place), replace(TEAM, who=who))


def _publish_all(races: list[tuple[list[Path], Path]]) -> None:
    """Publish each cache in a process of its own, forked from one that has asked no store."""
    for paths, place in races:
        children = [
            tiny.start(_publish, path, place, f"publisher {number}")
            for number, path in enumerate(paths)
        ]
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * len(paths)


SLICED: dict[str, Any] = {"rows": (3, 2), "num_views": 8, "span_views": 1}


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Catalogues that eight processes published in: one cache, and slices of one cache."""
    path = tmp_path_factory.mktemp("raced")
    cache = catalogues.part(path / "cache")
    spans = list(catalogues.part(path / "none", [], **SLICED).grid.spans())
    slices = [
        catalogues.part(path / f"slice {number}", spans[number::PUBLISHERS], **SLICED).path
        for number in range(PUBLISHERS)
    ]
    races = [([cache.path] * PUBLISHERS, path / "same"), (slices, path / "slices")]
    parent = multiprocessing.get_context("spawn").Process(target=_publish_all, args=(races,))
    parent.start()
    parent.join()
    assert parent.exitcode == 0
    return path


def test_eight_publishers_of_one_cache_race_harmlessly(raced: Path, tmp_path: Path) -> None:
    cache, catalogue = open_cache(raced / "cache"), catalogues.new(raced / "same")
    published = catalogue.published(cache.info.id)
    catalogues.check_whole(published)
    assert published.manifest.is_complete
    (contribution,) = published.manifest.contributions
    assert contribution.spans == 6
    catalogues.fetch(published, tmp_path / "out")
    seal(cache)
    assert catalogues.files(tmp_path / "out") == catalogues.files(cache.path)
    found = rebuild(catalogue)
    assert (found.mended, found.damaged) == ((), ())
    assert catalogue.index().caches.keys() == {cache.info.id}


def test_eight_publishers_of_slices_of_one_cache_end_with_the_union(
    raced: Path, tmp_path: Path
) -> None:
    catalogue = catalogues.new(raced / "slices")
    published = catalogue.published(open_cache(raced / "none").info.id)
    catalogues.check_whole(published)
    assert published.manifest.is_complete
    assert sorted(c.spans for c in published.manifest.contributions) == [2] * PUBLISHERS
    catalogues.fetch(published, tmp_path / "out")
    assert not open_cache(tmp_path / "out").missing()
    assert rebuild(catalogue).mended == ()


@pytest.mark.parametrize("at", ["values/c/0/0/0/0", "witness/c/0/0/0", "commits/0-0.json"])
def test_two_publishers_of_one_span_with_other_objects_leave_that_of_one(
    tmp_path: Path, at: str
) -> None:
    ours = catalogues.part(tmp_path / "ours", [Span(0, 0)])
    theirs = catalogues.part(tmp_path / "theirs", [Span(0, 0)], seed=1)
    place, begun = tmp_path / "catalogue", []

    def before(name: str) -> None:
        if name.endswith(at) and not begun:
            begun.append(name)
            catalogues.send(theirs, catalogues.new(place))

    publish(ours, Catalogue(place, store=Watching(place, before=before)), TEAM)
    assert begun
    published = Catalogue(place).published(ours.info.id)
    catalogues.check_whole(published)
    fetched = catalogues.fetch(published, tmp_path / "out")
    assert (fetched.spans, fetched.damaged) == ((Span(0, 0),), ())


def test_a_span_that_comes_while_the_manifest_is_made_is_in_it(tmp_path: Path) -> None:
    ours = catalogues.part(tmp_path / "ours", [Span(0, 0)])
    other = catalogues.part(tmp_path / "other", [Span(1, 0), Span(2, 1)])
    place, begun = tmp_path / "catalogue", []

    def before(name: str) -> None:
        if name.endswith("/manifest.json") and not begun:
            begun.append(name)
            _lay_down(other, place)

    sent = publish(ours, Catalogue(place, store=Watching(place, before=before)), TEAM)
    assert sent.published.manifest.spans == 3
    catalogues.check_whole(sent.published)


def test_a_listing_that_shows_what_was_sent_later_leaves_nothing_out(tmp_path: Path) -> None:
    spans = list(catalogues.part(tmp_path / "none", []).grid.spans())
    place, manifests = tmp_path / "catalogue", []
    for number, chosen in enumerate((spans[:2], spans[2:])):
        cache = catalogues.part(tmp_path / f"part {number}", chosen)
        catalogue = Catalogue(place, store=Lagging(place))
        manifests.append(publish(cache, catalogue, TEAM).published.manifest)
        catalogues.check_whole(catalogue.published(cache.info.id))
        assert catalogue.index().caches.keys() == {cache.info.id}
    assert [manifest.spans for manifest in manifests] == [2, 6]
    assert [len(manifest.contributions) for manifest in manifests] == [1, 2]
    assert rebuild(Catalogue(place)).mended == ()


def _lay_down(cache: Cache, place: Path) -> None:
    """Put a cache's spans in a catalogue as a publisher does who dies before the manifest."""
    for name, data in catalogues.files(cache.path).items():
        if "/c/" in name or name.startswith("commits/"):
            path = place / "caches" / cache.info.id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
