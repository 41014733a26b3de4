"""Spans that could not be computed, set aside with their errors so that the others go on."""

import json
import socket
from datetime import UTC, datetime

from kdcache.cache.layout import Span, span_named
from kdcache.cache.objects import Folder
from kdcache.errors import KdcacheError

FOLDER = "quarantine"


def quarantine(folder: Folder, span: Span, error: Exception) -> None:
    """Set a span aside, durably."""
    body = {
        "error": str(error),
        "kind": type(error).__name__,
        "host": socket.gethostname(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.publish(_name(span), json.dumps(body, indent=1).encode(), replace=True)


def release(folder: Folder, span: Span) -> None:
    """Take a span out of quarantine."""
    if folder.exists(_name(span)):
        folder.remove(_name(span))


def quarantined(folder: Folder) -> dict[Span, str]:
    """Return the spans set aside, in order, and their errors."""
    found = {}
    for name in folder.names(FOLDER):
        span = span_named(name)
        if span is not None:
            try:
                found[span] = str(json.loads(folder.read(f"{FOLDER}/{name}"))["error"])
            except (OSError, KdcacheError, ValueError, KeyError, TypeError):
                found[span] = "its record is damaged"
    return dict(sorted(found.items()))


def _name(span: Span) -> str:
    return f"{FOLDER}/{span}.json"
