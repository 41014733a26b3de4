"""Claims about attributes that somebody wrote by hand, with a digest that fits: checked data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.store import open_cache
from kdcache.errors import CorruptError
from kdcache.identity import digest
from kdcache.report.describe import describe_cache
from tests.cache.filling import full

Change = Callable[[dict[str, Any]], None]


def rewrite(path: Path, change: Change) -> None:
    """Change the attributes of a cache, and state the digest of what they are then."""
    file = path / "zarr.json"
    document = json.loads(file.read_text())
    body = document["attributes"]["kdcache"]
    change(body)
    del body["digest"]
    document["attributes"]["kdcache"] = {**body, "digest": digest(body)}
    file.write_text(json.dumps(document))


def put(*place: str | int, value: Any) -> Change:
    def change(body: Any) -> None:
        for key in place[:-1]:
            body = body[key]
        body[place[-1]] = value

    return change


PLACES: list[tuple[str | int, ...]] = [
    ("dataset",), ("dataset", "tars"), ("dataset", "tars", 0), ("dataset", "id"),
    ("dataset", "num_samples"), ("dataset", "tars", 0, "num_rows"), ("dataset", "tars", 0, "name"),
    ("grid",), ("grid", "views"), ("grid", "span_views"), ("grid", "max_rows"), ("teacher",),
    ("teacher", "id"), ("teacher", "spec"), ("encoding",), ("num_classes",), ("recipe",),
    ("classes",), ("licences",), ("versions",),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("value", [7.5, [], {"a": 1}, -1, 2**70, [None]], ids=repr)
def test_attributes_of_other_kinds_are_corrupt(
    tmp_path: Path, place: tuple[str | int, ...], value: Any
) -> None:
    path = full(tmp_path / "c", num_views=2).cache.path
    if (place, value) == (("classes",), []):
        return  # a list of names, of none
    rewrite(path, put(*place, value=value))
    with pytest.raises(CorruptError, match=r"damaged attributes|another id"):
        open_cache(path)


STEADY = {"repeat_nats": 0.0, "batch_nats": 1e-6}
TWO: dict[str, Any] = {"members": [{"id": "a"}, {"id": "b"}], "shares": [0.25, 0.75]}


@pytest.mark.parametrize(
    "added",
    [
        *({"steadiness": value} for value in ("x", {}, [], STEADY | {"repeat_nats": "a"})),
        *({"steadiness": STEADY | {"batch_nats": value}} for value in (-1.0, True, 10**399)),
        {"precision": 16},
        {"precision": None},
        {"members": [{"id": "a"}]},
        {"members": None},
        {"members": [], "average": "x", "shares": "abc"},
        {"average": "logits"},
        TWO | {"average": "logits", "shares": [1]},
        TWO | {"average": "logits", "shares": [0.5, "0.5"]},
        TWO | {"average": 5},
        TWO | {"average": "logits", "members": ["a", "b"]},
    ],
    ids=repr,
)
def test_a_teacher_of_which_odd_things_are_said_is_corrupt(
    tmp_path: Path, added: dict[str, Any]
) -> None:
    path = full(tmp_path / "c", num_views=2).cache.path
    rewrite(path, lambda body: body["teacher"].update(added))
    with pytest.raises(CorruptError, match=r"damaged attributes: .*teacher"):
        open_cache(path)


@pytest.mark.parametrize(
    ("added", "text"),
    [
        ({}, "none, of unknown precision (t)"),
        ({"members": []}, "none, of unknown precision (t)"),
        (TWO | {"average": "logits"}, "none (mean of logits, 0.25, 0.75), of unknown precision"),
        ({"precision": "float32", "steadiness": STEADY, "new": [1]}, "none, float32 (t)"),
    ],
)
def test_a_teacher_is_described_by_what_its_cache_says(
    tmp_path: Path, added: dict[str, Any], text: str
) -> None:
    path = full(tmp_path / "c", num_views=2).cache.path
    rewrite(path, lambda body: body["teacher"].update(added))
    lines = describe_cache(open_cache(path))
    assert lines["teacher"].startswith(text)
    assert lines["steady"].startswith("differs by" if "steadiness" in added else "not measured")


def test_a_rewritten_cache_is_read_where_nothing_changed(tmp_path: Path) -> None:
    path = full(tmp_path / "c", num_views=2).cache.path
    rewrite(path, lambda body: None)
    open_cache(path)
    rewrite(path, put("teacher", "spec", value="os:system"))
    assert open_cache(path).info.teacher["spec"] == "os:system", "a text, which nobody calls"
