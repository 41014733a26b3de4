"""Texts of strangers, as they may be shown."""


def printable(text: str, *, keep: str = "") -> str:
    """Return a text in which what would move a terminal's cursor is written as its escape.

    keep: characters that stay as they are all the same.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
