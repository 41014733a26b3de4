"""Servers of these tests, and stores of every kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcache.stores import clients
from kdcache.stores.store import Store
from tests.servers import faults, static
from tests.servers.fixtures import s3, swift_server
from tests.servers.swift import Swift

__all__ = ["s3", "swift_server"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Stores are given up after so many seconds."""
    monkeypatch.setenv(clients.PATIENCE, "1.5")
    return 1.5


@pytest.fixture
def bucket(s3: faults.Proxy, swift_server: Swift, request: pytest.FixtureRequest) -> Store:
    """A store in a new bucket of a real S3 server, behind the proxy `s3`."""
    return Store(swift_server.create_bucket(f"b{abs(hash(request.node.nodeid))}") / "pre fix")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, faults.Proxy]]:
    """A folder that a server serves by HTTP, and a proxy before it."""
    (tmp_path / "www").mkdir()
    serve = static.plain if static.missing() else static.nginx
    with serve(tmp_path / "www") as server, faults.running(server.url) as proxy:
        yield tmp_path / "www", proxy
