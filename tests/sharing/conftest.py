"""Servers of these tests."""

from tests.servers.fixtures import s3, swift_server

__all__ = ["s3", "swift_server"]
