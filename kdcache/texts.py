"""Texts of strangers, as they may be shown, and sizes for people."""

from collections.abc import Sequence


def printable(text: str, *, keep: str = "") -> str:
    """Return a text in which what would move a terminal's cursor is written as its escape.

    keep: characters that stay as they are all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def counted(count: int, one: str, many: str) -> str:
    """Return a number with the words for one or for many."""
    return f"{count} {one if count == 1 else many}"


def first_of(texts: Sequence[str], most: int) -> list[str]:
    """Return the first texts, and in a last one the number of the others, if there are any."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return [*texts[:most], *more]


def human_bytes(count: float) -> str:
    """Return a number of bytes in kB, MB, GB or TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
