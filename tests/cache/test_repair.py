"""Claims about repair: what attributes decide comes back, damaged spans go, nothing is guessed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.cache.audit import check_objects
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.merge import Copying, run_copying
from kdcache.cache.objects import Locks
from kdcache.cache.repair import Plan, carry_out, is_readable, plan_repair, restore_root
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, MismatchError, UsageError
from kdcache.identity import digest
from tests import tiny
from tests.cache.filling import empty, full
from tests.cache.keeping import files, flip, killed_runs, refusal

SPAN = Span(1, 0)
METADATA = [
    *(f"{array}/zarr.json" for array in ("indices", "values", "tails", "witness")),
    *("uids/zarr.json", "contents/zarr.json", "rows/zarr.json", "rows/c/0"),
]


def mend(path: Path, copies: Sequence[Path] = (), dataset: Dataset | None = None) -> Plan:
    """Do what the command does but for the teacher."""
    sources = tuple(open_cache(copy) for copy in copies)
    if not is_readable(path):
        restore_root(path, sources)
    cache = open_cache(path, checked=False)
    plan = plan_repair(cache, sources, dataset)
    cache = cache if plan.is_empty else carry_out(cache, plan)
    run_copying(Copying(cache, sources, tuple(cache.missing())))
    return plan


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: list[Callable[[Path], None]] = [flip, _cut, lambda path: path.unlink()]


@pytest.fixture
def sound(complete: Path) -> dict[str, bytes]:
    """The files of the sound cache."""
    return files(complete)


def test_a_sound_cache_has_nothing_to_repair(cache: Cache, sound: dict[str, bytes]) -> None:
    plan = mend(cache.path)
    assert plan == Plan((), (), {}, (), False, ())
    assert plan.is_empty
    assert files(cache.path) == sound


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", METADATA)
def test_what_the_attributes_decide_is_written_again(
    cache: Cache, sound: dict[str, bytes], name: str, damage: Callable[[Path], None]
) -> None:
    damage(cache.path / name)
    plan = mend(cache.path)
    assert (plan.metadata, plan.spans, plan.lost) == ((name,), (), ())
    assert files(cache.path) == sound


def test_all_of_it_at_once_is_written_again(cache: Cache, sound: dict[str, bytes]) -> None:
    for name in METADATA:
        (cache.path / name).unlink()
    assert set(mend(cache.path).metadata) == set(METADATA)
    assert files(cache.path) == sound


def test_consolidated_metadata_are_written_again(cache: Cache, sound: dict[str, bytes]) -> None:
    """And what others wrote into the attributes stays."""
    root = json.loads((cache.path / "zarr.json").read_bytes())
    root["attributes"] |= {"notes": ["ours"]}
    wanted = json.dumps(root, indent=2).encode()
    root["consolidated_metadata"]["metadata"]["values"]["shape"][1] = 9
    (cache.path / "zarr.json").write_text(json.dumps(root))
    assert mend(cache.path).metadata == ("zarr.json",)
    assert files(cache.path) == {**sound, "zarr.json": wanted}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_seal_is_made_again(
    cache: Cache, sound: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    damage(cache.path / "seal.json")
    assert mend(cache.path).unsound_seal
    assert files(cache.path) == sound


OF_A_SPAN = ["indices/c/1/0/0/0", "values/c/1/0/0/0", "tails/c/1/0/0/0", "witness/c/1/0/0"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_nothing_is_withdrawn_that_the_system_cannot_read(
    cache: Cache, sound: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(UsageError, match=os.strerror(number)):
        mend(cache.path)
    assert files(cache.path) == sound


def test_a_folder_in_place_of_an_object_is_not_deleted(
    cache: Cache, sound: dict[str, bytes]
) -> None:
    (cache.path / OF_A_SPAN[0]).unlink()
    (cache.path / OF_A_SPAN[0] / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"a folder stands in a file's place; move it away"):
        mend(cache.path)
    (cache.path / OF_A_SPAN[0] / "mine").rmdir()
    (cache.path / OF_A_SPAN[0]).rmdir()
    assert not set(files(cache.path).items()) - set(sound.items())
    mend(cache.path)
    assert list(check_objects(open_cache(cache.path))) == []


@pytest.mark.parametrize("damage", DAMAGES[:2])
@pytest.mark.parametrize("name", [*OF_A_SPAN, SPAN.commit_name])
def test_a_damaged_span_is_withdrawn_and_computed_again_to_the_same_bytes(
    cache: Cache,
    sound: dict[str, bytes],
    dataset: Dataset,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    damage(cache.path / name)
    assert mend(cache.path).spans == (SPAN,)
    gone = {*OF_A_SPAN, SPAN.commit_name, "seal.json"}
    assert files(cache.path) == {k: v for k, v in sound.items() if k not in gone}
    assert open_cache(cache.path).missing() == [SPAN]
    tiny.precompute(cache.path, dataset, tiny.make_recipe())
    assert tiny.tree(cache.path) == {k: v for k, v in sound.items() if k in tiny.tree(cache.path)}


@pytest.mark.parametrize("damage", DAMAGES[:2])
@pytest.mark.parametrize("name", [*OF_A_SPAN, SPAN.commit_name])
def test_a_damaged_span_comes_back_from_a_copy(
    cache: Cache, complete: Path, sound: dict[str, bytes], name: str, damage: Any
) -> None:
    damage(cache.path / name)
    assert mend(cache.path, [complete]).spans == (SPAN,)
    assert files(cache.path) == sound


def test_the_first_copy_that_has_a_span_sound_gives_it(
    cache: Cache, tmp_path: Path, complete: Path, sound: dict[str, bytes]
) -> None:
    bad = Path(shutil.copytree(complete, tmp_path / "bad"))
    for path in (cache.path, bad):
        flip(path / OF_A_SPAN[0])
    (cache.path / OF_A_SPAN[1]).unlink()
    mend(cache.path, [bad])
    assert open_cache(cache.path).missing() == [SPAN]
    mend(cache.path, [bad, complete])
    assert files(cache.path) == sound


def test_a_record_of_no_span_of_this_cache_is_withdrawn(
    cache: Cache, sound: dict[str, bytes]
) -> None:
    for name in ("commits/9-0.json", "commits/1-7.json"):
        shutil.copyfile(cache.path / SPAN.commit_name, cache.path / name)
    (cache.path / "commits/007-0.json").write_text("no record: not of that name")
    (cache.path / "commits/notes.txt").write_text("ours")
    assert set(mend(cache.path).spans) == {Span(9, 0), Span(1, 7)}
    left = files(cache.path)
    assert left.pop("commits/notes.txt")
    assert left.pop("commits/007-0.json")
    assert left == sound


# --- sample names --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["uids/c/1/0", "contents/c/0/0"])
def test_sample_names_come_from_a_copy_or_the_dataset_alone(
    cache: Cache, complete: Path, dataset: Dataset, sound: dict[str, bytes], name: str, damage: Any
) -> None:
    damage(cache.path / name)
    before = files(cache.path)
    plan = mend(cache.path)
    assert (len(plan.lost), plan.samples) == (1, {})
    assert name in plan.lost[0].where
    assert files(cache.path) == before
    choices: list[dict[str, Any]] = [{"copies": [complete]}, {"dataset": dataset}]
    for sources in choices:
        shutil.copyfile(complete / name, cache.path / name)
        damage(cache.path / name)
        plan = mend(cache.path, **sources)
        assert (plan.lost, len(plan.samples)) == ((), 2)
        assert files(cache.path) == sound


def test_another_dataset_is_refused(cache: Cache, tmp_path: Path) -> None:
    other = tiny.make_dataset(tmp_path / "other", 6, seed=3)
    flip(cache.path / "uids/c/1/0")
    with pytest.raises(MismatchError, match="made with dataset"):
        mend(cache.path, dataset=other)


def test_swapped_sample_names_of_a_copy_are_not_taken(
    cache: Cache, tmp_path: Path, complete: Path
) -> None:
    bad = Path(shutil.copytree(complete, tmp_path / "bad"))
    shutil.copyfile(bad / "uids/c/0/0", bad / "uids/c/1/0")
    flip(cache.path / "uids/c/1/0")
    assert len(mend(cache.path, [bad]).lost) == 1


# --- the root document ---------------------------------------------------------------------------


ROOT_DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "cut": _cut,
    "no JSON": lambda path: path.write_text("zarr"),
    "other attributes": lambda path: path.write_text('{"attributes": {}}'),
    "other format": lambda path: path.write_text(
        path.read_text().replace('"format": 1', '"format": 3')
    ),
    "other teacher": lambda path: path.write_text(
        path.read_text().replace("linear_teacher", "square_teacher")
    ),
}


@pytest.mark.parametrize("kind", ROOT_DAMAGES)
def test_a_lost_root_document_comes_from_a_copy_alone(
    cache: Cache, complete: Path, sound: dict[str, bytes], kind: str
) -> None:
    ROOT_DAMAGES[kind](cache.path / "zarr.json")
    before = files(cache.path)
    with pytest.raises(CorruptError, match="run kdcache repair --from a sound copy"):
        mend(cache.path)
    restore_root(cache.path, [open_cache(complete)], dry_run=True)
    assert files(cache.path) == before
    mend(cache.path, [complete])
    assert files(cache.path) == sound


def test_a_copy_of_other_views_gives_the_root_of_those_that_are_there(
    tmp_path: Path,
) -> None:
    """Ours was extended since the copy was made, and has more spans."""
    ours, copy = full(tmp_path / "a", num_views=6), full(tmp_path / "b", num_views=2)
    seal(ours.cache)
    expected = files(ours.cache.path)
    (ours.cache.path / "zarr.json").unlink()
    mend(ours.cache.path, [copy.cache.path])
    assert files(ours.cache.path) == expected


@pytest.mark.parametrize(
    "options", [{"encoding": "topk:2"}, {"rows": (6, 1, 8)}, {"num_classes": 70_000}]
)
def test_the_root_of_a_cache_that_does_not_agree_is_not_taken(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    ours = full(tmp_path / "a").cache
    other = full(tmp_path / "b", **options).cache
    (ours.path / "zarr.json").unlink()
    before = files(ours.path)
    with pytest.raises(MismatchError, match=r"of another cache than .*/b; pass a copy of this"):
        mend(ours.path, [other.path])
    assert files(ours.path) == before


def test_the_root_of_another_teacher_is_not_taken(tmp_path: Path, dataset: Dataset) -> None:
    """Its arrays are the same; the commit records tell."""
    recipe = tiny.make_recipe()
    ours = tiny.precompute(tmp_path / "a", dataset, recipe)
    other = tiny.precompute(
        tmp_path / "b", dataset, recipe, teacher=tiny.make_teacher("other_teacher")
    )
    (ours.path / "zarr.json").unlink()
    with pytest.raises(MismatchError, match="of another cache than"):
        mend(ours.path, [other.path])


def test_a_newer_format_and_other_folders_are_left_alone(
    cache: Cache, complete: Path, tmp_path: Path
) -> None:
    root = json.loads((cache.path / "zarr.json").read_bytes())
    body = root["attributes"]["kdcache"] | {"format": 2}
    body["digest"] = digest({k: v for k, v in body.items() if k != "digest"})
    root["attributes"]["kdcache"] = body
    (cache.path / "zarr.json").write_text(json.dumps(root))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "zarr.json").write_text('{"attributes": {}}')
    before = files(tmp_path)
    with pytest.raises(UsageError, match="cache format 2"):
        mend(cache.path, [complete])
    for name in ("notes", "none"):
        with pytest.raises(UsageError, match=r"no cache here|no kdcache cache"):
            mend(tmp_path / name, [complete])
    assert files(tmp_path) == before


# --- anything, at any time -----------------------------------------------------------------------


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_of_any_files_is_mended_from_a_copy(
    cache: Cache, complete: Path, sound: dict[str, bytes], data: st.DataObject
) -> None:
    """To the very bytes, whatever was flipped, cut or lost in up to five files."""
    names = data.draw(st.lists(st.sampled_from(sorted(sound)), min_size=1, max_size=5, unique=True))
    try:
        for name in names:
            damage = data.draw(st.sampled_from(DAMAGES))
            if damage is flip:
                flip(cache.path / name, data.draw(st.integers(0, len(sound[name]) - 1)))
            else:
                damage(cache.path / name)
        said = refusal(mend, cache.path, [complete])
        if said is not None:  # rather than to guess
            assert "zarr.json" in names, said
            assert len(names) > 1, said
            return
        assert files(cache.path) == sound
        assert list(check_objects(open_cache(cache.path))) == []
    finally:
        for name, content in sound.items():
            (cache.path / name).write_bytes(content)


def _mend_here(folder: Path) -> None:
    mend(folder / "c", [folder.parent / "copy"])


@pytest.mark.slow
def test_a_kill_before_any_change_leaves_less_but_nothing_wrong(tmp_path: Path) -> None:
    """Spans in place are sound, or still to be withdrawn; no seal says that all are there."""
    filled = full(tmp_path / "copy", encoding="dense:f2", rows=(3, 2), num_views=2, span_views=1)
    seal(filled.cache)
    sound, bad = files(tmp_path / "copy"), {Span(0, 1), Span(1, 0)}

    def prepare(folder: Path) -> None:
        shutil.copytree(tmp_path / "copy", folder / "c")
        flip(folder / "c/logits/c/0/1/0/0")
        flip(folder / "c" / Span(1, 0).commit_name)
        (folder / "c/witness/zarr.json").unlink()
        flip(folder / "c/contents/c/1/0")

    missing_seen = set()
    for folder in killed_runs(tmp_path, prepare, _mend_here):
        cache = open_cache(folder / "c", checked=False)
        done = committed(cache.folder)
        damaged = {f.span for f in check_objects(cache)} - {None}
        assert damaged <= bad & done
        if cache.valid_seal() is not None and not damaged:
            assert done == set(cache.grid.spans())
        missing_seen.add(frozenset(cache.missing()))
        for span in set(cache.grid.spans()) & done - damaged:
            filled.check(cache, span.tar, span.run)
        _mend_here(folder)
        assert files(folder / "c") == sound, folder
    assert {frozenset(), frozenset(bad), frozenset({Span(1, 0)})} <= missing_seen


def _precompute(path: Path, dataset: Dataset) -> None:
    tiny.precompute(path, dataset, tiny.make_recipe())


def _mend_and_precompute(path: Path, dataset: Dataset) -> None:
    mend(path)
    _precompute(path, dataset)


def test_a_span_that_another_repair_has_mended_meanwhile_stays(
    cache: Cache, dataset: Dataset, sound: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is to be withdrawn just then."""
    flip(cache.path / OF_A_SPAN[2])
    plan, take, filled = plan_repair(cache, [], None), Locks.take, []

    def take_late(locks: Locks, number: int, *, wait: bool) -> bool:
        if number == SPAN.lock:
            child = tiny.start(_mend_and_precompute, cache.path, dataset)
            child.join()
            filled.append(child.exitcode)
        return take(locks, number, wait=wait)

    monkeypatch.setattr(Locks, "take", take_late)
    now = carry_out(cache, plan)
    assert filled == [0]
    assert now.missing() == []
    assert list(check_objects(now)) == []
    assert tiny.tree(cache.path) == {k: v for k, v in sound.items() if k in tiny.tree(cache.path)}


def test_an_empty_cache_is_repaired_too(tmp_path: Path) -> None:
    made = empty(tmp_path / "c").cache
    before = files(made.path)
    flip(made.path / "rows/c/0")
    (made.path / "values/zarr.json").unlink()
    assert len(mend(made.path).metadata) == 2
    assert files(made.path) == before
