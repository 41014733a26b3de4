import os
import shutil
import time
from pathlib import Path

import pytest

from kdcache.cache.layout import Span
from kdcache.sharing.catalogue import Catalogue
from kdcache.sharing.gc import DAY_S, delete_waste, find_waste
from kdcache.sharing.names import set_ref
from kdcache.sharing.rebuild import rebuild
from tests.sharing import catalogues


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """A catalogue of a part of a cache."""
    found = catalogues.new(tmp_path / "catalogue")
    catalogues.send(catalogues.part(tmp_path / "cache", [Span(0, 0), Span(1, 1)]), found)
    return found


def _age(folder: Path) -> None:
    then = time.time() - DAY_S - 60
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_what_a_catalogue_needs_is_no_waste(catalogue: Catalogue, tmp_path: Path) -> None:
    set_ref(catalogue, "best", catalogue.ids()[0], who="us")
    _age(tmp_path / "catalogue")
    waste = find_waste(catalogue)
    assert (waste.names, waste.damaged) == ([], ())


def test_objects_that_nothing_names_are_deleted_once_they_are_old(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    cache = catalogue.ids()[0]
    before = catalogues.files(tmp_path / "catalogue")
    for name in ("values/c/2/0/0/0", "zarr.json.old", f"documents/{'0' * 64}"):
        catalogue.store.write(f"caches/{cache}/{name}", b"left")
    assert find_waste(catalogue).names == []
    _age(tmp_path / "catalogue")
    waste = find_waste(catalogue)
    assert len(waste.names) == 3
    assert waste.size_bytes == 12
    assert find_waste(catalogue, older_than_s=2 * DAY_S).names == []
    assert delete_waste(catalogue, waste).names == waste.names
    assert catalogues.files(tmp_path / "catalogue") == before
    catalogues.check_whole(catalogue.published(cache))


def test_what_lies_behind_links_is_never_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis").write_text("mine")
    cache = tmp_path / "catalogue" / "caches" / catalogue.ids()[0]
    (cache / "documents" / "old").symlink_to(home)
    (cache / "documents" / "file").symlink_to(home / "thesis")
    (cache / "loop").symlink_to(cache / "loop")
    (cache.parent / ("0" * 64)).symlink_to(home)
    _age(home)
    waste = find_waste(catalogue, older_than_s=0)
    assert not any("old" in n or "0" * 64 in n or n.endswith("file") for n in waste.names)
    delete_waste(catalogue, waste)
    assert (home / "thesis").read_text() == "mine"


def test_spans_that_wait_for_rebuild_are_kept(catalogue: Catalogue, tmp_path: Path) -> None:
    other = catalogues.part(tmp_path / "other", [Span(2, 0)])
    for name, data in catalogues.files(other.path).items():
        if name.startswith("commits/") or name in other.object_names(Span(2, 0)).values():
            catalogue.store.write(f"caches/{other.info.id}/{name}", data)
    _age(tmp_path / "catalogue")
    assert find_waste(catalogue).names == []
    assert rebuild(catalogue).mended == (other.info.id,)
    assert catalogue.manifest(other.info.id).spans == 3


def test_what_somebody_may_still_be_publishing_is_kept(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    cache = catalogue.ids()[0]
    folder = tmp_path / "catalogue" / "caches" / cache
    (folder / "manifest.json").unlink()
    _age(tmp_path / "catalogue")
    fresh = folder / "values/c/0/1/0/0"
    fresh.parent.mkdir(parents=True)
    fresh.write_bytes(b"new")
    assert find_waste(catalogue).names == []
    _age(tmp_path / "catalogue")
    waste = find_waste(catalogue)
    assert list(waste.folders) == [cache]
    delete_waste(catalogue, waste)
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert catalogue.index().caches == {}


def test_refs_to_caches_that_are_gone_are_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    cache = catalogue.ids()[0]
    set_ref(catalogue, "best", cache, who="us")
    shutil.rmtree(tmp_path / "catalogue" / "caches" / cache)
    waste = find_waste(catalogue)
    assert waste.names == ["refs/best.json"]
    delete_waste(catalogue, waste)
    assert catalogue.refs() == ({}, {})
    assert catalogue.index().caches == {}


def test_a_cache_whose_manifest_is_damaged_is_left_alone(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    catalogue.store.write(f"caches/{catalogue.ids()[0]}/manifest.json", b"{")
    _age(tmp_path / "catalogue")
    waste = find_waste(catalogue)
    assert waste.names == []
    assert "no manifest of a cache" in waste.damaged[0]


def test_what_was_named_meanwhile_is_not_deleted(catalogue: Catalogue, tmp_path: Path) -> None:
    other = catalogues.part(tmp_path / "other", [Span(2, 0)])
    name = other.object_names(Span(2, 0))["values"]
    catalogue.store.write(f"caches/{other.info.id}/{name}", (other.path / name).read_bytes())
    _age(tmp_path / "catalogue")
    waste = find_waste(catalogue)
    assert waste.names == [f"caches/{other.info.id}/{name}"]
    catalogues.send(other, catalogue)
    assert delete_waste(catalogue, waste).names == []
    catalogues.check_whole(catalogue.published(other.info.id))
