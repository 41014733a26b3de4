"""Claims about published caches that are read where they lie."""

import json
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kdcache.cache.audit import check_objects
from kdcache.cache.in_place import open_published
from kdcache.cache.published import MANIFEST, manifest_digest
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.summary import summarise_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, IncompleteError, MismatchError, UsageError
from kdcache.stores.location import Location
from tests import tiny
from tests.serving import Served, put_cache, served, write_manifest


class Lent(NamedTuple):
    """A served cache, where its files are, and what they are a copy of."""

    server: Served
    place: Location
    path: Path
    local: Cache

    def put(self, name: str, data: bytes) -> None:
        """Put a file into the catalogue."""
        path = self.server.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture
def lent(tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lent]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    local = open_cache(complete)
    path = put_cache(local, tmp_path / "web")
    with served(tmp_path / "web") as server:
        yield Lent(server, server.location / "caches" / local.info.id, path, local)


def _alter(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_published_cache_holds_what_the_local_one_does(lent: Lent) -> None:
    cache, local = open_cache(lent.place), lent.local
    assert (cache.info, cache.grid, cache.missing()) == (local.info, local.grid, [])
    assert cache.totals() == local.totals()
    assert not cache.is_local
    for tar in range(local.grid.num_tars):
        assert np.array_equal(cache.uids(tar), local.uids(tar))
        assert np.array_equal(cache.contents(tar), local.contents(tar))
        for view in range(local.grid.num_views):
            ours, theirs = cache.read_tile(tar, view), local.read_tile(tar, view)
            assert np.array_equal(ours.usable, theirs.usable)
            assert all(torch.equal(f, theirs.fields[n]) for n, f in ours.fields.items())
            assert np.array_equal(cache.read_witness(tar, view), local.read_witness(tar, view))
    ours, theirs = summarise_cache(cache), summarise_cache(local)
    assert ours.pop("path") == str(lent.place)
    assert theirs.pop("path") == str(local.path)
    assert ours == theirs


def test_a_ref_names_a_cache(lent: Lent) -> None:
    lent.put("refs/photos.json", json.dumps({"cache": lent.local.info.id}).encode())
    cache = open_cache(lent.server.location / "refs/photos")
    assert cache.place == lent.place
    assert pickle.loads(pickle.dumps(cache)).place == lent.place


@pytest.mark.parametrize("text", ['{"cache": "../../etc"}', '{"cache": 3}', "[]", "{", "{}"])
def test_a_ref_that_names_no_cache_is_refused(lent: Lent, text: str) -> None:
    lent.put("refs/photos.json", text.encode())
    with pytest.raises(CorruptError, match="refs/photos: names no cache"):
        open_cache(lent.server.location / "refs/photos")


def test_a_ref_names_a_cache_of_a_folder_too(lent: Lent) -> None:
    lent.put("refs/photos.json", json.dumps({"cache": lent.local.info.id}).encode())
    assert open_cache(lent.server.root / "refs/photos").path == lent.path


@pytest.mark.parametrize("text", [b"{}", b"{}" + b" " * 100_000], ids=["shorter", "longer"])
def test_a_document_that_somebody_replaces_is_read_by_its_digest(lent: Lent, text: bytes) -> None:
    data = (lent.path / "zarr.json").read_bytes()
    (lent.path / "zarr.json").write_bytes(text)
    with pytest.raises((CorruptError, UsageError), match=r"zarr\.json"):
        open_cache(lent.place)
    lent.put(f"{lent.path.relative_to(lent.server.root)}/documents/{manifest_digest(data)}", data)
    assert open_cache(lent.place).info == lent.local.info


def test_what_is_not_there_is_said(lent: Lent) -> None:
    with pytest.raises(UsageError, match="refs/none: no such ref; kdcache find http://127"):
        open_cache(lent.server.location / "refs/none")
    with pytest.raises(UsageError, match=r"caches/x: no published cache here, it has no manifest"):
        open_cache(lent.server.location / "caches/x")


def test_readers_see_nothing_before_the_manifest(lent: Lent) -> None:
    (lent.path / MANIFEST).unlink()
    with pytest.raises(UsageError, match="no published cache here"):
        open_cache(lent.place)


def test_the_manifest_must_be_the_one_that_was_looked_at(lent: Lent) -> None:
    data = (lent.path / MANIFEST).read_bytes()
    cache = open_cache(replace(lent.place, pin=manifest_digest(data)))
    assert cache.missing() == []
    (lent.path / MANIFEST).write_bytes(data.replace(b'"name":null', b'"name":"x"', 1))
    assert open_cache(lent.place).missing() == []
    with pytest.raises(MismatchError, match=f"json: sha256 .*{manifest_digest(data)[:12]}"):
        open_cache(replace(lent.place, pin=manifest_digest(data)))
    with pytest.raises(MismatchError, match="somebody changed it"):
        pickle.loads(pickle.dumps(cache))


def test_a_manifest_of_another_cache_is_refused(
    lent: Lent, tmp_path: Path, dataset: Dataset
) -> None:
    other = tiny.precompute_first(tmp_path / "o", dataset, tiny.make_recipe(seed=9), spans=1)
    theirs = put_cache(other, lent.server.root)
    shutil.copy(theirs / MANIFEST, lent.path / MANIFEST)
    with pytest.raises(CorruptError, match="the manifest of cache"):
        open_cache(lent.place)
    shutil.copytree(theirs, lent.server.root / "elsewhere")
    write_manifest(lent.server.root / "elsewhere", lent.local)
    with pytest.raises(CorruptError, match="its attributes are of cache"):
        open_cache(lent.server.location / "elsewhere")


def test_an_unfinished_cache_says_what_is_missing(
    lent: Lent, tmp_path: Path, dataset: Dataset
) -> None:
    part = tiny.precompute_first(tmp_path / "part", dataset, tiny.make_recipe(size=8), spans=3)
    put_cache(part, lent.server.root)
    cache = open_cache(lent.place.parent / part.info.id)
    assert cache.missing() == part.missing()
    assert cache.totals() == part.totals()
    span = cache.missing()[0]
    with pytest.raises(IncompleteError, match=r"^http://127.*: span .* is not computed"):
        cache.read_tile(span.tar, cache.grid.views(span)[0])


def test_a_tile_costs_one_request_an_array_and_a_span_two_more(lent: Lent) -> None:
    cache = open_cache(lent.place)
    lent.server.forget()
    cache.read_tile(1, 2)
    cache.read_witness(1, 2)
    assert sorted(lent.server.requests.values()) == [1] * (3 + 1 + 1)
    cache.read_tile(1, 3)
    assert sorted(lent.server.requests.values()) == [1] * (3 + 1 + 1 + 3)
    open_cache(lent.place).read_tile(1, 3)
    assert lent.server.count(MANIFEST) == 1
    assert sum(lent.server.requests.values()) == 3 + 1 + 1 + 3 + 1


def test_many_records_are_asked_for_at_once(lent: Lent, tmp_path: Path, dataset: Dataset) -> None:
    part = tiny.precompute_first(tmp_path / "part", dataset, tiny.make_recipe(size=8), spans=5)
    put_cache(part, lent.server.root)
    cache = open_cache(lent.place.parent / part.info.id)
    running, most = [0], [0]

    def alter(name: str, span: str, data: bytes) -> bytes:
        del name, span
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1
        return data

    lent.server.alter = alter
    cache.totals()
    assert most[0] > 2


@pytest.mark.parametrize("name", ["zarr.json", "values/zarr.json", "rows/c/0", "seal.json"])
def test_an_object_that_is_changed_is_named(lent: Lent, name: str) -> None:
    _alter(lent.path / name)
    with pytest.raises(CorruptError, match=rf"^http://.*/{name}: its sha256 differs from the mani"):
        open_cache(lent.place).totals()


def test_a_manifest_that_disagrees_with_a_record_is_refused(lent: Lent) -> None:
    name = "values/c/0/0/0/0"
    data = (lent.path / name).read_bytes()
    (lent.path / name).write_bytes(data + b"x")
    write_manifest(lent.path, lent.local)
    cache = open_cache(lent.place)
    with pytest.raises(CorruptError, match=f"{name}: the manifest differs from its commit record"):
        cache.read_tile(0, 0)


def test_verify_reads_every_object_past_this_disk(lent: Lent) -> None:
    cache = open_cache(lent.place)
    assert list(check_objects(cache)) == []
    _alter(lent.path / "indices/c/1/0/0/0")
    (lent.path / "tails/c/0/1/0/0").unlink()
    _alter(lent.path / "uids/c/2/0")
    (lent.path / "commits/2-1.json").unlink()
    found = {finding.where: finding.problem for finding in check_objects(open_cache(lent.place))}
    gone = "tails/c/0/1/0/0", "commits/2-1.json"
    assert found.keys() == {"indices/c/1/0/0/0", "uids/c/2/0", *gone}
    assert found["indices/c/1/0/0/0"].startswith("its sha256 differs")
    assert found["uids/c/2/0"] == "its sha256 differs from the manifest's"
    assert all(found[name].startswith("missing, though the manifest names it") for name in gone)


def test_nothing_is_written_in_place(lent: Lent) -> None:
    cache = open_cache(lent.place)
    for refused in (lambda: cache.path, lambda: cache.folder, lambda: seal(cache)):
        with pytest.raises(UsageError, match=r"^http://.*: is read in place.*kdcache fetch$"):
            refused()
    assert not hasattr(cache.objects, "publish")


def test_credentials_are_not_shown(lent: Lent) -> None:
    url = lent.place.url.replace("http://", "http://someone:secret@")
    cache = open_cache(Location(url))
    assert "secret" not in f"{cache.place} {cache.place!r} {summarise_cache(cache)}"
    (lent.path / "values/c/0/0/0/0").unlink()
    with pytest.raises(CorruptError) as caught:
        cache.read_tile(0, 0)
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError) as refused:
        open_published(Location(url + "x"))
    assert "secret" not in str(refused.value)
