"""Claims about reading, writing, listing and deleting objects of every kind of store."""

import base64
import os
import time
from pathlib import Path

import pytest

from kdcache.errors import UsageError
from kdcache.stores import store as module
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests.servers import faults

NAMES = ["a", "a b/c%20d", "a b/é☃", "b/q?#&=+;", "b/~'!()", "c/d/e"]
DATA = bytes(range(256)) * 4
KINDS = ["bucket", "folder"]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of the kind."""
    if request.param == "folder":
        return Store(tmp_path / "pre fix")
    found: Store = request.getfixturevalue("bucket")
    return found


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_what_is_written_is_read_listed_and_deleted(store: Store) -> None:
    before = time.time()
    assert list(store.names()) == []
    for number, name in enumerate(NAMES):
        store.write(name, DATA[number:])
    for number, name in enumerate(NAMES):
        assert store.read(name) == DATA[number:]
        assert store.read_range(name, 3, 200) == DATA[number:][3:203]
        assert store.size(name) == len(DATA) - number
    listed = list(store.names())
    assert [entry.name for entry in listed] == sorted(NAMES)
    sizes = {name: len(DATA) - number for number, name in enumerate(NAMES)}
    assert {entry.name: entry.size_bytes for entry in listed} == sizes
    assert all(before - 5 < entry.modified < time.time() + 5 for entry in listed)
    assert [entry.name for entry in store.names("a b")] == ["a b/c%20d", "a b/é☃"]
    store.delete([*NAMES[:3], "never written"])
    assert [entry.name for entry in store.names()] == sorted(NAMES[3:])


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_an_object_may_be_empty_and_is_replaced_as_a_whole(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.write("a", b"")
    store.write_file("b", tmp_path / "empty")
    assert store.read("a") == store.read("b") == store.read_range("a", 0, 0) == b""
    assert store.size("a") == 0
    store.read_to_file("a", tmp_path / "copy", size_bytes=0)
    assert (tmp_path / "copy").read_bytes() == b""
    store.write("a", DATA)
    assert store.read("a") == DATA


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_a_large_file_is_written_in_parts_and_read_by_ranges(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 300_000)
    (tmp_path / "file").write_bytes(os.urandom(1_000_001))
    store.write_file("a b/large", tmp_path / "file")
    store.read_to_file("a b/large", tmp_path / "copy", size_bytes=1_000_001)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*copy*")) == ["copy"]


def test_a_file_of_any_size_has_few_parts(
    bucket: Store, s3: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 1000)
    monkeypatch.setattr(module, "MOST_PARTS", 7)
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    bucket.write_file("large", tmp_path / "file")
    assert len(s3.asked("PUT")) == 7
    assert bucket.read("large") == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_what_is_missing_is_said_to_be_missing(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        assert store.size("none") is None
        for ask in (
            lambda: store.read("none"),
            lambda: store.read_range("none", 0, 1),
            lambda: store.read_to_file("none", tmp_path / "file", size_bytes=1),
        ):
            with pytest.raises(FileNotFoundError, match="none: there is no such object"):
                ask()
        store.delete(["none"])
        store.write("a", DATA)


@pytest.mark.parametrize("store", KINDS, indirect=True)
def test_bytes_after_the_end_are_refused(store: Store, impatient: float) -> None:
    store.write("a", DATA)
    with pytest.raises(UsageError, match="a: the object ends before"):
        store.read_range("a", len(DATA) + 5, 1)
    with pytest.raises(UsageError, match="a: 4 of 5 bytes came"):
        store.read_range("a", len(DATA) - 4, 5)


@pytest.mark.parametrize("store", KINDS, indirect=True)
@pytest.mark.parametrize("name", ["../a", "a/../../b", "a//b", "a\nb", "."])
def test_a_name_that_leads_elsewhere_is_refused(store: Store, name: str) -> None:
    for ask in (lambda: store.write(name, b""), lambda: store.read(name)):
        with pytest.raises(UsageError, match="no name that stores take"):
            ask()


def test_asking_a_missing_folder_makes_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert list(store.names()) == []
    assert store.size("a") is None
    assert not (tmp_path / "none").exists()


def test_what_is_no_file_in_a_folder_is_no_object(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a/b", b"1")
    (tmp_path / "a/link").symlink_to(tmp_path / "a/b")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a/loop")
    (tmp_path / "a/new\nline").write_bytes(b"1")
    (tmp_path / "folder").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "a/pipe")
    assert [entry.name for entry in store.names()] == ["a/b"]
    assert list(store.names("folder")) == []
    assert store.folders("") == ["a"]
    with pytest.raises(UsageError, match="pipe: neither a file nor a folder"):
        store.read("a/pipe")


def test_what_a_killed_writer_left_in_a_folder_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "a#1").write_bytes(DATA)
    store = Store(tmp_path)
    assert list(store.names()) == []
    assert store.size("a") is None
    store.write("a", b"whole")
    assert store.read("a") == b"whole"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: File exists"):
        Store(tmp_path / "file").write("a", b"")
    with pytest.raises(UsageError, match="file/b/c: Not a directory"):
        Store(tmp_path).write("file/b/c", b"")


def test_a_missing_bucket_is_named(bucket: Store) -> None:
    store = Store(Location("s3://never-made/prefix"))
    for ask in (
        lambda: list(store.names()),
        lambda: store.read("a"),
        lambda: store.write("a", b""),
    ):
        with pytest.raises(UsageError, match="no such bucket"):
            ask()


# --- plain HTTP ----------------------------------------------------------------------------


def test_http_is_read_but_neither_listed_nor_written(
    web: tuple[Path, faults.Proxy], impatient: float
) -> None:
    folder, proxy = web
    (folder / "a b").mkdir()
    for name in ("a b/c%20d", "a b/é?#"):
        (folder / name).write_bytes(DATA)
        store = Store(Location(proxy.url))
        assert store.read(name) == DATA
        assert store.read_range(name, 7, 9) == DATA[7:16]
        assert store.size(name) == len(DATA)
    assert store.size("none") is None
    for ask in (lambda: list(store.names()), lambda: store.write("a", b"")):
        with pytest.raises(UsageError, match="plain HTTP is for reading"):
            ask()


def test_user_and_password_of_an_address_are_sent_as_basic_authentication(
    web: tuple[Path, faults.Proxy],
) -> None:
    folder, proxy = web
    (folder / "a").write_bytes(DATA)
    url = proxy.url.replace("://", "://us%40er:pass%3Aword@")
    assert Store(Location(f"{url}?token=5")).read("a") == DATA
    (request,) = proxy.requests
    token = base64.b64encode(b"us@er:pass:word").decode()
    assert request.headers["authorization"] == f"Basic {token}"
    assert request.query == "token=5"
