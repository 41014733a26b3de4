"""Models of "pt2:FILE"; not in this build."""

from pathlib import Path

from kdcache.errors import UsageError
from kdcache.models.source import Model


def open_pt2(path: Path) -> Model:
    """Raise: this build reads no such programs."""
    raise UsageError(f"pt2:{path}: this build reads no pt2 programs; name another model")
