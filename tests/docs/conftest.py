"""The command line in this process."""

from tests.cli.conftest import kdcache

__all__ = ["kdcache"]
