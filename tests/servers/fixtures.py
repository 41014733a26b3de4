"""Fixtures of servers; a folder's conftest imports those that its tests use."""

from collections.abc import Iterator

import pytest

from tests.servers import faults, swift


@pytest.fixture(scope="session")
def swift_server() -> Iterator[swift.Swift]:
    """A running S3 server; each test makes buckets of its own."""
    if reason := swift.missing():
        pytest.skip(reason)
    with swift.running() as server:
        yield server


@pytest.fixture
def s3(swift_server: swift.Swift, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.Proxy]:
    """A proxy before the S3 server, which s3://BUCKET/… reaches by the environment."""
    with faults.running(swift_server.endpoint) as proxy:
        for name, value in swift_server.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy
