"""Claims about datasets whose tars stay in a store."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import COLUMNS, Dataset
from kdcache.data.document import load_dataset, save_dataset
from kdcache.data.index import build_index, check_dataset, find_tars
from kdcache.data.ranges import GAP_BYTES, StoredFile, StoredTar, read_stored_images
from kdcache.data.tars import scan_tar
from kdcache.errors import CorruptError, DataError, UsageError
from kdcache.identity import content_digest
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests import tiny
from tests.servers import faults
from tests.servers.swift import Swift
from tests.serving import Served, served


@pytest.fixture
def web(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Served, Dataset]]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    shutil.copytree(dataset.root, tmp_path / "web/data")
    with served(tmp_path / "web") as server:
        yield server, load_dataset(server.location / "data")


Web = tuple[Served, Dataset]


def test_a_dataset_in_a_store_is_the_one_on_disk(web: Web, dataset: Dataset) -> None:
    server, stored = web
    assert (stored.id, stored.tars) == (dataset.id, dataset.tars)
    assert stored.root == server.location / "data"
    for tar in range(len(dataset.tars)):
        rows = slice(1, 4)
        assert stored.read_rows(tar, rows) == dataset.read_rows(tar, rows)
    assert load_dataset(server.location / "data/dataset.json").id == dataset.id


def test_a_block_is_one_request_and_then_none(web: Web, dataset: Dataset) -> None:
    server, stored = web
    recipe = tiny.make_recipe(block=10)
    server.forget()
    first = dataset_source(stored, recipe).read(0, slice(0, 10))
    assert first == dataset_source(dataset, recipe).read(0, slice(0, 10))
    assert server.count(".tar") == 1
    dataset_source(load_dataset(server.location / "data"), recipe).read(0, slice(0, 10))
    assert server.count(".tar") == 1
    assert server.count(".npz") == 0


def test_images_that_lie_far_apart_are_asked_for_one_by_one(tmp_path: Path) -> None:
    parts = {"a.jpg": b"one", "a.json": bytes(2 * GAP_BYTES), "b.jpg": b"two", "c.jpg": b"three"}
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web/0.tar", "w") as tar:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(tmp_path / "web/0.tar") as tar:
        found = {member.name: member for member in tar.getmembers()}
    images = [found[name] for name in ("c.jpg", "a.jpg", "b.jpg")]
    with served(tmp_path / "web") as server:
        read = read_stored_images(
            StoredTar(server.location, "0.tar"),
            np.array([m.offset_data for m in images], np.uint64),
            sizes=np.array([m.size for m in images], np.uint32),
            contents=np.array([content_digest(parts[m.name]) for m in images], np.uint64),
        )
        assert read == [b"three", b"one", b"two"]
        assert server.count("0.tar") == 2


def test_a_tar_that_changed_is_refused_and_its_image_named(web: Web) -> None:
    server, stored = web
    path = server.root / "data" / stored.tars[1].name
    data = bytearray(path.read_bytes())
    data[int(stored.offsets[stored.rows(1)][3])] ^= 1
    path.write_bytes(data)
    key = next(iter([s.key for n, s in enumerate(scan_tar(path)) if n == 3]))
    with pytest.raises(
        DataError, match=rf"^http://.*/{path.name}: {key}: other bytes than indexed"
    ):
        stored.read_rows(1, slice(0, 10))
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: missing"):
        stored.read_rows(1, slice(0, 5))


@pytest.mark.parametrize("root", ["/etc", "file:///etc", "\0"])
def test_a_dataset_of_strangers_names_nothing_of_this_disk(web: Web, root: str) -> None:
    server, _ = web
    path = server.root / "data/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"root": root}))
    with pytest.raises(DataError, match="root"):
        load_dataset(server.location / "data")


def test_tars_may_lie_beside_the_dataset_or_elsewhere(web: Web, dataset: Dataset) -> None:
    server, _ = web
    path = server.root / "data/dataset.json"
    shutil.copytree(server.root / "data", server.root / "moved", dirs_exist_ok=True)
    for root in ("../moved", "../data/./../moved/", f"{server.location}/moved"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"root": root}))
        stored = load_dataset(server.location / "data")
        assert stored.root == server.location / "moved"
        assert stored.read_rows(0, slice(0, 2)) == dataset.read_rows(0, slice(0, 2))


def test_damaged_documents_in_a_store_are_named(web: Web) -> None:
    server, _ = web
    with pytest.raises(UsageError, match=r"^http://.*/none/dataset.json: missing"):
        load_dataset(server.location / "none")
    path = server.root / "data/dataset.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(Path(path.parents[2] / "disk"))
    with pytest.raises(CorruptError, match=r"^http://.*/data/dataset.npz: sha256"):
        load_dataset(server.location / "data")
    path.unlink()
    with pytest.raises(CorruptError, match=r"^http://.*/data/dataset.npz: missing"):
        load_dataset(server.location / "data")


def test_tars_in_a_bucket_are_indexed_where_they_are(
    web: Web, dataset: Dataset, tmp_path: Path, s3: faults.Proxy, swift_server: Swift
) -> None:
    root = swift_server.create_bucket("indexed") / "all the tars"
    for tar in dataset.tars:
        Store(root).write(f"deep/{tar.name}", (dataset.root / tar.name).read_bytes())
    Store(root).write("deep/readme.txt", b"no tar")
    tars = find_tars(root)
    assert [str(tar) for tar in tars] == [f"{root}/deep/{tar.name}" for tar in dataset.tars]
    found = build_index(tars, root=root)
    for name in COLUMNS:
        assert np.array_equal(getattr(found, name), getattr(dataset, name))
    assert [t.size_bytes for t in found.tars] == [t.size_bytes for t in dataset.tars]
    save_dataset(found, tmp_path / "index")
    text = (tmp_path / "index/dataset.json").read_text()
    assert json.loads(text)["root"] == str(root)
    again = load_dataset(tmp_path / "index")
    check_dataset(again)
    assert again.read_rows(2, slice(0, 4)) == dataset.read_rows(2, slice(0, 4))
    with pytest.raises(UsageError, match=r"s3://indexed/none: no \*.tar below it"):
        find_tars(root.parent / "none")


def test_an_index_names_no_credentials(dataset: Dataset, tmp_path: Path) -> None:
    stored = replace(dataset, root=Location("https://me:secret@host/tars?sig=secret"))
    save_dataset(stored, tmp_path / "index")
    assert "secret" not in (tmp_path / "index/dataset.json").read_text()
    assert load_dataset(tmp_path / "index").root == Location("https://host/tars")


def test_http_without_listing_says_so(web: Web) -> None:
    with pytest.raises(UsageError, match="without listing"):
        find_tars(web[0].location / "data")


@pytest.mark.parametrize("window", [1, 7, 512, 1 << 20])
def test_a_stored_file_reads_as_a_local_one(web: Web, window: int, dataset: Dataset) -> None:
    path = dataset.root / dataset.tars[2].name
    (web[0].root / "part.bin").write_bytes(path.read_bytes()[: 60 * window])
    whole = (web[0].root / "part.bin").read_bytes()
    with StoredFile(StoredTar(web[0].location, "part.bin"), window_bytes=window) as file:
        assert file.size_bytes == len(whole)
        parts = []
        while part := file.read(50):
            parts.append(part)
        assert b"".join(parts) == whole
        assert file.seek(-7, io.SEEK_END) == len(whole) - 7
        assert file.read(100) == whole[-7:]
        file.seek(10)
        assert (file.read(5), file.tell()) == (whole[10:15], 15)
        assert file.seek(5, io.SEEK_CUR) == 20
        assert file.read() == whole[20:]
        assert file.read(2**60) == b""
