"""Spans that could not be computed, set aside with their errors so that the others go on."""

import json
import socket
from datetime import UTC, datetime

from kdcache.cache.layout import Span, span_named
from kdcache.cache.objects import Folder, Objects
from kdcache.errors import DataError, KdcacheError, UsageError

FOLDER = "quarantine"
_KINDS = {kind.__name__: kind for kind in (DataError, UsageError)}


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


def is_quarantined(folder: Folder, span: Span) -> bool:
    """Return whether a span is set aside."""
    return folder.exists(_name(span))


def quarantined(folder: Objects) -> dict[Span, KdcacheError]:
    """Return the spans set aside, in order, and their errors."""
    found: dict[Span, KdcacheError] = {}
    for name in folder.names(FOLDER):
        span = span_named(name)
        if span is not None:
            try:
                body = json.loads(folder.read(f"{FOLDER}/{name}"))
                found[span] = _KINDS.get(body["kind"], UsageError)(str(body["error"]))
            except (OSError, KdcacheError, ValueError, KeyError, TypeError):
                found[span] = UsageError(f"span {span} failed, and the record of it is damaged")
    return dict(sorted(found.items()))


def _name(span: Span) -> str:
    return f"{FOLDER}/{span}.json"
