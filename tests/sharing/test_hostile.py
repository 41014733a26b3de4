"""Claims about caches of strangers, whose every digest fits: read, or refused at once."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcache.cache import limits
from kdcache.cache.create import create_cache
from kdcache.cache.extend import extend_cache
from kdcache.cache.layout import Span
from kdcache.cache.shard import decode_tile, encode_tile, with_checksum
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, KdcacheError, UsageError
from kdcache.identity import digest
from kdcache.targets.encoding import parse_encoding, to_arrays
from kdcache.targets.packed import Arrays
from kdcache.targets.target import FieldSpec
from tests import tiny
from tests.cache.filling import full
from tests.cache.test_attributes import put, rewrite

ENCODINGS = ["topk:3", "packed:3", "adaptive:0.01", "dense:f2", "dense:u1"]
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full(tmp_path_factory.mktemp("sound") / "c", num_views=4).cache.path


@pytest.fixture
def path(tmp_path: Path, sound: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "c")


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Nothing here may take long: what is claimed would take minutes, or all memory."""
    started = time.process_time()
    yield
    assert time.process_time() - started < 10


def refused(path: Path, *, reading: bool = False) -> str:
    """Return what is said of a cache that cannot be opened, or one that cannot be read."""
    with pytest.raises(CorruptError) as caught:
        read(path) if reading else open_cache(path)
    return str(caught.value)


def read(path: Path) -> None:
    """Open a cache and read the first tile."""
    cache = open_cache(path)
    cache.read_witness(0, 0)
    cache.read_tile(0, 0)


# --- what attributes claim ---------------------------------------------------------------------

Changes = list[tuple[tuple[str | int, ...], Any]]
MANY = dict.fromkeys(map(str, range(100_000)), 7)
HUGE: dict[str, tuple[str, Changes]] = {
    "views": ("spans, at most", [(("grid", "views"), 2**31 - 1), (("grid", "span_views"), 1)]),
    "span": (
        "spans of 1073741824 views",
        [(("grid", "views"), 2**30), (("grid", "span_views"), 2**30)],
    ),
    "extension": ("spans, at most", [(("grid", "extends_to"), 2**31 - 2)]),
    "rows": ("make a tile of", [(("grid", "max_rows"), 2**32 - 1)]),
    "classes": ("make a tile of", [(("num_classes",), 2**31), (("encoding",), "dense:f2")]),
    "kept": ("make a tile of", [(("num_classes",), 2**31), (("encoding",), f"topk:{2**31}")]),
    "names": ("a name is no text", [(("classes",), [7] * 1_000_000)]),
    "versions": ("more than 10000 values", [(("versions",), MANY)]),
    "recipe": ("more than 10000 values", [(("recipe",), MANY)]),
    "licences": ("more than 10000 values", [(("licences",), MANY)]),
    "tars": (r"dataset\.tars\.0", [(("dataset", "tars"), [{}] * 300_000)]),
    "more tars": (
        "spans, at most",
        [
            (("dataset", "tars"), [{"name": "", "num_rows": 0, "digest": ""}] * 50_000),
            (("dataset", "num_samples"), 0),
            (("grid", "views"), 2**20),
            (("grid", "span_views"), 1),
        ],
    ),
}


@pytest.mark.parametrize(("words", "changes"), HUGE.values(), ids=HUGE)
def test_attributes_that_claim_a_huge_cache_are_refused(
    path: Path, words: str, changes: Changes
) -> None:
    def change(body: dict[str, Any]) -> None:
        for place, value in changes:
            put(*place, value=value)(body)

    rewrite(path, change)
    message = refused(path)
    assert re.search(words, message)
    assert len(message) < 1000


@pytest.mark.parametrize("deep", [DEEP, b'{"a":' * 5_000, b"[" * 900 + b"]" * 900])
@pytest.mark.parametrize("name", ["zarr.json", "values/zarr.json", "commits/0-0.json"])
def test_deep_documents_are_refused(path: Path, name: str, deep: bytes) -> None:
    text = (path / name).read_bytes()
    (path / name).write_bytes(text.replace(b"{", b'{"a": ' + deep + b",", 1))
    assert name in refused(path, reading=True)


def test_one_does_not_make_a_cache_that_would_be_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(path)
    uids = [np.arange(3, dtype=np.uint64)]
    info = tiny.make_info(5, "topk:3", uids=uids, contents=uids)
    make = {"uids": uids, "contents": uids}
    with pytest.raises(UsageError, match="spans, at most"):
        create_cache(tmp_path / "n", info, num_views=2**31, span_views=1, **make)
    with pytest.raises(UsageError, match="spans of 1048576 views, at most"):
        create_cache(tmp_path / "n", info, num_views=2**20, span_views=2**20, **make)
    with pytest.raises(UsageError, match="spans, at most"):
        extend_cache(path, num_views=2**24)
    assert open_cache(path).grid == cache.grid, "nothing was written"
    monkeypatch.setattr(limits, "MOST_CHUNK_BYTES", 17)
    with pytest.raises(UsageError, match="make a tile of 18 bytes, at most 17; take smaller tars"):
        create_cache(tmp_path / "n", info, num_views=1, **make)
    assert not (tmp_path / "n").exists()


# --- what files are ----------------------------------------------------------------------------


def _sparse(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(2**40)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


NAMES = ["rows/c/0", "values/zarr.json", "commits/0-0.json", "values/c/0/0/0/0", "witness/c/0/0/0"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("odd", [_sparse, _pipe, _endless, _folder, _loop])
def test_what_is_no_file_of_a_cache_is_not_read_for_ever(
    path: Path, name: str, odd: Callable[[Path], None]
) -> None:
    odd(path / name)
    with pytest.raises((CorruptError, UsageError), match=name):
        read(path)


@pytest.mark.parametrize("odd", [_sparse, _pipe, _endless, _loop])
def test_a_root_document_that_never_ends_is_refused(
    path: Path, odd: Callable[[Path], None]
) -> None:
    odd(path / "zarr.json")
    with pytest.raises(KdcacheError, match=r"zarr\.json"):
        open_cache(path)


def test_a_link_to_another_file_is_read_and_refused_without_a_word_of_it(path: Path) -> None:
    secret = path.parent / "secret"
    secret.write_text("the secret text")
    for name in NAMES:
        kept = (path / name).read_bytes()
        (path / name).unlink()
        (path / name).symlink_to(secret)
        assert "the secret" not in refused(path, reading=True)
        (path / name).unlink()
        (path / name).write_bytes(kept)


# --- what records and objects claim ------------------------------------------------------------


def recommit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the record of the first span, and state the digest of what it is then."""
    file = path / "commits/0-0.json"
    body = json.loads(file.read_text())
    change(body)
    del body["digest"]
    file.write_text(json.dumps({**body, "digest": digest(body)}))


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "long chunk": lambda b: b["tiles"]["values"][0].__setitem__(1, 2**62),
    "longer chunk": lambda b: b["tiles"]["values"][0].__setitem__(1, 2**31),
    "far chunk": lambda b: b["tiles"]["values"][1].__setitem__(0, 2**62),
    "short witness": lambda b: b["tiles"]["witness"][0].__setitem__(1, 7),
    "long witness": lambda b: b["tiles"]["witness"][0].__setitem__(1, 2**40),
    "short chunk": lambda b: b["tiles"]["values"][0].__setitem__(1, 0),
    "many chunks": lambda b: b["tiles"].update(values=[[0, 9, 0]] * 200_000),
    "no chunks": lambda b: b["tiles"].update(values=[]),
    "arrays": lambda b: b["tiles"].update({str(n): [[0, 9, 0]] for n in range(30_000)}),
    "views": lambda b: b.update(views=list(range(200_000))),
    "object": lambda b: b["objects"].update({"../../x": {"size_bytes": 1, "sha256": "a" * 64}}),
    "size": lambda b: b["objects"]["values/c/0/0/0/0"].update(size_bytes=2**62),
    "rows": lambda b: b.update(rows=2**62),
    "unusable": lambda b: b.update(unusable=[2**62]),
}


@pytest.mark.parametrize("change", RECORDS.values(), ids=RECORDS)
def test_records_that_claim_other_objects_are_refused(
    path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    recommit(path, change)
    message = refused(path, reading=True)
    assert len(message) < 1000


@pytest.mark.parametrize("array", ["rows", "uids", "contents"])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 12, 4096])
def test_objects_of_other_lengths_with_checksums_that_fit_are_refused(
    path: Path, array: str, length: int
) -> None:
    name = "rows/c/0" if array == "rows" else f"{array}/c/0/0"
    sound = (path / name).read_bytes()
    (path / name).write_bytes(with_checksum((sound[1:-4] * 500)[:length]))
    with pytest.raises(CorruptError, match=r"unlike the dataset|differ from its digest"):
        open_cache(path).uids(0)


# --- frames ------------------------------------------------------------------------------------

ROWS, CLASSES = 200, 20
SIZE, BLOCK, OWN = 4, 8, 12  # where a frame's header states them


def a_tile(encoding: str, rows: int = ROWS) -> tuple[dict[str, bytes], tuple[FieldSpec, ...]]:
    """Return the chunks of a tile of random logits, and its arrays."""
    import torch

    parsed, rng = parse_encoding(encoding, CLASSES), np.random.default_rng(0)
    specs = parsed.specs(CLASSES)
    logits = torch.from_numpy(rng.normal(0, 4, (rows, CLASSES)).astype(np.float32))
    found = to_arrays(parsed.encode(logits), specs)
    arrays = {s.name: found[s.name].reshape(rows, -1) for s in specs if s.layout != "counts"}
    return encode_tile(arrays, specs, num_rows=rows), specs


def decode(chunks: dict[str, bytes], specs: tuple[FieldSpec, ...], rows: int = ROWS) -> Arrays:
    return decode_tile(chunks, specs, num_rows=rows, max_rows=rows, where="tile")


def stating(frame: bytes, place: int, number: int) -> bytes:
    return frame[:place] + number.to_bytes(4, "little") + frame[place + 4 :]


SIZES = [0, 1, 15, 16, 17, 255, 2**16, 2**31 - 17, 2**31 - 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_that_state_other_lengths_are_refused_before_anything_is_made(
    encoding: str,
) -> None:
    chunks, specs = a_tile(encoding)
    decode(chunks, specs)
    for spec in specs:
        frame = chunks[spec.name]
        own = (len(frame) - 4, int.from_bytes(frame[SIZE : SIZE + 4], "little"))
        for number in SIZES:
            for place in (SIZE, OWN):
                if number not in own:
                    with pytest.raises(CorruptError, match=f"{spec.name} is damaged: of another"):
                        decode({**chunks, spec.name: stating(frame, place, number)}, specs)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_truncated_and_nested_frames_are_refused(encoding: str) -> None:
    chunks, specs = a_tile(encoding)
    for spec in specs:
        frame = chunks[spec.name][:-4]
        cuts = [frame[:length] for length in (0, 1, 4, 8, 15, 16, 17, len(frame) // 2)]
        cuts += [frame[:-1], frame + b"\0", frame[:16] + frame, frame * 2]
        cuts += [stating(cut, OWN, len(cut)) for cut in cuts if len(cut) >= 16]
        for cut in cuts:
            try:
                found = decode({**chunks, spec.name: cut + b"\0" * 4}, specs)
            except CorruptError:
                continue
            assert {len(array) for array in found.values()} == {ROWS}  # what follows is not read


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_of_other_compressors_shuffles_and_items_are_refused(encoding: str) -> None:
    chunks, specs = a_tile(encoding)
    for spec in specs:
        frame = bytearray(chunks[spec.name])
        for place, bits in ((0, 0xFF), (2, 0b11101101), (3, 0xFF)):
            for bit in range(8):
                if bits >> bit & 1:
                    other = bytearray(frame)
                    other[place] ^= 1 << bit
                    with pytest.raises(CorruptError, match="of another kind"):
                        decode({**chunks, spec.name: bytes(other)}, specs)


def mutated(frame: bytes, rng: np.random.Generator) -> bytes:
    """Return a frame with a few changes, often of its header or first blocks.

    Most state their lengths and kind as they should be: what is left is Blosc's own to refuse.
    """
    body = bytearray(frame[:-4])
    for _ in range(rng.integers(1, 4)):
        near = (16, 64, len(body))[rng.integers(3)]
        place = int(rng.integers(min(near, len(body))))
        match rng.integers(4):
            case 0:
                body[place] ^= 1 << int(rng.integers(8))
            case 1:
                body[place] = int(rng.integers(256))
            case 2:
                body[place : place + 4] = int(rng.choice(SIZES)).to_bytes(4, "little")
            case _:
                other, length = int(rng.integers(len(body))), int(rng.integers(1, 16))
                body[place : place + length] = body[other : other + length]
    if rng.random() < 0.3:
        body = body[: max(16, int(rng.integers(len(body))))]
    if rng.random() < 0.9:
        body[:4], body[SIZE:BLOCK] = frame[:4], frame[SIZE:BLOCK]
        body[OWN:16] = len(body).to_bytes(4, "little")
    return bytes(body) + frame[-4:]


def _fuzz(encoding: str, rows: int, tries: int) -> None:
    chunks, specs = a_tile(encoding, rows)
    rng = np.random.default_rng(len(encoding) + rows)
    read = 0
    for _ in range(tries):
        name = specs[rng.integers(len(specs))].name
        try:
            decode({**chunks, name: mutated(chunks[name], rng)}, specs, rows)
            read += 1
        except CorruptError:
            continue
    os._exit(0 if 0 < read < tries else 1)  # neither all refused nor all read


@pytest.mark.parametrize(("rows", "tries"), [(ROWS, 5_000), (20_000, 500)])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damaged_frames_are_read_or_refused_and_never_end_the_process(
    encoding: str, rows: int, tries: int
) -> None:
    """In a child, which faults of Blosc kill at once where nobody compares the lengths."""
    child = tiny.FORK.Process(target=_fuzz, args=(encoding, rows, tries))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_a_tile_of_classes_that_are_not_there_is_not_replayed(path: Path) -> None:
    """The bytes are what was committed, but name class 65,535 of 5."""
    cache = open_cache(path)
    _commit_classes(cache, 60_000)
    found = open_cache(path)
    arrays = {name: field.numpy() for name, field in found.read_tile(0, 0).fields.items()}
    assert not found.info.encoding.in_range(arrays, found.info.num_classes)


def _commit_classes(cache: Cache, number: int) -> None:
    """Write the first span anew with other classes, all digests as they should be."""
    span, specs = Span(0, 0), cache.info.specs
    tiles = [cache.read_tile(0, view).fields for view in cache.grid.views(span)]
    fields: dict[str, NDArray[Any]] = {
        s.name: np.stack([tile[s.name].numpy() for tile in tiles]).astype(s.dtype) for s in specs
    }
    fields["indices"][:] = number
    witness = np.stack([cache.read_witness(0, view) for view in cache.grid.views(span)])
    commit = cache.commit(span)
    (cache.path / span.commit_name).unlink()
    cache.write_span(
        span,
        fields,
        witnesses=[witness],
        layers={},
        fidelity=commit.fidelity,
        versions={},
        started=time.monotonic(),
    )
