"""What the doctor's tests share."""

from collections.abc import Iterator

import pytest

from kdcache.pixels import conformance
from kdcache.pixels.selftest import check_pixels
from tests.cli.conftest import kdcache
from tests.servers.fixtures import s3, swift_server

__all__ = ["kdcache", "s3", "swift_server"]


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has not proven its libraries yet; after it, one that has to again."""
    proofs = (check_pixels, conformance.check_decode, conformance.chosen_backends)
    for proof in proofs:
        proof.cache_clear()
    yield
    for proof in proofs:
        proof.cache_clear()
