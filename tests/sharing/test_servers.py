"""Claims about catalogues in a bucket and behind HTTP: real servers, and faults before them."""

import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.sealing import seal
from kdcache.cache.store import open_cache
from kdcache.errors import CorruptError, UsageError
from kdcache.sharing.catalogue import Catalogue, open_catalogue
from kdcache.sharing.gc import delete_waste, find_waste
from kdcache.sharing.names import set_ref
from kdcache.sharing.publish import publish
from kdcache.sharing.rebuild import rebuild
from tests.servers import faults, static, swift
from tests.sharing import catalogues
from tests.sharing.catalogues import TEAM

FEW = {"rows": (4, 3), "num_views": 2, "span_views": 1, "encoding": "dense:f2"}
BUCKETS = count()


@pytest.fixture
def catalogue(swift_server: swift.Swift, s3: faults.Proxy) -> Catalogue:
    """An empty catalogue in a new bucket, behind the proxy."""
    return Catalogue(swift_server.create_bucket(f"sharing{next(BUCKETS)}") / "our/catalogue")


def test_a_bucket_serves_as_a_folder_does(catalogue: Catalogue, tmp_path: Path) -> None:
    whole = catalogues.part(tmp_path / "whole", **FEW)
    seal(whole)
    spans = list(whole.grid.spans())
    assert (catalogue.ids(), catalogue.refs()) == ([], ({}, {}))
    for number, chosen in enumerate((spans[:1], spans[1:])):
        cache = catalogues.part(tmp_path / f"part {number}", chosen, **FEW)
        sent = publish(cache, catalogue, replace(TEAM, ref="best"))
    folder = catalogues.new(tmp_path / "folder")
    for number in range(2):
        catalogues.send(open_cache(tmp_path / f"part {number}"), folder)
    assert sent.published.data == folder.published(whole.info.id).data
    assert catalogue.ids() == [whole.info.id]
    assert catalogue.resolve("best") == catalogue.resolve(whole.info.id[:8]) == whole.info.id
    assert catalogue.index().caches.keys() == catalogue.summaries()[0].keys() == {whole.info.id}
    assert rebuild(catalogue).mended == ()
    catalogues.fetch(catalogue.published(whole.info.id), tmp_path / "out")
    out = catalogues.files(tmp_path / "out")
    data = {name: text for name, text in out.items() if not name.startswith("commits/")}
    assert data.items() <= catalogues.files(whole.path).items()


def test_a_publish_through_faults_is_whole_or_not_seen(
    catalogue: Catalogue, s3: faults.Proxy, tmp_path: Path
) -> None:
    cache = catalogues.part(tmp_path / "cache", **{**FEW, "rows": (4,)})
    kinds = [faults.reset, faults.lost_reply, faults.s3_error(503, "SlowDown"), faults.status(500)]
    plans = [faults.every(7 + 2 * number, kind) for number, kind in enumerate(kinds)]
    s3.plan = lambda request: next((f for plan in plans if (f := plan(request))), None)
    sent = catalogues.send(cache, catalogue)
    catalogues.check_whole(sent.published)
    assert len(s3.asked()) > 70
    catalogues.fetch(sent.published, tmp_path / "out")
    seal(cache)
    assert catalogues.files(tmp_path / "out") == catalogues.files(cache.path)


def test_expired_credentials_stop_a_publish_that_goes_on_later(
    catalogue: Catalogue, s3: faults.Proxy, tmp_path: Path
) -> None:
    cache = catalogues.part(tmp_path / "cache", **FEW)
    s3.plan = faults.after(9, faults.s3_error(403, "ExpiredToken"), of="PUT")
    with pytest.raises(UsageError, match="the store refuses"):
        catalogues.send(cache, catalogue)
    s3.plan = None
    assert catalogue.find(cache.info.id) is None
    before = len(s3.asked("PUT"))
    sent = catalogues.send(cache, catalogue)
    catalogues.check_whole(sent.published)
    assert 0 < sent.there < 4
    assert len(s3.asked("PUT")) - before < 40


def test_truncated_objects_are_refused_and_named(
    catalogue: Catalogue, s3: faults.Proxy, tmp_path: Path
) -> None:
    cache = catalogues.part(tmp_path / "cache", **FEW)
    published = catalogues.send(cache, catalogue).published
    name = f"caches/{published.id}/{cache.object_names(Span(0, 0))['logits']}"
    catalogue.store.write(name, catalogue.store.read(name)[:-1])
    fetched = catalogues.fetch(published, tmp_path / "out")
    assert len(fetched.damaged) == 1
    assert name in fetched.damaged[0]
    assert open_cache(tmp_path / "out").missing() == [Span(0, 0)]


def test_waste_in_a_bucket_is_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    published = catalogues.send(catalogues.part(tmp_path / "cache", **FEW), catalogue).published
    catalogue.store.write(f"caches/{published.id}/left", b"over")
    catalogue.store.write(f"caches/{'0' * 64}/values/c/0/0/0/0", b"left")
    waste = find_waste(catalogue, older_than_s=-60)
    assert len(waste.names) == 2
    assert delete_waste(catalogue, waste, older_than_s=-60).names == waste.names
    catalogues.check_whole(catalogue.published(published.id))
    assert find_waste(catalogue, older_than_s=-60).names == []


def test_http_without_listing_is_for_reading(tmp_path: Path) -> None:
    cache = catalogues.part(tmp_path / "cache", **FEW)
    folder = catalogues.new(tmp_path / "served" / "catalogue")
    publish(cache, folder, replace(TEAM, ref="best"))
    seal(cache)
    serve = static.plain if static.missing() else static.nginx
    with serve(tmp_path / "served") as server:
        catalogue = open_catalogue(f"{server.url}/catalogue")
        assert catalogue.ids() == [cache.info.id]
        assert catalogue.resolve("best") == catalogue.resolve(cache.info.id[:9]) == cache.info.id
        assert catalogue.summaries() == folder.summaries()
        assert catalogue.refs() == folder.refs()
        catalogues.fetch(catalogue.published(cache.info.id), tmp_path / "out")
        assert catalogues.files(tmp_path / "out") == catalogues.files(cache.path)
        for write in (
            lambda: catalogues.send(cache, catalogue),
            lambda: set_ref(catalogue, "other", cache.info.id, who="us"),
            lambda: rebuild(catalogue),
            lambda: find_waste(catalogue),
        ):
            with pytest.raises(UsageError, match="HTTP is for reading"):
                write()
        (tmp_path / "served" / "catalogue" / "catalog.json").unlink()
        with pytest.raises(UsageError, match="kdcache rebuild"):
            catalogue.ids()
        shutil.rmtree(tmp_path / "served" / "catalogue" / "caches")
        with pytest.raises(UsageError, match="has no cache"):
            catalogue.resolve(cache.info.id)


def test_a_damaged_catalog_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalog.json").write_text('{"format": 1, "caches": {"x": {}}, "refs": {}}')
    with static.plain(tmp_path) as server, pytest.raises(CorruptError, match="kdcache rebuild"):
        open_catalogue(server.url).ids()
