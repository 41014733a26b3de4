"""Claims about manifests of strangers: each is read as it was written, or refused at once."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache import published
from kdcache.cache.inventory import arrays_of, check_inventory, check_names
from kdcache.cache.layout import Grid, object_names
from kdcache.cache.published import Contribution, Manifest, parse_manifest
from kdcache.errors import CorruptError, UsageError
from kdcache.identity import canonical_json
from kdcache.targets.encoding import parse_encoding
from tests.sharing.signing import MANIFEST_BYTES, Change, a_manifest, manifest_bytes

WHERE = Path("manifest.json")
Value = Any


def parse(data: bytes) -> Manifest:
    return parse_manifest(data, where=WHERE)


def changed(change: Change) -> bytes:
    """Return a manifest after a change, as canonical as it can be written."""
    body = copy.deepcopy(a_manifest())
    change(body)
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="surrogatepass"
    )


def refused(data: bytes, words: str = "no manifest of a cache") -> str:
    with pytest.raises(CorruptError, match=words) as caught:
        parse(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_a_sound_manifest_is_read_as_it_was_written() -> None:
    found = parse(MANIFEST_BYTES)
    assert found.to_bytes() == MANIFEST_BYTES
    assert json.loads(MANIFEST_BYTES) == a_manifest()
    assert found.is_complete


def test_a_manifest_that_is_older_than_a_field_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Younger(Manifest):
        more: int | None = None

    monkeypatch.setattr(published, "Manifest", Younger)
    assert parse(MANIFEST_BYTES).size_bytes > 0
    assert parse(changed(put(("more",), 7))).views == 4
    refused(changed(put(("more",), 7.5)))


# --- names -------------------------------------------------------------------------------------

NAMES = [
    *("/etc/passwd", "//x/zarr.json", "../zarr.json", "values/../../zarr.json", "./zarr.json"),
    *("values/c/0/../0", "values//zarr.json", "values\\zarr.json", "C:\\zarr.json", "~/zarr.json"),
    *("zarr.json\0", "zarr\0.json", "zarr.json\n", "zarr.json/", " zarr.json", "", ".", "..", "/"),
    *("Zarr.json", "ZARR.JSON", "Values/zarr.json", "values/C/0/0/0/0", "zarr\u200b.json"),
    *("\uff5aarr.json", "values/c/\u0660/0/0/0", "values/c/\uff10/0/0/0", "commits/\u0661-0.json"),
    *("commits/00-0.json", "commits/0-00.json", "values/c/00/0/0/0", "values/c/-1/0/0/0"),
    *("commits/99999999999-0.json", "values/c/0", "values/c/0/0/0/0/0", "values/c/0/0"),
    *("contributions/0123456789ABCDEF.json", "contributions/x.json", "contributions/../a.json"),
    *("manifest.json", "manifest.sig.json", ".lock", ".zarr.json.1.partial", "catalog.json"),
    *("aux/zarr.json", "values/zarr.json.exe", "zarr.json:stream", "file:///zarr.json"),
    *("evil/zarr.json", "evil/c/0/0", "con/zarr.json", "x" * 300 + "/zarr.json", "\ud800"),
    *("s3://bucket/zarr.json", "%2e%2e/zarr.json", "values/c/0/0/0/0?x", "values/c/0/0/0/0#x"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("instead", [None, "values/zarr.json"])
def test_an_object_of_another_name_is_refused(name: str, instead: str | None) -> None:
    def change(body: dict[str, Any]) -> None:
        body["objects"][name] = {"size_bytes": 10, "sha256": "a" * 64}
        if instead is not None:
            del body["objects"][instead]

    refused(changed(change))


@given(st.text(max_size=40))
def test_a_name_that_passes_is_a_plain_path_below_the_cache(name: str) -> None:
    try:
        check_names([name])
    except ValueError:
        return
    assert name.isascii()
    assert name == name.lower()
    parts = name.split("/")
    assert not any(part in ("", ".", "..") for part in parts)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_./-")


@pytest.mark.parametrize("name", sorted(a_manifest()["objects"]))
def test_a_manifest_without_one_of_its_objects_is_refused(name: str) -> None:
    if name == "seal.json":
        return  # only what is complete is sealed
    if name.startswith("contributions/"):
        return  # who contributed stands in the manifest itself
    refused(changed(lambda body: body["objects"].pop(name)), "object|record|too few")


@pytest.mark.parametrize("roles", [("witness",), ("witness", "teacher_witness")])
@pytest.mark.parametrize(
    "encoding", ["topk:5", "packed:5", "adaptive:0.01", "adaptive:1e-05", "dense:f2", "dense:u1"]
)
def test_the_inventory_of_each_encoding_is_what_its_caches_hold(
    encoding: str, roles: tuple[str, ...]
) -> None:
    parsed = parse_encoding(encoding, 100)
    assert str(parsed) == encoding
    specs, arrays = parsed.specs(100), arrays_of(encoding)
    assert arrays is not None
    grid = Grid(2, 6, 2, 10, 4)
    names = {
        "zarr.json",
        "rows/c/0",
        "uids/c/0/0",
        "uids/c/1/0",
        "contents/c/0/0",
        "contents/c/1/0",
    }
    names |= {f"{s.name}/zarr.json" for s in specs} | {f"{name}/zarr.json" for name in roles}
    names |= {f"{name}/zarr.json" for name in ("rows", "uids", "contents")}
    spans = list(grid.spans())[1:]
    for span in spans:
        names |= {span.commit_name, *object_names(span, specs, witnesses=roles).values()}
    check_names(names)
    assert check_inventory(names, arrays=arrays, num_tars=2, num_runs=3) == (5, 0)
    with pytest.raises(ValueError, match="outside"):
        check_inventory(names, arrays=arrays, num_tars=2, num_runs=2)


# --- values ------------------------------------------------------------------------------------

INTEGERS: list[Value] = [-1, -(2**63), 2**48, 2**63, 2**64, 10**400, 1e308, 1.0, 0.5, True, None]
INTEGERS += ["1", [1], {}, "\u0661"]
COUNTS = [
    ("format",), ("views",), ("span_views",), ("spans",), ("num_classes",),
    ("dataset", "num_samples"), ("dataset", "num_tars"), ("contributions", 0, "spans"),
    ("objects", "zarr.json", "size_bytes"), ("objects", "values/c/0/0/0/0", "size_bytes"),
]  # fmt: skip
TEXTS = [
    ("cache",), ("encoding",), ("dataset", "id"), ("dataset", "name"), ("recipe", "name"),
    ("recipe", "id"), ("teacher", "id"), ("teacher", "spec"), ("licences", "data"),
    ("contributions", 0, "who"), ("contributions", 0, "when"), ("contributions", 0, "kdcache"),
    ("contributions", 0, "commit"), ("contributions", 0, "versions", "torch"),
    ("objects", "zarr.json", "sha256"), ("recipe", "text", "crop", "law"),
]  # fmt: skip


def put(place: tuple[str | int, ...], value: Value) -> Change:
    def change(body: Any) -> None:
        for key in place[:-1]:
            body = body[key]
        body[place[-1]] = value

    return change


@pytest.mark.parametrize("place", COUNTS, ids=lambda p: ".".join(map(str, p)))
@pytest.mark.parametrize("value", INTEGERS, ids=lambda v: repr(v)[:20])
def test_what_is_no_count_is_refused(place: tuple[str | int, ...], value: Value) -> None:
    refused(changed(put(place, value)))


ESCAPES = ["\x1b[2J", "a\nb", "a\tb", "\x00", "\x7f", "\x9b1m", "a\u202eb", "\u2028", "\ufeff"]
ESCAPES += ["\u200b", "\ud800", "\udfff", "x" * 10_001]


@pytest.mark.parametrize("place", TEXTS, ids=lambda p: ".".join(map(str, p)))
@pytest.mark.parametrize("value", [*ESCAPES, 7, [], {}, True], ids=lambda v: ascii(v)[:20])
def test_what_is_no_printable_text_is_refused(place: tuple[str | int, ...], value: Value) -> None:
    refused(changed(put(place, value)))


@pytest.mark.parametrize("value", ["\x1b[2J", "a\u202eb", "\n"], ids=ascii)
def test_keys_of_texts_are_printable_too(value: str) -> None:
    refused(changed(put(("contributions", 0, "versions", value), "1")))
    refused(changed(put(("recipe", "text", value), "1")))
    refused(changed(put((value,), "1")))


def test_texts_of_a_publisher_are_written_as_a_terminal_may_be_shown_them() -> None:
    body = a_manifest()["contributions"][0] | {"who": "\x1b[2J ü \ud800"}
    assert Contribution(**body).who == "\\x1b[2J ü \\ud800"
    again = Contribution.model_validate_json(json.dumps(body | {"who": "\x9b"}))
    assert again.who == "\\x9b"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e309", "-1.0", "1e300", '"1"'])
def test_device_hours_are_a_finite_number(text: str) -> None:
    assert b'"device_hours":1.5' in MANIFEST_BYTES
    refused(MANIFEST_BYTES.replace(b'"device_hours":1.5', f'"device_hours":{text}'.encode()))
    parse(MANIFEST_BYTES.replace(b'"device_hours":1.5', b'"device_hours":null'))


@pytest.mark.parametrize(
    "digest", ["a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n", "\uff41" * 64, "\u0660" * 64, ""],
    ids=ascii,
)  # fmt: skip
def test_a_digest_is_of_64_small_hexadecimal_digits(digest: str) -> None:
    refused(changed(put(("objects", "zarr.json", "sha256"), digest)))


# --- whole manifests ---------------------------------------------------------------------------

LOOSE = [
    (put(("cache",), "0" * 64), "other ids"),
    (put(("dataset", "id"), "0" * 64), "other ids"),
    (put(("teacher", "id"), "0" * 64), "other ids"),
    (put(("recipe", "text", "seed"), 6), "other ids"),
    (put(("spans",), 3), "3 spans, but the records of 4"),
    (put(("spans",), 5), "5 spans"),
    (put(("contributions",), []), "1 contributions, of which it does not tell"),
    (put(("views",), 2), "outside"),
    (put(("views",), 5), "5 views in spans of 2"),
    (put(("views",), 0), "0 views"),
    (put(("span_views",), 0), "in spans of 0"),
    (put(("span_views",), 8), "4 views in spans of 8"),
    (put(("dataset", "num_tars"), 1), "outside"),
    (put(("dataset", "num_tars"), 3), "missing"),
    (put(("dataset", "num_tars"), 2**47), "too few"),
    (put(("dataset", "num_tars"), 0), "outside"),
    (put(("objects", "commits/0-0.json", "size_bytes"), 2**40), "bytes"),
    (put(("objects",), {}), "too few"),
    (put(("more",), 1), "more: Extra inputs"),
    (put(("objects", "zarr.json", "url"), "https://x"), "no size and sha256, or more"),
    (lambda body: body.pop("licences"), "licences: Field required"),
    (lambda body: body["licences"].pop("data"), "licences.data: Field required"),
]


@pytest.mark.parametrize(("change", "words"), LOOSE, ids=lambda v: v if isinstance(v, str) else "")
def test_what_does_not_fit_together_is_refused(change: Change, words: str) -> None:
    assert words in refused(changed(change))


def test_sizes_add_up_to_no_more_than_a_disk_can_hold() -> None:
    def change(body: dict[str, Any]) -> None:
        for name, entry in body["objects"].items():
            if not name.endswith(".json"):
                entry["size_bytes"] = 2**48 - 1

    assert "bytes in all" in refused(changed(change))


@pytest.mark.parametrize("encoding", ["topk:0", "topk:02", "sparse:5", "topk:\u0662", "dense:f4"])
def test_an_unknown_encoding_asks_for_a_newer_kdcache(encoding: str) -> None:
    from kdcache.identity import cache_id
    from tests.sharing.signing import IDS

    data = manifest_bytes(encoding=encoding, cache=cache_id(**IDS, encoding=encoding))
    with pytest.raises(UsageError, match="unknown to this kdcache; install a newer"):
        parse(data)


def test_a_newer_format_asks_for_a_newer_kdcache_and_a_huge_one_is_damage() -> None:
    with pytest.raises(UsageError, match="manifest format 2, this kdcache reads up to 1"):
        parse(manifest_bytes(format=2))
    for value in (0, -1, 2**31, 10**400, "2", None, True, [2]):
        refused(manifest_bytes(format=value))


def test_a_key_that_stands_twice_is_refused() -> None:
    twice = MANIFEST_BYTES.replace(b'"views":4', b'"views":4,"views":4')
    assert "twice" in refused(twice)
    name = b'"zarr.json":{"sha256":"' + b"a" * 64 + b'","size_bytes":10}'
    assert MANIFEST_BYTES.count(name) == 1
    assert "twice" in refused(MANIFEST_BYTES.replace(name, name + b"," + name))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d + b"\n",
        lambda d: b" " + d,
        lambda d: b"\xef\xbb\xbf" + d,
        lambda d: json.dumps(json.loads(d), indent=1).encode(),
        lambda d: d.replace(b'"views":4', b'"views":4.0'),
        lambda d: d.replace(b'"views":4', b'"views":4e0'),
        lambda d: d.replace(b'"device_hours":1.5', b'"device_hours":1.50'),
        lambda d: d.replace(b"Vision team", b"Vision\\u0020team"),
        lambda d: d.replace(b"zarr.json", b"zarr\\u002ejson"),
        lambda d: d.decode().encode("utf-16"),
        lambda d: d[:-1],
        lambda d: d + d,
        lambda d: b"",
        lambda d: b"null",
        lambda d: b"[]",
        lambda d: b'"x"',
    ],
)
def test_a_manifest_has_one_form(change: Any) -> None:
    data = change(MANIFEST_BYTES)
    assert data != MANIFEST_BYTES
    refused(data)


def nested(depth: int) -> bytes:
    inner: Value = 1
    for _ in range(depth):
        inner = {"a": inner}
    return changed(put(("recipe", "text", "deep"), inner))


@pytest.mark.parametrize("depth", [published.MAX_DEPTH, 200, 900])
def test_deep_nesting_is_refused(depth: int) -> None:
    refused(nested(depth), "nested|recursion")


@pytest.mark.parametrize("data", [b"[" * 10**6, b'{"a":' * 10**5, b'{"objects":' + b"[" * 10**5])
def test_endless_nesting_is_refused_at_once(data: bytes) -> None:
    started = time.monotonic()
    refused(data)
    assert time.monotonic() - started < 5


# --- fuzz --------------------------------------------------------------------------------------


def outcome(data: bytes) -> None:
    """Read a manifest: it is what it says, or refused in words of one line."""
    try:
        found = parse(data)
    except (CorruptError, UsageError) as error:
        words = str(error)
    else:
        words = ""
        assert json.loads(found.to_bytes()) == json.loads(data)
        assert canonical_json(json.loads(data)) == data
    assert words.isprintable()


def _places(value: Value, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*place, key))
        if isinstance(inner, dict | list):
            found += _places(inner, (*place, key))
    return found


PLACES = _places(a_manifest())
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*INTEGERS, *ESCAPES, "a" * 64, "0" * 64, *NAMES]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_manifest_with_other_values_is_read_or_refused(data: st.DataObject) -> None:
    body = copy.deepcopy(a_manifest())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(PLACES))
        inner: Any = body
        try:
            for key in place[:-1]:
                inner = inner[key]
            match data.draw(st.sampled_from(["put", "drop", "copy", "rename"])):
                case "put":
                    inner[place[-1]] = data.draw(VALUES)
                case "drop":
                    del inner[place[-1]]
                case "copy":
                    other = data.draw(st.sampled_from(PLACES))
                    if len(other) == 1:
                        inner[place[-1]] = copy.deepcopy(body[other[0]])
                case "rename":
                    inner[data.draw(st.text(max_size=9))] = inner.pop(place[-1])
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    outcome(text.encode(errors="surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(MANIFEST_BYTES)), st.integers(0, 9), st.binary(max_size=9)),
        min_size=1,
        max_size=3,
    )
)
def test_a_manifest_with_other_bytes_is_read_or_refused(
    edits: list[tuple[int, int, bytes]],
) -> None:
    data = MANIFEST_BYTES
    for start, length, new in edits:
        data = data[:start] + new + data[start + length :]
    outcome(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8 * len(MANIFEST_BYTES) - 1))
def test_a_manifest_with_a_flipped_bit_is_another_or_refused(bit: int) -> None:
    data = bytearray(MANIFEST_BYTES)
    data[bit // 8] ^= 1 << bit % 8
    outcome(bytes(data))


# --- time and memory ---------------------------------------------------------------------------

BOMB = """
import resource, sys, time
from pathlib import Path
from kdcache.cache.published import parse_manifest
from kdcache.errors import CorruptError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    start, unit, end, count = eval(line)
    try:
        parse_manifest(start + unit * count + end, where=Path("m"))
    except CorruptError as error:
        assert str(error).isprintable()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) >> 10, time.process_time())
"""
HEAD = b'{"format":1,"objects":{},"contributions":['
BOMBS: list[tuple[bytes, bytes, bytes, int]] = [
    (HEAD, b"[],", b"[]]}", 6_000_000),
    (HEAD, b"[],", b"[]]}", 400_000),
    (HEAD, b"{},", b"{}]}", 45_000),
    (HEAD, b"0,", b"0]}", 900_000),
    (HEAD, b"{" + b" " * 50 + b"},", b"{}]}", 300_000),
    (b'{"format":1,"objects":{', b'"rows/c/0":{},', b'"a":0}}', 100_000),
    (b'{"format":1,"objects":{},"recipe":{"text":[', b'{"":[]},', b"0]}}", 200_000),
    (HEAD + b'{"who":"', b"\\u001b", b'"}]}', 2_000_000),
    (b'{"format":', b"9", b"}", 10_000_000),
    (b'{"format":0.', b"9", b"}", 10_000_000),
]


def test_manifests_of_very_many_values_take_little_memory_and_time() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMB],
        input="\n".join(map(repr, BOMBS)),
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 400
    assert seconds < 10
