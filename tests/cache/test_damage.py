"""Claims about damage: whatever happens to any file of a cache, verifying and reading both say so.

No damage, and so not tried: another spelling of the same JSON, such as blanks after its end.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache import audit
from kdcache.cache.layout import Span, object_names, span_named
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, IncompleteError, KdcacheError, UsageError
from tests.cache.filling import Filled, full
from tests.cache.keeping import files

ENCODINGS = ["topk:3", "packed:3", "adaptive:0.05", "dense:f2", "dense:u1"]
EXAMPLES = 450  # of each encoding
SEAL, LOCK = "seal.json", ".lock"
NEXT_STEP = re.compile(r"; (run kdcache (repair|precompute)|install kdcache|choose another path)")

Damage = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Subject:
    """A sealed cache and the bytes of its files; and of two like it.

    stale: of the same cache id, from a teacher that gives other numbers. foreign: of another id.
    """

    filled: Filled
    whole: dict[str, bytes]
    stale: dict[str, bytes]
    foreign: dict[str, bytes]

    @property
    def path(self) -> Path:
        return self.filled.cache.path

    @contextmanager
    def damaged(self, damage: Damage) -> Iterator[None]:
        """Write other bytes to files, or take away those of None; mend them in the end."""
        assert any(self.whole[name] != data for name, data in damage.items())
        try:
            for name, data in damage.items():
                (self.path / name).unlink()
                if data is not None:
                    (self.path / name).write_bytes(data)
            yield
        finally:
            for name in damage:
                (self.path / name).write_bytes(self.whole[name])


@pytest.fixture(scope="module", params=ENCODINGS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Tars of 5 and 3 rows, one of them without targets, in 4 views: 4 spans."""
    folder = tmp_path_factory.mktemp("damage")
    trees = []
    for name, seed, teacher in (("c", 0, "t"), ("stale", 1, "t"), ("foreign", 2, "u")):
        filled = full(
            folder / name,
            encoding=request.param,
            num_classes=12,
            rows=(5, 3),
            unusable={0: (2,)},
            teacher=teacher,
            seed=seed,
        )
        seal(filled.cache)
        trees.append(files(filled.cache.path))
        if name == "c":
            first = filled
    return Subject(first, *trees)


@pytest.fixture(scope="module", autouse=True)
def without_zarr() -> Iterator[None]:
    """Leave out what zarr-python adds to verifying: everything is found without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "_check_by_zarr", lambda *_: iter(()))
        yield


# --- what is said ----------------------------------------------------------------------------


def _read_all(cache: Cache) -> None:
    for tar in range(cache.grid.num_tars):
        cache.uids(tar)
        cache.contents(tar)
        for view in range(cache.grid.num_views):
            cache.read_tile(tar, view)
            cache.read_witness(tar, view)
    cache.totals()


def _verified(path: Path) -> list[str]:
    """Return what kdcache verify would say, one text for each thing that it finds.

    The command adds the next step, unless the cache cannot be opened.
    """
    try:
        cache = open_cache(path)
    except KdcacheError as error:
        return [str(error)] if NEXT_STEP.search(str(error)) else []
    return [f"{found.where}: {found.problem}" for found in audit.check_objects(cache)]


def _words(name: str) -> list[str]:
    """Return words, one of which tells of a file: its name, its span or objects, or its tar."""
    parts = name.split("/")
    if parts[0] == "commits" and (span := span_named(parts[1])):
        return [name, f"span {span} ", f"/c/{span.tar}/{span.run}"]
    return [name, f"tar {parts[2]} "] if name.startswith(("uids/c/", "contents/c/")) else [name]


def _check_found(subject: Subject, damage: Damage, *, is_read: bool = True) -> None:
    """Check that damage is found by verifying and by reading, and that one file of it is named."""
    words = [word for name in damage for word in _words(name)]
    if "zarr.json" in damage:  # that of another cache makes the records another's
        words += [f"{subject.path}: ", "the record of span"]
    with subject.damaged(damage):
        texts = _verified(subject.path)
        assert any(word in text for text in texts for word in words), (texts, words)
        if damage == {SEAL: None} or not is_read:
            return
        with pytest.raises((CorruptError, IncompleteError, UsageError)) as caught:
            _read_all(open_cache(subject.path))
    assert any(word in str(caught.value) for word in words), (caught.value, words)
    assert NEXT_STEP.search(str(caught.value)), caught.value


def test_a_sound_cache_is_found_sound(subject: Subject) -> None:
    assert _verified(subject.path) == []
    _read_all(open_cache(subject.path))
    assert files(subject.path) == subject.whole


def test_files_that_hold_no_data_may_go(subject: Subject) -> None:
    """Verifying tells of the seal; targets are there all the same."""
    (subject.path / LOCK).unlink()
    assert _verified(subject.path) == []
    with subject.damaged({SEAL: None}):
        assert _verified(subject.path) == [f"{SEAL}: missing, though all spans are there"]
        again = open_cache(subject.path)
        subject.filled.check_all(again)
        totals = again.totals()
    assert open_cache(subject.path).totals() == totals


# --- at random -------------------------------------------------------------------------------


def _blank(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + bytes(len(data[start : start + size])) + data[start + size :]


@st.composite
def _altered(draw: st.DrawFn, data: bytes) -> bytes:
    """Other bytes than data: as disks, networks and editors spoil them."""
    kind = draw(st.sampled_from(["bit", "bit", "bit", "cut", "longer", "block", "burst", "turned"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "longer":
        return data + draw(st.binary(min_size=1, max_size=40).filter(bytes.strip))
    if kind == "block":
        size = draw(st.sampled_from([512, 4096]))
        other = _blank(data, at // size * size, size)
        return other if other != data else b""
    size = draw(st.integers(1, 40))
    if kind == "turned":
        return data[:at] + bytes(byte ^ 255 for byte in data[at : at + size]) + data[at + size :]
    burst = draw(st.binary(min_size=size, max_size=size))
    other = data[:at] + burst + data[at + size :]
    return other if other.split() != data.split() else data[:at]


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_random_damage_of_any_file_is_found(subject: Subject, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(subject.whole)))
    _check_found(subject, {name: data.draw(_altered(subject.whole[name]))})


# --- all cases -------------------------------------------------------------------------------


def test_every_file_that_is_lost_cut_or_blank_is_found(subject: Subject) -> None:
    for name, whole in subject.whole.items():
        others = {b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole + b"\0", whole * 2}
        others |= {_blank(whole, 0, size) for size in (512, 4096)}
        for other in [*others, None]:
            _check_found(subject, {name: other})


def test_every_bit_of_the_smallest_files_counts(subject: Subject) -> None:
    smallest = sorted(subject.whole, key=lambda name: len(subject.whole[name]))[:2]
    for name in smallest:
        whole = subject.whole[name]
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            _check_found(subject, {name: bytes(flipped)})


def test_every_word_of_the_root_document_counts(subject: Subject) -> None:
    """Letters and digits become others, so that it is JSON still: what readers elsewhere see."""
    whole = subject.whole["zarr.json"]
    plain = [at for at, byte in enumerate(whole) if chr(byte).isalnum()]
    for at in plain[::9]:
        other = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        _check_found(subject, {"zarr.json": other})


def test_swapped_files_are_found(subject: Subject) -> None:
    """Each is sound in itself: any two records, documents, or chunks of the same array or span."""
    tried = 0
    for one, other in combinations(sorted(subject.whole), 2):
        first, second = one.split("/"), other.split("/")
        alike = first[0] == second[0] or first[1:] == second[1:]
        if alike and subject.whole[one] != subject.whole[other]:
            _check_found(subject, {one: subject.whole[other], other: subject.whole[one]})
            tried += 1
    assert tried > 30


def test_every_file_of_another_run_or_cache_is_found(subject: Subject) -> None:
    for others in (subject.stale, subject.foreign):
        assert others.keys() == subject.whole.keys()
        differing = [name for name, data in others.items() if data != subject.whole[name]]
        assert len(differing) > 4 * 2
        for name in differing:
            # The totals of another run say nothing of what is read; those of another cache are
            # not believed.
            _check_found(subject, {name: others[name]}, is_read=name != SEAL)


@pytest.mark.parametrize("with_record", [False, True])
def test_a_span_of_another_cache_or_run_is_found(subject: Subject, with_record: bool) -> None:
    """A run of the same id is this cache's where its record is there, too."""
    for span in subject.filled.cache.grid.spans():
        names = set(object_names(span, subject.filled.cache.info.specs).values())
        for others in [subject.foreign] if with_record else [subject.foreign, subject.stale]:
            taken = names | {span.commit_name} if with_record else names
            _check_found(subject, {name: others[name] for name in taken})


def test_a_folder_in_place_of_a_file_is_found(subject: Subject) -> None:
    """As a file that the disk cannot read."""
    for name in sorted(subject.whole):
        path = subject.path / name
        path.unlink()
        path.mkdir()
        try:
            assert _verified(subject.path)
            with pytest.raises((CorruptError, IncompleteError, UsageError)) as caught:
                _read_all(open_cache(subject.path))
            assert NEXT_STEP.search(str(caught.value)), caught.value
        finally:
            path.rmdir()
            path.write_bytes(subject.whole[name])


def test_a_file_in_place_of_a_folder_is_found(subject: Subject) -> None:
    for folder in [path for path in subject.path.iterdir() if path.is_dir()]:
        aside = folder.rename(folder.with_name("aside"))
        folder.write_bytes(b"")
        try:
            assert _verified(subject.path)
            with pytest.raises((CorruptError, IncompleteError), match=folder.name) as caught:
                _read_all(open_cache(subject.path))
            assert NEXT_STEP.search(str(caught.value)), caught.value
        finally:
            folder.unlink()
            aside.rename(folder)


def test_damage_of_one_span_leaves_the_others_readable(subject: Subject) -> None:
    span = Span(1, 0)
    record = {span.commit_name: None}
    broken = dict.fromkeys(object_names(span, subject.filled.cache.info.specs).values(), b"")
    for damage in (record, broken):
        with subject.damaged(damage):
            cache = open_cache(subject.path)
            for tar, view in subject.filled.fields:
                if cache.grid.span_of(tar, view) != span:
                    subject.filled.check(cache, tar, view)


def test_repair_finds_what_verifying_finds(subject: Subject) -> None:
    """Unchecked, a cache opens with other documents than its attributes ask for."""
    for name in subject.whole:
        if name.endswith("/zarr.json") or name == "rows/c/0":
            with subject.damaged({name: b"{}"}):
                found = [
                    f.where for f in audit.check_objects(open_cache(subject.path, checked=False))
                ]
                assert found == [name]


def test_the_originals_are_as_they_were(subject: Subject) -> None:
    """Else the tests above would have tried something else."""
    assert files(subject.path) == subject.whole
    shutil.rmtree(subject.path)
