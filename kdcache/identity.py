"""Names made from contents: canonical JSON, digests, uids and cache ids.

Invariant: equal values give equal bytes on every machine; floats are written as Python's shortest
round-trip form, keys are sorted, and NaN is refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import xxhash

FORMAT_VERSION = 1
FORMAT_NEEDS = "0.1"  # the first kdcache that reads this format
MOST_DIGITS = 400
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def canonical_json(value: Any) -> bytes:
    """Return value as UTF-8 JSON with sorted keys and no spaces.

    Raises:
        ValueError: value holds NaN or an infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def read_json(data: bytes) -> Any:
    """Return what JSON says that has exponents as we and zarr write them: of "e", never "E".

    So no single bit can change without changing what is read.

    Raises:
        ValueError: data is no such JSON.
    """

    def number(text: str) -> float:
        if "E" in text:
            raise ValueError(f"{text}: not as it was written")
        return float(text)

    return json.loads(data, parse_float=number, parse_int=int_of)


def read_strict_json(data: bytes, *, most_bytes: int) -> Any:
    """Return what JSON of strangers says, which all readers understand alike.

    Raises:
        ValueError: data is no UTF-8 JSON, larger than most_bytes, nested too deeply, or holds a key
            twice, a number that is not finite, or half of a surrogate pair.
    """
    if len(data) > most_bytes:
        raise ValueError(f"{len(data)} bytes, at most {most_bytes}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError("a number is not finite")
        return value

    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=unique,
            parse_float=number,
            parse_constant=number,
            parse_int=int_of,
        )
        if _SURROGATE.search(data):
            canonical_json(value)  # which no half of a pair can be written to
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def int_of(text: str) -> int:
    """Return an integer of JSON.

    Raises:
        ValueError: it has more digits than any that we write; Python's own words are for its users.
    """
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def digest(value: Any) -> str:
    """Return the sha256 of value's canonical JSON as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sample_uid(key: str) -> int:
    """Return a sample's uid: xxh3-64 of its key in UTF-8, an integer below 2**64."""
    return xxhash.xxh3_64_intdigest(key.encode())


def content_digest(data: bytes | memoryview) -> int:
    """Return xxh3-64 of an image's file bytes, an integer below 2**64."""
    return xxhash.xxh3_64_intdigest(data)


def cache_id(*, dataset_id: str, recipe_id: str, teacher_id: str, encoding: str) -> str:
    """Return the id of the cache that these four make, 64 hexadecimal digits.

    The number of views is not part of it: views may be added to a cache.
    """
    return digest(
        {
            "format": FORMAT_VERSION,
            "dataset": dataset_id,
            "recipe": recipe_id,
            "teacher": teacher_id,
            "encoding": encoding,
        }
    )


def finite(value: Any) -> Any:
    """Return a value of JSON in which numbers that are not finite, which JSON has not, are null."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
