"""Claims about what others rely on by value: canonical JSON, digests, uids, ids and exit codes."""

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache import errors
from kdcache.identity import (
    FORMAT_VERSION,
    cache_id,
    canonical_json,
    content_digest,
    digest,
    read_json,
    sample_uid,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=9)
scalars = st.none() | st.booleans() | st.integers() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    """Return value with the keys of every table in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ({"b": 1, "a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true],"b":1}'),
        ({"B": 1, "a": 2, "é": 3, "aa": 4}, '{"B":1,"a":2,"aa":4,"é":3}'),
        ("é\n\"\\/", '"é\\n\\"\\\\/"'),
        ([0.1, 1e21, 1e-7, 4 / 3, 1.0, -0.0], "[0.1,1e+21,1e-07,1.3333333333333333,1.0,-0.0]"),
        ([2**64 - 1, -(2**63)], "[18446744073709551615,-9223372036854775808]"),
    ],
)  # fmt: skip
def test_canonical_json_is_sorted_compact_and_utf8(value: Any, text: str) -> None:
    assert canonical_json(value) == text.encode()


@settings(deadline=None)
@given(value=values)
def test_canonical_json_loses_nothing_and_ignores_the_order_of_keys(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    assert canonical_json(reordered(value)) == text
    assert digest(value) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": [value]})


def test_digests_are_the_known_answers_of_sha256_and_xxh3() -> None:
    # sha256 of the two bytes "{}"; xxh3-64 of no bytes, from xxHash's own sanity check.
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert content_digest(b"") == sample_uid("") == 0x2D06800538D394C2


def test_uids_never_change() -> None:
    found = {key: sample_uid(key) for key in ("0", "n01440764/n01440764_10026", "é/ü", "a" * 300)}
    assert found == {
        "0": 0x1982E3A7BB241055,
        "n01440764/n01440764_10026": 0xD05746204548245E,
        "é/ü": 0x7F5EDE291AB1B496,
        "a" * 300: 0xC1D17581D8EB7E21,
    }
    assert content_digest(b"n01440764/n01440764_10026") == found["n01440764/n01440764_10026"]
    assert content_digest(memoryview(b"xabcx")[1:4]) == content_digest(b"abc")


@settings(deadline=None)
@given(keys=st.sets(texts, min_size=2, max_size=20))
def test_uids_fit_64_bits_and_differ(keys: set[str]) -> None:
    uids = {sample_uid(key) for key in keys}
    assert len(uids) == len(keys)
    assert all(0 <= uid < 2**64 for uid in uids)


PARTS = {"dataset_id": "d", "recipe_id": "r", "teacher_id": "t", "encoding": "topk:10"}


def test_cache_ids_never_change() -> None:
    assert FORMAT_VERSION == 1
    text = '{"dataset":"d","encoding":"topk:10","format":1,"recipe":"r","teacher":"t"}'
    assert cache_id(**PARTS) == hashlib.sha256(text.encode()).hexdigest()
    assert cache_id(**PARTS) == "40042f8993bc77743507c834bfd03943d9e1de97fcfe12b2e6e043cf6631b81d"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_part_of_the_cache_id(part: str) -> None:
    assert cache_id(**{**PARTS, part: "other"}) != cache_id(**PARTS)


def test_parts_that_change_places_make_another_cache() -> None:
    swapped = {**PARTS, "dataset_id": "r", "recipe_id": "d"}
    assert cache_id(**swapped) != cache_id(**PARTS)


def test_exit_codes_never_change_and_tell_the_errors_apart() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert all(issubclass(kind, errors.KdcacheError) for kind in kinds)
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "KdcacheError": 1,
        "UsageError": 2,
        "MismatchError": 3,
        "IncompleteError": 4,
        "CorruptError": 5,
        "UntrustedError": 6,
        "DataError": 7,
    }


def test_the_tree_in_the_docstring_is_the_tree_of_the_code() -> None:
    assert errors.__doc__ is not None
    drawn = [line.split() for line in errors.__doc__.splitlines() if "Error (" in line]
    for name, code, *_ in drawn:
        assert f"({getattr(errors, name).exit_code})" == code
    assert len(drawn) == 6


def test_numbers_are_read_only_as_they_are_written() -> None:
    """A flipped bit that makes "e" an "E" leaves the value as it was."""
    assert read_json(b'{"a": [1e-05, 2.5, "1E5"]}') == {"a": [1e-05, 2.5, "1E5"]}
    with pytest.raises(ValueError, match="1E-05"):
        read_json(b'{"a": 1E-05}')
