"""Models of "onnx:FILE"; not in this build."""

from pathlib import Path

from kdcache.errors import UsageError
from kdcache.models.source import Model


def open_onnx(path: Path) -> Model:
    """Raise: this build reads no such programs."""
    raise UsageError(f"onnx:{path}: this build reads no onnx programs; name another model")
