"""Claims about merging: byte for byte, nothing damaged or foreign, stopped and gone on with."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.audit import check_objects
from kdcache.cache.copy import Copied
from kdcache.cache.layout import Span, object_names
from kdcache.cache.manifest import committed, write_commit
from kdcache.cache.merge import Copying, prepare_merge, run_copying
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, MismatchError, UsageError
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import run_span
from tests import tiny
from tests.cache.filling import Filled, empty, full
from tests.cache.keeping import disk_of, files, flip, killed_runs, refusal

ENCODINGS = ["topk:3", "packed:3", "adaptive:0.05", "dense:f2", "dense:u1"]


def merge(path: Path, *origins: Path) -> tuple[Cache, Copied]:
    copying = prepare_merge(path, origins)
    return copying.target, run_copying(copying)


def copy_of(cache: Path, path: Path) -> Path:
    """Return the path of a copy without lock."""
    return Path(shutil.copytree(cache, path, ignore=shutil.ignore_patterns(".lock")))


def part(path: Path, spans: list[Span], **options: Any) -> Filled:
    """Return a cache with some of the spans of `full`, as another machine computes them."""
    filled = empty(path, **options)
    for span in spans:
        filled.write(span)
    return filled


SPANS = [Span(tar, run) for tar in range(3) for run in range(2)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_parts_make_the_cache_that_one_machine_makes(tmp_path: Path, encoding: str) -> None:
    whole = full(tmp_path / "whole", encoding=encoding, unusable={0: (2,)})
    seal(whole.cache)
    for name, spans in {"a": SPANS[:2], "b": SPANS[1:4], "c": SPANS[4:]}.items():
        filled = part(tmp_path / name, spans, encoding=encoding, unusable={0: (2,)})
        cache, copied = merge(tmp_path / "all", filled.cache.path)
        assert copied.spans == tuple(span for span in spans if name != "b" or span != SPANS[1])
        assert (copied.differing, copied.damaged) == ((), ())
        for span in copied.spans:
            record = (filled.cache.path / span.commit_name).read_bytes()
            assert (cache.path / span.commit_name).read_bytes() == record
    assert cache.valid_seal() == whole.cache.totals()
    assert list(check_objects(cache)) == []
    whole.check_all(cache)
    assert tiny.tree(cache.path) == tiny.tree(whole.cache.path)


def test_a_cache_merged_from_copies_of_one_is_that_one_with_seal_and_records(
    tmp_path: Path, complete: Path
) -> None:
    first, second = (copy_of(complete, tmp_path / name) for name in "ab")
    for span in SPANS[:3]:
        (first / span.commit_name).unlink()
    for span in SPANS[3:]:
        (second / span.commit_name).unlink()
    cache, copied = merge(tmp_path / "all", first, second)
    assert len(copied.spans) == 6
    assert copied.size_bytes == cache.totals().size_bytes
    assert files(tmp_path / "all") == files(complete)
    sources = files(first), files(second)
    again, nothing = merge(tmp_path / "all", first, second)
    assert (nothing.spans, nothing.there, nothing.size_bytes) == ((), 6, 0)
    assert files(again.path) == files(complete)
    assert (files(first), files(second)) == sources
    assert not (first / ".lock").exists(), "a source was written to"


def test_a_new_cache_has_as_many_views_as_any_source_and_the_attributes_of_the_first(
    tmp_path: Path,
) -> None:
    small, large = full(tmp_path / "a"), full(tmp_path / "b", num_views=6)
    cache, copied = merge(tmp_path / "all", small.cache.path, large.cache.path)
    assert (cache.grid.num_views, cache.missing(), len(copied.spans)) == (6, [], 9)
    large.check_all(cache)
    seal(large.cache)
    assert tiny.tree(cache.path) == tiny.tree(large.cache.path)


def test_fewer_views_are_merged_and_more_refused(tmp_path: Path) -> None:
    large, small = empty(tmp_path / "a", num_views=6), full(tmp_path / "b")
    cache, copied = merge(large.cache.path, small.cache.path)
    assert (len(copied.spans), len(cache.missing())) == (6, 3)
    small.check_all(cache)
    before = files(small.cache.path)
    with pytest.raises(UsageError, match=r"has 4 views, .*/a has 6; run kdcache extend .*/b --vie"):
        merge(small.cache.path, large.cache.path)
    assert files(small.cache.path) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoding": "topk:2"}, "encoding topk:2, expected topk:3"),
        ({"rows": (6, 1, 8)}, "dataset .*; rows of a tile 8, expected 9"),
        ({"span_views": 1}, "views of a span 1, expected 2"),
        ({"num_classes": 6}, "number of classes 6, expected 5"),
    ],
)
def test_foreign_caches_are_refused_by_what_differs(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    ours = part(tmp_path / "ours", SPANS[:2])
    theirs = full(tmp_path / "theirs", **options)
    before = files(tmp_path)
    for target in (ours.cache.path, tmp_path / "new"):
        origins = (theirs.cache.path,) if target.exists() else (ours.cache.path, theirs.cache.path)
        with pytest.raises(MismatchError, match=rf"theirs: no copy of .*ours: .*{words}.*; pass"):
            merge(target, *origins)
    assert files(tmp_path) == before


def test_a_cache_of_another_teacher_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    recipe = tiny.make_recipe()
    ours = tiny.make_job(tmp_path / "a", dataset, recipe).cache
    foreign: dict[str, dict[str, Any]] = {
        "teacher": {"teacher": tiny.make_teacher("other_teacher")},
        "recipe": {"recipe": tiny.make_recipe(seed=6)},
    }
    for name, changes in foreign.items():
        options: dict[str, Any] = {"recipe": recipe, **changes}
        other = tiny.make_job(tmp_path / name, dataset, options.pop("recipe"), **options).cache
        with pytest.raises(MismatchError, match=f"{name} [0-9a-f]+, expected [0-9a-f]+; pass"):
            merge(ours.path, other.path)


def test_a_cache_is_not_merged_with_itself_nor_into_something_else(tmp_path: Path) -> None:
    ours = full(tmp_path / "a")
    os.symlink(tmp_path / "a", tmp_path / "link")
    with pytest.raises(UsageError, match="is the cache to copy from"):
        merge(tmp_path / "link", ours.cache.path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something that is no cache"):
        merge(tmp_path / "notes", ours.cache.path)
    with pytest.raises(UsageError, match="no cache here"):
        merge(tmp_path / "new", tmp_path / "notes")
    assert not (tmp_path / "new").exists()


# --- damage --------------------------------------------------------------------------------------


def _damages(source: Cache, span: Span) -> dict[str, Any]:
    """Return ways to damage a span, each with what is said of it."""
    names = list(object_names(span, source.info.specs).values())

    def swap_record() -> None:
        other = source.path / Span(span.tar, 1 - span.run).commit_name
        (source.path / span.commit_name).write_bytes(other.read_bytes())

    def shorten() -> None:
        os.truncate(source.path / names[1], 3)

    return {
        "its sha256 differs from its commit record": lambda: flip(source.path / names[0]),
        r"its sha256 differs .*\(3 bytes": shorten,
        "missing": lambda: (source.path / names[-1]).unlink(),
        "damaged record": lambda: flip(source.path / span.commit_name, 40),
        "the record of span": swap_record,
    }


@pytest.mark.parametrize("kind", range(5))
def test_a_damaged_span_of_a_source_is_refused_and_the_others_are_copied(
    tmp_path: Path, kind: int
) -> None:
    source = full(tmp_path / "a").cache
    words, damage = list(_damages(source, SPANS[2]).items())[kind]
    damage()
    cache, copied = merge(tmp_path / "all", source.path)
    (finding,) = copied.damaged
    assert finding.span == SPANS[2]
    assert finding.where.startswith(str(tmp_path / "a"))
    assert re.search(words, finding.problem), finding
    assert set(copied.spans) == set(SPANS) - {SPANS[2]}
    assert cache.missing() == [SPANS[2]]
    assert list(check_objects(cache)) == []
    assert not [name for name in files(cache.path) if "/c/1/0/" in name]
    other = full(tmp_path / "b")
    again, rest = merge(tmp_path / "all", source.path, other.cache.path)
    assert (rest.spans, rest.damaged) == ((SPANS[2],), copied.damaged)
    other.check_all(again)


def test_a_record_of_another_extent_is_refused(tmp_path: Path) -> None:
    """Its digest is sound: a faulty writer made it."""
    source = full(tmp_path / "a").cache
    commit = source.commit(SPANS[2])
    (source.path / SPANS[2].commit_name).unlink()
    write_commit(source.folder, replace(commit, rows=commit.rows + 1))
    _, copied = merge(tmp_path / "all", source.path)
    (finding,) = copied.damaged
    assert "the record of another extent" in finding.problem
    assert SPANS[2] not in copied.spans


def test_damaged_sample_names_make_no_new_cache(tmp_path: Path) -> None:
    source = full(tmp_path / "a").cache
    flip(source.path / "uids/c/1/0")
    with pytest.raises(CorruptError, match="uids"):
        merge(tmp_path / "all", source.path)
    assert not (tmp_path / "all").exists()


def test_a_span_that_both_have_stays_as_it_is_and_is_told_of_where_it_differs(
    tmp_path: Path,
) -> None:
    ours, theirs = part(tmp_path / "a", SPANS[:2]), empty(tmp_path / "b")
    for span in SPANS:
        theirs.write(span, seed=int(span == SPANS[0]))
    before = files(ours.cache.path)
    cache, copied = merge(ours.cache.path, theirs.cache.path)
    assert (copied.there, copied.differing) == (2, (SPANS[0],))
    assert set(copied.spans) == set(SPANS[2:])
    after = files(cache.path)
    kept = [name for name in before if name != "zarr.json"]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    ours.check_all(cache)


# --- stopped, full, shared -----------------------------------------------------------------------


def _merge_here(folder: Path) -> None:
    merge(folder / "all", folder.parent / "a", folder.parent / "b")


@pytest.mark.slow
def test_a_kill_before_any_change_leaves_a_cache_that_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoding": "dense:f2", "rows": (3,), "num_views": 2}
    spans = [Span(0, 0), Span(0, 1)]
    whole = full(tmp_path / "whole", **options, span_views=1)
    for name, span in zip("ab", spans, strict=True):
        part(tmp_path / name, [span], **options, span_views=1)
    (tmp_path / "done").mkdir()
    _merge_here(tmp_path / "done")
    expected, counts = files(tmp_path / "done" / "all"), set()
    for folder in killed_runs(tmp_path, Path.mkdir, _merge_here):
        path = folder / "all"
        done: set[Span] = set()
        if path.exists():
            cache = open_cache(path)
            done = committed(cache.folder)
            found = [finding.where for finding in check_objects(cache)]
            assert found == [] or (found == ["seal.json"] and len(done) == 2)
            for span in done:
                whole.check(cache, 0, span.run)
        counts.add((path.exists(), len(done)))
        _merge_here(folder)
        assert files(path) == expected, folder
        assert not list(path.glob("*/c/**/*.partial"))
    assert counts == {(False, 0), (True, 0), (True, 1), (True, 2)}
    seal(whole.cache)
    assert tiny.tree(tmp_path / "done" / "all") == tiny.tree(whole.cache.path)


def test_a_full_disk_at_any_write_keeps_what_is_copied(tmp_path: Path) -> None:
    source = full(tmp_path / "a", rows=(3, 1), num_views=2, encoding="dense:f2").cache
    seal(source)
    expected, told = files(source.path), []
    for writes in range(100):
        path = tmp_path / str(writes)
        with disk_of(writes):
            said = refusal(merge, path, source.path)
        if said is None:
            break
        assert "No space left on device" in said
        told.append(said.split(": ")[1])
        if path.exists():
            found = [finding.where for finding in check_objects(open_cache(path))]
            assert found in ([], ["seal.json"])
        assert not list(tmp_path.glob(f"{writes}/**/*.partial"))
        merge(path, source.path)
        assert files(path) == expected, writes
    spans = ["cannot write span 0-0"] * 3 + ["cannot write span 1-0"] * 3
    assert told[-8:] == [*spans, "cannot write the seal", "cannot write the seal"]
    assert set(told[:-8]) == {"cannot create the cache"}


def _copy_until_told(copying: Copying, go: Any) -> None:
    go.wait()
    run_copying(copying)


def test_merging_and_a_job_that_fills_the_same_cache_share_the_work(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    recipe = tiny.make_recipe()
    job = tiny.make_job(tmp_path / "c", dataset, recipe)
    donor = open_cache(copy_of(complete, tmp_path / "donor"))
    for span in SPANS[3:]:
        (donor.path / span.commit_name).unlink()
    copying, go = prepare_merge(tmp_path / "c", [donor.path]), tiny.FORK.Event()
    child = tiny.start(_copy_until_told, copying, go)
    go.set()
    run_inline(job)
    child.join()
    assert child.exitcode == 0
    assert tiny.tree(tmp_path / "c") == tiny.tree(complete)
    assert open_cache(tmp_path / "c").valid_seal() is not None


def _hold_and_compute(path: Path, dataset: Dataset, span: Span, held: Any, go: Any) -> None:
    job = tiny.make_job(path, dataset, tiny.make_recipe())
    with job.cache.folder.lock(span.lock, wait=True):
        held.set()
        go.wait(60)
        run_span(job, span)


def test_a_span_that_a_job_is_computing_is_left_to_it(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    held, go = tiny.FORK.Event(), tiny.FORK.Event()
    child = tiny.start(_hold_and_compute, tmp_path / "c", dataset, SPANS[0], held, go)
    assert held.wait(60)
    seen = []

    def progress(count: int) -> None:
        seen.append(count)
        if len(seen) == 5:  # all but the one that is held
            assert len(open_cache(tmp_path / "c").missing()) == 1
            go.set()

    copied = run_copying(prepare_merge(tmp_path / "c", [complete]), progress=progress)
    child.join()
    assert set(copied.spans) == set(SPANS[1:])
    assert (copied.there, len(seen)) == (1, 6)
    assert tiny.tree(tmp_path / "c") == tiny.tree(complete)


def test_a_job_goes_on_where_a_merge_ends(tmp_path: Path, dataset: Dataset, complete: Path) -> None:
    donor = copy_of(complete, tmp_path / "donor")
    for span in SPANS[2:]:
        (donor / span.commit_name).unlink()
    merge(tmp_path / "c", donor)
    record = (tmp_path / "c" / SPANS[0].commit_name).read_bytes()
    tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe())
    assert tiny.tree(tmp_path / "c") == tiny.tree(complete)
    assert (tmp_path / "c" / SPANS[0].commit_name).read_bytes() == record
