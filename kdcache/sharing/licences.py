"""Licences as SPDX expressions: checked, and written in one way.

Departure from license-expression: what begins with LicenseRef- is its owner's own licence and is
never read as another name of a listed one, and the SPDX operator + (or later) is known.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple

from kdcache.errors import UsageError

LIST = "https://spdx.org/licenses"
MAX_LENGTH = 1000
UNKNOWN = "NOASSERTION"  # SPDX's word for a licence that nobody has stated
_OWN = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
_WORD = re.compile(r"[()]|[^\s()]+")
_OPERATORS = ("AND", "OR", "WITH")


class _Known(NamedTuple):
    """A licence or exception of the SPDX list. key: as SPDX spells it."""

    key: str
    is_exception: bool


def check_licence(text: str, *, option: str) -> str:
    """Return an SPDX expression as SPDX spells it.

    option: what the user wrote it in, for errors.

    Raises:
        UsageError: it is none, or it names a licence that SPDX does not list.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"{option}: an expression of {len(text)} characters, at most {MAX_LENGTH}")
    listed = _listed()
    words, symbols = [], {}
    for word in _words(text):
        if word in ("(", ")", *_OPERATORS):
            words.append(word)
            continue
        found = _find(word, listed)
        if found is None:
            raise UsageError(f"{option}: {_stranger(word, listed)}")
        words.append(found.key)
        symbols[found.key] = found.is_exception
    normalised = _parse(" ".join(words), symbols)
    if normalised is None:
        raise UsageError(
            f"{option}: {text[:80]!r} is no SPDX expression; write one licence, such as CC-BY-4.0, "
            "or several joined by AND, OR and WITH"
        )
    return normalised


def listed_address(expression: str) -> str | None:
    """Return where SPDX describes a licence; None for a text that is not one listed licence."""
    found = _listed().get(expression.lower())
    if found is None or found.key != expression or found.is_exception:
        return None
    return f"{LIST}/{found.key}.html"


@lru_cache(maxsize=1)
def _listed() -> dict[str, _Known]:
    """Return the SPDX list by names in small letters, old names among them."""
    from license_expression import get_spdx_licensing

    symbols = [
        symbol
        for symbol in get_spdx_licensing().known_symbols.values()
        if not _OWN.fullmatch(symbol.key)
    ]
    names = {
        alias.lower(): _Known(symbol.key, symbol.is_exception)
        for symbol in symbols
        for alias in symbol.aliases
        if not _OWN.fullmatch(alias)
    }
    return names | {s.key.lower(): _Known(s.key, s.is_exception) for s in symbols}


def _words(text: str) -> Iterator[str]:
    """Yield parentheses, operators in capitals, and what stands between them."""
    name: list[str] = []
    for word in _WORD.findall(text):
        operator = word.upper() if word.upper() in _OPERATORS else word
        if operator not in ("(", ")", *_OPERATORS):
            name.append(word)
            continue
        if name:
            yield " ".join(name)
            name = []
        yield operator
    if name:
        yield " ".join(name)


def _find(word: str, listed: dict[str, _Known]) -> _Known | None:
    if _OWN.fullmatch(word):
        return _Known(word, is_exception=False)
    found = listed.get(word.lower())
    if found is None and word.endswith("+"):
        plain = listed.get(word[:-1].lower())
        if plain is not None and not plain.is_exception:
            return _Known(f"{plain.key}+", is_exception=False)
    return found


def _stranger(word: str, listed: dict[str, _Known]) -> str:
    near = get_close_matches(word.lower(), list(listed), n=3)
    known = ", ".join(dict.fromkeys(listed[name].key for name in near))
    return (
        f"{word[:80]!r} is no licence of the SPDX list{f', which has {known}' if known else ''}; "
        "name one of the list, or a licence of your own as LicenseRef-NAME"
    )


def _parse(text: str, symbols: dict[str, bool]) -> str | None:
    """Return an expression of known symbols, written as SPDX writes it; None if it is none."""
    from boolean.boolean import ParseError
    from license_expression import ExpressionError, LicenseSymbol, Licensing

    grammar = Licensing([LicenseSymbol(key, is_exception=e) for key, e in symbols.items()])
    try:
        parsed = grammar.parse(text, simple=True, strict=True)
    except (ExpressionError, ParseError, IndexError, TypeError, AttributeError, RecursionError):
        return None  # of the library where it meets what is no expression
    if parsed is None or any(
        getattr(symbol, "is_exception", False)
        for symbol in grammar.license_symbols(parsed, decompose=False)
    ):
        return None  # an exception is none without a licence
    return str(parsed.render("{symbol.key}"))
