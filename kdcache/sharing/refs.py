"""Names of refs, and how a ref changes; pure."""

import re
from datetime import UTC, datetime

from kdcache.errors import UsageError
from kdcache.sharing.index import MAX_HISTORY, Change, Ref

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGITS = re.compile(r"[0-9a-f]{8,}")


def is_ref_name(text: str) -> bool:
    """Return whether a text may be the name of a ref."""
    return _NAME.fullmatch(text) is not None and _DIGITS.fullmatch(text) is None


def check_ref_name(text: str) -> str:
    """Return a text that may be the name of a ref.

    Raises:
        UsageError: it may not.
    """
    if not is_ref_name(text):
        raise UsageError(
            f"ref {ascii(text[:80])[1:-1]}: expected a name of letters, digits, dots, dashes and "
            "underscores, at most 128, the first a letter or digit, and not of hexadecimal digits "
            "alone, such as imagenet-resnet50"
        )
    return text


def with_change(old: Ref | None, change: Change) -> Ref:
    """Return a ref that refers to something else; to the same, it stays as it is."""
    if old is not None and old.cache == change.cache:
        return old
    history = (() if old is None else old.history) + (change,)
    return Ref(cache=change.cache, history=history[-MAX_HISTORY:])


def utc(moment: datetime | None = None) -> str:
    """Return a moment, by default now, as text: UTC, ISO 8601, in seconds."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
