"""Claims about more views: in place, whole or not at all to a reader, nothing computed twice."""

import json
import shutil
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.audit import check_objects
from kdcache.cache.extend import extend_cache
from kdcache.cache.manifest import committed
from kdcache.cache.objects import Folder
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, UsageError
from kdcache.identity import digest
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import Job, run_span
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from tests import tiny
from tests.cache.filling import Filled, empty, full
from tests.cache.keeping import disk_of, files, killed_runs, refusal
from tests.replay.streaming import digests

ROOT = "zarr.json"
ENCODINGS = ["topk:3", "packed:3", "adaptive:0.05", "dense:f2"]


def _seal(filled: Filled) -> None:
    seal(filled.cache)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_extended_cache_has_the_metadata_of_one_made_with_those_views(
    tmp_path: Path, encoding: str
) -> None:
    filled = full(tmp_path / "c", encoding=encoding)
    _seal(filled)
    before = files(tmp_path / "c")
    cache = extend_cache(tmp_path / "c", num_views=8)
    assert (cache.grid.num_views, cache.extends_to, cache.valid_seal()) == (8, None, None)
    assert cache.missing() == [s for s in cache.grid.spans() if s.run >= 2]
    filled.check_all(cache)
    assert list(check_objects(cache)) == []
    after = files(tmp_path / "c")
    made = files(empty(tmp_path / "new", encoding=encoding, num_views=8).cache.path)
    assert {name: after[name] for name in made} == made
    documents = {name for name in before if name.endswith(ROOT)}
    assert before.keys() - after.keys() == {"seal.json"}
    assert all(after[name] == before[name] for name in after.keys() - documents)


def test_a_cache_without_a_seal_is_extended_too(tmp_path: Path) -> None:
    filled = empty(tmp_path / "c")
    filled.write(next(iter(filled.cache.grid.spans())))
    cache = extend_cache(tmp_path / "c", num_views=6)
    assert len(cache.missing()) == 8
    filled.check_all(cache)


def test_what_this_version_does_not_know_is_kept(tmp_path: Path) -> None:
    _seal(full(tmp_path / "c"))
    root = json.loads((tmp_path / "c" / ROOT).read_bytes())
    body = root["attributes"]["kdcache"]
    body |= {"mood": {"good": True}, "needs": "9.9"}
    body["grid"]["depth"] = 3
    body["digest"] = digest({k: v for k, v in body.items() if k != "digest"})
    root["attributes"]["notes"] = ["ours"]
    (tmp_path / "c" / ROOT).write_text(json.dumps(root))
    extend_cache(tmp_path / "c", num_views=8)
    found = json.loads((tmp_path / "c" / ROOT).read_bytes())["attributes"]
    assert found["notes"] == ["ours"]
    expected = {**body, "grid": {**body["grid"], "views": 8}}
    assert {k: v for k, v in found["kdcache"].items() if k != "digest"} == {
        k: v for k, v in expected.items() if k != "digest"
    }


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (3, "3 views in spans of 2: the number of views must be a multiple"),
        (0, "multiple"),
        (2, "has 4 views, 2 asked for: views are only added; kdcache slice"),
    ],
)
def test_views_that_cannot_be_are_refused(tmp_path: Path, views: int, words: str) -> None:
    _seal(full(tmp_path / "c"))
    before = files(tmp_path / "c")
    with pytest.raises(UsageError, match=words):
        extend_cache(tmp_path / "c", num_views=views)
    assert files(tmp_path / "c") == before


def test_the_views_that_are_there_leave_everything_as_it_is(tmp_path: Path) -> None:
    _seal(full(tmp_path / "c"))
    before = files(tmp_path / "c")
    assert extend_cache(tmp_path / "c", num_views=4).valid_seal() is not None
    assert files(tmp_path / "c") == before


def test_damaged_metadata_are_not_extended(tmp_path: Path) -> None:
    full(tmp_path / "c")
    (tmp_path / "c" / "witness" / ROOT).write_text("{}")
    before = files(tmp_path / "c")
    with pytest.raises(CorruptError, match="run kdcache repair"):
        extend_cache(tmp_path / "c", num_views=8)
    assert files(tmp_path / "c") == before


# --- kills, full disks, others at work -------------------------------------------------------


def _extend(folder: Path) -> Cache:
    return extend_cache(folder / "c", num_views=4)


@pytest.mark.slow
def test_a_kill_before_any_change_leaves_the_old_cache_or_the_new_one(tmp_path: Path) -> None:
    """Readable to the last tile; the same command completes it, and any that asks for more."""
    filled = full(tmp_path / "made", encoding="dense:f2", rows=(3, 1), num_views=2, span_views=1)
    _seal(filled)
    shutil.copytree(tmp_path / "made", tmp_path / "whole" / "c")
    _extend(tmp_path / "whole")
    expected, seen = files(tmp_path / "whole" / "c"), []
    for folder in killed_runs(
        tmp_path, lambda to: shutil.copytree(tmp_path / "made", to / "c"), _extend
    ):
        cache = open_cache(folder / "c")
        filled.check_all(cache)
        assert list(committed(cache.folder)) == list(committed(filled.cache.folder))
        sealed = cache.valid_seal() is not None
        seen.append((cache.grid.num_views, cache.extends_to, sealed))
        pending = cache.extends_to
        if pending:
            with pytest.raises(UsageError, match="has 4 views, 3 asked for"):
                extend_cache(folder / "c", num_views=3)
        if pending and sealed:  # a job that fills the old views may seal them in between
            cache.folder.remove("seal.json")
            root = cache.folder.read(ROOT)
            assert seal(cache) == cache.valid_seal()
            assert cache.folder.read(ROOT) == root
        assert _extend(folder).grid.num_views == 4
        assert files(folder / "c") == expected
    kinds = [seen[0], *(two for one, two in pairwise(seen) if one != two)]
    assert kinds == [(2, None, True), (2, 4, True), (2, 4, False), (4, None, False)]


def test_a_stopped_extension_may_go_on_to_more(tmp_path: Path) -> None:
    filled = full(tmp_path / "c")
    with disk_of(2), pytest.raises(UsageError, match="cannot write the new extent: No space left"):
        extend_cache(tmp_path / "c", num_views=8)
    assert open_cache(tmp_path / "c").extends_to == 8
    assert extend_cache(tmp_path / "c", num_views=12).grid.num_views == 12
    filled.check_all(open_cache(tmp_path / "c"))


def test_a_full_disk_at_any_write_is_mended_by_the_same_command(tmp_path: Path) -> None:
    """The root document is written twice, logits and witness have new shapes."""
    filled = full(tmp_path / "made", encoding="dense:f2", rows=(3, 1))
    _seal(filled)
    whole = Path(shutil.copytree(tmp_path / "made", tmp_path / "whole"))
    extend_cache(whole, num_views=8)
    for writes in range(5):
        path = Path(shutil.copytree(tmp_path / "made", tmp_path / str(writes)))
        with disk_of(writes):
            said = refusal(extend_cache, path, num_views=8)
        assert (said is None) == (writes == 4)
        assert said is None or "No space left on device; committed spans are safe" in said
        filled.check_all(open_cache(path))
        assert not list(path.rglob("*.partial"))
        extend_cache(path, num_views=8)
        assert files(path) == files(whole)


def _extend_when_told(path: Path, views: int, gate: Any, result: Connection) -> None:
    gate.wait()
    try:
        result.send(extend_cache(path, num_views=views).grid.num_views)
    except Exception as error:
        result.send(repr(error))


def test_extensions_at_once_do_no_harm(tmp_path: Path) -> None:
    filled = full(tmp_path / "c")
    _seal(filled)
    gate, pipes, children = tiny.FORK.Barrier(4), [], []
    for views in (8, 8, 12, 12):
        ours, theirs = tiny.FORK.Pipe(duplex=False)
        children.append(tiny.start(_extend_when_told, tmp_path / "c", views, gate, theirs))
        pipes.append(ours)
    results = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    assert results[2:] == [12, 12]
    for result in results[:2]:  # the first, or too late
        assert result in (8, 12) or "has 12 views, 8 asked for" in str(result)
    cache = open_cache(tmp_path / "c")
    filled.check_all(cache)
    assert list(check_objects(cache)) == []


def test_an_extension_that_waited_sees_what_the_other_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process extends the cache between our first look and our turn."""
    filled, lock = full(tmp_path / "c"), Folder.lock

    def lock_late(folder: Folder, number: int, *, wait: bool) -> Any:
        tiny.start(_extend_to_12, folder.path).join()
        return lock(folder, number, wait=wait)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "lock", lock_late)
        with pytest.raises(UsageError, match="has 12 views, 8 asked for"):
            extend_cache(tmp_path / "c", num_views=8)
    cache = open_cache(tmp_path / "c")
    assert cache.grid.num_views == 12
    filled.check_all(cache)


def _extend_to_12(path: Path) -> None:
    Folder.lock = _plain_lock  # type: ignore[method-assign]  # in a forked child
    extend_cache(path, num_views=12)


_plain_lock = Folder.lock


def _open_all_the_time(path: Path, stop: Any, result: Connection) -> None:
    opened: dict[tuple[int, bool], int] = {}
    try:
        while not stop.is_set():
            cache = open_cache(path)
            kind = (cache.grid.num_views, cache.valid_seal() is not None)
            opened[kind] = opened.get(kind, 0) + 1
        result.send(opened)
    except BaseException as error:
        result.send(repr(error))


def test_a_reader_never_sees_half_an_extension(tmp_path: Path) -> None:
    _seal(full(tmp_path / "c"))
    stop = tiny.FORK.Event()
    ours, theirs = tiny.FORK.Pipe(duplex=False)
    reader = tiny.start(_open_all_the_time, tmp_path / "c", stop, theirs)
    try:
        for views in range(6, 60, 2):
            extend_cache(tmp_path / "c", num_views=views)
    finally:
        stop.set()
    opened = ours.recv()
    reader.join()
    assert isinstance(opened, dict), opened
    assert len(opened) > 3


# --- with the teacher, and the student -------------------------------------------------------


def test_a_job_that_fills_the_old_views_ends_well_and_one_for_the_new_goes_on(
    dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tiny.make_recipe()
    whole = tiny.precompute(tmp_path / "whole", dataset, recipe, num_views=8)
    old = tiny.make_job(tmp_path / "c", dataset, recipe)
    for span in old.cache.missing()[:2]:
        run_span(old, span)
    extend_cache(tmp_path / "c", num_views=8)
    totals = run_inline(old)
    assert (totals.views, totals.size_bytes) == (4, old.cache.totals().size_bytes)
    cache = open_cache(tmp_path / "c")
    assert (cache.grid.num_views, len(cache.missing()), cache.valid_seal()) == (8, 6, None)
    assert not (tmp_path / "c" / "seal.json").exists()
    records = {s: (tmp_path / "c" / s.commit_name).read_bytes() for s in committed(cache.folder)}
    tiny.precompute(tmp_path / "c", dataset, recipe, num_views=8)
    assert tiny.tree(tmp_path / "c") == tiny.tree(whole.path)
    for span, record in records.items():
        assert (tmp_path / "c" / span.commit_name).read_bytes() == record, "computed twice"
    sealed = files(tmp_path / "c")
    assert run_inline(old).views == 4
    assert files(tmp_path / "c") == sealed, "the old job's seal replaced the new one"


def _slow_job(path: Path, dataset: Dataset, journal: Path, views: int) -> Job:
    """Return a job whose teacher notes the views of each call."""

    def note(pixels: Any) -> None:
        tiny.append_line(journal, " ".join(str(tiny.pixel_digest(image)) for image in pixels))
        time.sleep(0.02)

    job = tiny.make_job(path, dataset, tiny.make_recipe(), num_views=views)
    return replace(job, teacher=tiny.watched(job.teacher, note))


def _run(path: Path, dataset: Dataset, journal: Path) -> None:
    run_inline(_slow_job(path, dataset, journal, 4))


def test_a_job_for_the_old_views_and_one_for_the_new_share_the_spans(
    dataset: Dataset, tmp_path: Path
) -> None:
    journals = [tmp_path / "old", tmp_path / "new"]
    child = tiny.start(_run, tmp_path / "c", dataset, journals[0])
    while not journals[0].exists():
        time.sleep(0.01)
    extend_cache(tmp_path / "c", num_views=8)
    run_inline(_slow_job(tmp_path / "c", dataset, journals[1], 8))
    child.join()
    assert child.exitcode == 0
    seen = [Counter(journal.read_text().split()) for journal in journals]
    both = seen[0] + seen[1]
    assert (len(both), both.total()) == (24 * 8, 24 * 8), "a view was computed twice"
    assert all(seen)
    whole = tiny.precompute(tmp_path / "whole", dataset, tiny.make_recipe(), num_views=8)
    assert tiny.tree(tmp_path / "c") == tiny.tree(whole.path)
    assert open_cache(tmp_path / "c").valid_seal() is not None


def test_a_job_that_asks_for_other_views_is_told_of_extend(
    dataset: Dataset, tmp_path: Path
) -> None:
    recipe = tiny.make_recipe()
    tiny.precompute(tmp_path / "c", dataset, recipe)
    with pytest.raises(UsageError, match=f"run kdcache extend {tmp_path / 'c'} --views 8 first"):
        tiny.make_job(tmp_path / "c", dataset, recipe, num_views=8)
    with pytest.raises(UsageError, match=r"has 4 views .* asks for 2 views in spans of 2; pass"):
        tiny.make_job(tmp_path / "c", dataset, recipe, num_views=2)


def test_a_stream_over_an_extended_cache_gives_old_views_and_new(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Before the new views are there, the old ones are streamed as ever; then all."""
    recipe = tiny.make_recipe()
    whole = tiny.precompute(tmp_path / "whole", dataset, recipe, num_views=8)
    tiny.precompute(tmp_path / "c", dataset, recipe)
    cache = extend_cache(tmp_path / "c", num_views=8)
    for epochs in (4, 8):
        options = StreamOptions(batch_size=6, num_epochs=epochs, num_workers=0)
        ours, theirs = (replay_stream(c, dataset, options) for c in (cache, whole))
        assert digests(ours) == digests(theirs)
        tiny.precompute(tmp_path / "c", dataset, recipe, num_views=8)
        cache = open_cache(tmp_path / "c")
