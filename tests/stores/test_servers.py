"""Claims about the tests' own servers: they are reached, and each fault is made."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests.servers import faults, static
from tests.servers.swift import Swift

DATA = bytes(range(200))
SERVERS = [
    pytest.param(
        static.nginx,
        marks=pytest.mark.skipif(static.missing() is not None, reason=static.missing() or ""),
    ),
    static.plain,
]


@pytest.fixture(params=SERVERS, ids=["nginx", "plain"])
def folder_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[static.Static]:
    """A static server over tmp_path / "www"."""
    (tmp_path / "www/a b").mkdir(parents=True)
    (tmp_path / "www/a b/c%20é").write_bytes(DATA)
    serve: type[AbstractContextManager[static.Static]] = request.param
    with serve(tmp_path / "www") as server:  # type: ignore[call-arg]
        yield server


def test_a_static_server_serves_names_and_ranges_as_they_are(folder_server: static.Static) -> None:
    store = Store(Location(folder_server.url))
    assert store.read("a b/c%20é") == DATA
    assert store.read_range("a b/c%20é", 7, 20) == DATA[7:27]
    assert store.size("a b/c%20é") == 200
    assert store.size("a b/none") is None
    asked = folder_server.asked()
    assert static.Asked("GET", 206, "/a b/c%20é", "bytes=7-26") in asked
    assert [line.status for line in asked] == [200, 206, 200, 404]


def test_signed_requests_pass_a_proxy_which_counts_them(
    s3: faults.Proxy, swift_server: Swift
) -> None:
    store = Store(swift_server.create_bucket("signed") / "pre fix")
    store.write("c%20é", DATA)
    assert store.read("c%20é") == DATA
    path = "/signed/pre fix/c%20é"
    assert s3.counts() == {("PUT", path): 1, ("GET", path): 1}
