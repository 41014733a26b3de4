"""Claims about the commands that keep caches: what they print, their exit codes, a round trip."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.precompute.span import run_span
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from tests import tiny
from tests.cache.keeping import disk_of, flip
from tests.cli.conftest import Outcome, Run
from tests.cli.making import PLAIN, TEACHER, check_refusal, write_recipe
from tests.replay.streaming import digests
from tests.tiny import files_of

OBJECT, RECORD = "values/c/1/0/0/0", "commits/1-0.json"


@pytest.fixture
def copy(tmp_path: Path, complete: Path) -> Path:
    """A copy of the complete cache: 4 views in spans of 2, of three tars; topk:3."""
    return copy_of(complete, tmp_path / "cache")


def copy_of(cache: Path, path: Path) -> Path:
    return Path(shutil.copytree(cache, path, ignore=shutil.ignore_patterns(".lock")))


def lines(outcome: Outcome) -> dict[str, str]:
    """Return the table that a command printed."""
    rows = (line.split("  ", 1) for line in outcome.stdout.splitlines() if line[:1] != " ")
    return {name: text.strip() for name, text in rows}


def precompute(kdcache: Run, cache: Path, dataset: Dataset, views: int) -> Outcome:
    recipe = write_recipe(cache.parent / "recipe.toml", tiny.make_recipe())
    return kdcache(
        *("precompute", "--data", dataset.root, "--teacher", TEACHER, *PLAIN, "--json"),
        *("--recipe", recipe, "--views", views, "--span-views", 2, "--encoding", "topk:3"),
        *("--cache", cache),
    )


# --- extend --------------------------------------------------------------------------------


def test_extend_adds_views_that_precompute_then_fills(
    kdcache: Run, copy: Path, tmp_path: Path, dataset: Dataset
) -> None:
    whole = tiny.precompute(tmp_path / "whole", dataset, tiny.make_recipe(), num_views=8)
    check_refusal(
        precompute(kdcache, copy, dataset, 8), 2, f"run kdcache extend {copy} --views 8 first"
    )
    outcome = kdcache("extend", copy, "--views", 8, "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.value == {
        "id": whole.info.id,
        "path": str(copy),
        "views_before": 4,
        "views": 8,
        "spans_missing": 6,
    }
    assert precompute(kdcache, copy, dataset, 8).value["spans_computed"] == 6
    assert tiny.tree(copy) == tiny.tree(whole.path)


def test_extend_says_what_to_do_next_or_that_nothing_is(kdcache: Run, copy: Path) -> None:
    shown = lines(kdcache("extend", copy, "--views", 6))
    assert shown["views"] == "4, now 6"
    assert shown["spans"] == "3 missing; run kdcache precompute --views 6"
    before = files_of(copy)
    assert lines(kdcache("extend", copy, "--views", 6))["views"] == "6: nothing to do"
    check_refusal(kdcache("extend", copy, "--views", 4), 2, "has 6 views, 4 asked for", "slice")
    check_refusal(kdcache("extend", copy, "--views", 9), 2, "9 views in spans of 2")
    check_refusal(kdcache("extend", copy / "none", "--views", 9), 2, "no cache here")
    assert files_of(copy) == before


# --- merge and slice -----------------------------------------------------------------------


def test_computed_sliced_merged_and_trained_from(
    kdcache: Run, tmp_path: Path, dataset: Dataset
) -> None:
    whole = tmp_path / "whole"
    assert precompute(kdcache, whole, dataset, 8).code == 0
    parts = {
        "first": ["--views", 4],
        "last": ["--views", 8, "--from", 4, "--tars", "0..1"],
        "rest": ["--views", 8, "--from", 4, "--tars", "2..2"],
    }
    counts = {}
    for name, options in parts.items():
        outcome = kdcache("slice", whole, tmp_path / name, *options, "--json")
        assert (outcome.code, outcome.stderr) == (0, "")
        counts[name] = (outcome.value["spans_copied"], outcome.value["spans_missing"])
    assert counts == {"first": (6, 0), "last": (4, 8), "rest": (2, 10)}
    outcome = kdcache("merge", tmp_path / "all", *(tmp_path / name for name in parts), "--json")
    cache = open_cache(tmp_path / "all")
    assert outcome.value == {
        "id": cache.info.id,
        "path": str(tmp_path / "all"),
        "views": 8,
        "spans_copied": 12,
        "size_bytes": cache.totals().size_bytes,
        "spans_there": 0,
        "spans_differing": [],
        "damaged": [],
        "spans_missing": 0,
    }
    assert files_of(tmp_path / "all") == files_of(whole)
    assert kdcache("verify", tmp_path / "all", "--data", dataset.root, "--replay", 1).code == 0
    epochs = StreamOptions(batch_size=6, num_epochs=8)
    streams = (replay_stream(open_cache(p), dataset, epochs) for p in (cache.path, whole))
    ours, theirs = map(digests, streams)
    assert ours == theirs
    trained = kdcache(
        *("train", "--data", dataset.root, "--cache", cache.path, "--epochs", 2, "--json"),
        *("--student", "tests.student.nets:small", "--batch-size", 8, "--out", tmp_path / "run"),
    )
    assert trained.code == 0, trained.stderr


def test_merge_prints_a_table_and_does_nothing_twice(
    kdcache: Run, copy: Path, tmp_path: Path
) -> None:
    shown = lines(kdcache("merge", tmp_path / "all", copy))
    assert shown["copied"].startswith("6 spans, ")
    assert (shown["there"], shown["spans"]) == ("0 spans", "complete")
    before = files_of(tmp_path / "all")
    shown = lines(kdcache("merge", tmp_path / "all", copy))
    assert (shown["copied"], shown["there"]) == ("0 spans, 0 B", "6 spans")
    assert files_of(tmp_path / "all") == before


def test_merge_lists_damage_and_goes_on(kdcache: Run, copy: Path, tmp_path: Path) -> None:
    flip(copy / OBJECT)
    flip(copy / "commits/2-1.json", 40)
    outcome = kdcache("merge", tmp_path / "all", copy, "--json")
    assert outcome.code == 5
    assert (outcome.value["spans_copied"], outcome.value["spans_missing"]) == (4, 2)
    assert [entry["span"] for entry in outcome.value["damaged"]] == ["1-0", "2-1"]
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith(f"kdcache: {copy / OBJECT}: its sha256 differs")
    assert "damaged are spans 1-0, 2-1; run kdcache repair on their cache" in last
    text = kdcache("merge", tmp_path / "all", copy)
    assert text.code == 5
    assert f"  {copy / OBJECT}: its sha256 differs" in text.stdout
    assert kdcache("verify", tmp_path / "all").code == 4


def test_merge_tells_of_spans_that_differ(
    kdcache: Run, copy: Path, tmp_path: Path, dataset: Dataset
) -> None:
    """As where another GPU computed them: here the weights changed behind the teacher's back."""
    job = tiny.make_job(tmp_path / "ours", dataset, tiny.make_recipe())
    span = job.cache.missing()[0]
    next(iter(job.teacher.network.parameters())).data[:, 0] += 1
    run_span(job, span)
    record = (tmp_path / "ours" / span.commit_name).read_bytes()
    outcome = kdcache("merge", tmp_path / "ours", copy, "--json")
    assert (outcome.code, outcome.value["spans_differing"]) == (0, [str(span)])
    shown = lines(kdcache("merge", tmp_path / "ours", copy))
    assert shown["differing"] == "1 spans, kept as they were"
    assert (tmp_path / "ours" / span.commit_name).read_bytes() == record


def test_foreign_caches_are_not_merged(
    kdcache: Run, copy: Path, tmp_path: Path, dataset: Dataset
) -> None:
    other = tiny.precompute(tmp_path / "other", dataset, tiny.make_recipe(seed=9)).path
    before = files_of(copy)
    check_refusal(kdcache("merge", copy, other), 3, f"{other}: no copy of {copy}: recipe ")
    check_refusal(kdcache("slice", other, copy, "--views", 4), 3, "recipe ")
    check_refusal(kdcache("repair", copy, "--from", other), 3, "recipe ")
    kdcache("extend", other, "--views", 6)
    assert files_of(copy) == before


def test_merge_into_fewer_views_points_to_extend(kdcache: Run, copy: Path, tmp_path: Path) -> None:
    assert kdcache("slice", copy, tmp_path / "small", "--views", 2).code == 0
    check_refusal(
        kdcache("merge", tmp_path / "small", copy),
        *(2, f"run kdcache extend {tmp_path / 'small'} --views 4 first"),
    )
    assert kdcache("extend", tmp_path / "small", "--views", 4).code == 0
    assert kdcache("merge", tmp_path / "small", copy).code == 0
    assert tiny.tree(tmp_path / "small") == tiny.tree(copy)


def test_slice_names_what_is_not_computed(kdcache: Run, copy: Path, tmp_path: Path) -> None:
    for name in ("seal.json", RECORD):
        (copy / name).unlink()
    outcome = kdcache("slice", copy, tmp_path / "out", "--views", 2, "--json")
    assert (outcome.code, outcome.value["spans_copied"]) == (4, 2)
    assert "1 spans of the slice are not computed, the first is 1-0" in outcome.stderr
    assert kdcache("slice", copy, tmp_path / "late", "--views", 4, "--from", 2).code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--views", 8], "has views 0..3, asked for were 0..7"),
        (["--views", 3], "ask for whole spans"),
        (["--views", 4, "--tars", "1-2"], "--tars '1-2': expected A..B"),
        (["--views", 4, "--tars", "0..3"], "has tars 0..2, asked for were 0..3"),
        (["--views", 4, "--tars", "2..1"], "ask for tars that are there"),
    ],
)
def test_slices_that_cannot_be_are_refused(
    kdcache: Run, copy: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    check_refusal(kdcache("slice", copy, tmp_path / "out", *options), 2, words)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_and_the_same_command_goes_on(
    kdcache: Run, copy: Path, tmp_path: Path
) -> None:
    words = ["No space left on device", "then run the same command again"]
    with disk_of(40):
        check_refusal(kdcache("merge", tmp_path / "all", copy), 2, *words)
    assert kdcache("merge", tmp_path / "all", copy).code == 0
    assert files_of(tmp_path / "all") == files_of(copy)
    with disk_of(1):
        check_refusal(kdcache("extend", copy, "--views", 6), 2, "the new extent", *words)
    assert kdcache("extend", copy, "--views", 6).code == 0


# --- repair --------------------------------------------------------------------------------


def _damage(cache: Path) -> None:
    """Damage a span's object, another span's record, and metadata."""
    flip(cache / OBJECT)
    flip(cache / "commits/2-1.json", 40)
    (cache / "tails/zarr.json").unlink()


def with_teacher(dataset: Dataset, teacher: str = TEACHER) -> list[Any]:
    return ["--data", dataset.root, "--teacher", teacher, *PLAIN]


def test_repair_of_a_sound_cache_changes_nothing(kdcache: Run, copy: Path) -> None:
    before = files_of(copy)
    outcome = kdcache("repair", copy, "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.value == {
        "path": str(copy),
        "dry_run": False,
        "root": "sound",
        "damaged": [],
        "written": [],
        "withdrawn": [],
        "not_repaired": [],
        "spans_copied": 0,
        "spans_computed": 0,
        "spans_missing": 0,
        "damaged_copies": [],
    }
    assert lines(kdcache("repair", copy))["damage"] == "none found"
    assert files_of(copy) == before


def test_verify_points_to_repair_and_that_tells_what_is_to_be_computed(
    kdcache: Run, copy: Path, complete: Path, dataset: Dataset
) -> None:
    flip(copy / OBJECT)
    refusal = kdcache("verify", copy, "--json").stderr.splitlines()[-1]
    assert f"1 object is damaged; run kdcache repair {copy}, --from a sound copy" in refusal
    outcome = kdcache("repair", copy, "--json")
    assert outcome.code == 4
    assert (outcome.value["withdrawn"], outcome.value["spans_missing"]) == (["1-0"], 1)
    last = outcome.stderr.splitlines()[-1]
    assert "sound, but 1 spans are missing, the first is 1-0; run kdcache precompute again" in last
    assert kdcache("verify", copy).code == 4
    assert precompute(kdcache, copy, dataset, 4).value["spans_computed"] == 1
    assert tiny.tree(copy) == tiny.tree(complete)


def test_repair_from_a_copy_restores_every_byte(kdcache: Run, copy: Path, complete: Path) -> None:
    _damage(copy)
    flip(copy / "uids/c/0/0")
    flip(copy / "seal.json")
    outcome = kdcache("repair", copy, "--from", complete, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.value["written"] == ["tails/zarr.json", "uids/c/0/0", "contents/c/0/0"]
    assert outcome.value["withdrawn"] == ["1-0", "2-1"]
    assert outcome.value["spans_copied"] == 2
    assert files_of(copy) == files_of(complete)


def test_repair_computes_again_with_the_teacher(
    kdcache: Run, copy: Path, complete: Path, dataset: Dataset
) -> None:
    _damage(copy)
    flip(copy / "contents/c/2/0")
    outcome = kdcache("repair", copy, *with_teacher(dataset), "--json")
    assert outcome.code == 0, outcome.stderr
    assert (outcome.value["spans_computed"], outcome.value["spans_copied"]) == (2, 0)
    assert tiny.tree(copy) == tiny.tree(complete)
    assert kdcache("verify", copy).code == 0


def test_repair_takes_from_copies_first_and_computes_the_rest(
    kdcache: Run, copy: Path, complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    assert kdcache("slice", copy, tmp_path / "part", "--views", 2).code == 0
    _damage(copy)
    outcome = kdcache("repair", copy, "--from", tmp_path / "part", *with_teacher(dataset), "--json")
    assert (outcome.value["spans_copied"], outcome.value["spans_computed"]) == (1, 1)
    assert tiny.tree(copy) == tiny.tree(complete)
    record = (copy / RECORD).read_bytes()
    assert record == (complete / RECORD).read_bytes()


def test_a_dry_run_foresees_what_repair_does(
    kdcache: Run, copy: Path, complete: Path, dataset: Dataset
) -> None:
    _damage(copy)
    before = files_of(copy)
    for options in ([], ["--from", complete], with_teacher(dataset)):
        outcome = kdcache("repair", copy, *options, "--dry-run", "--json")
        assert (outcome.code, outcome.value["dry_run"]) == (0, True)
        assert files_of(copy) == before
        shown = lines(kdcache("repair", copy, *options, "--dry-run"))
        assert shown["written"] == "would be tails/zarr.json"
        assert shown["spans"].startswith("would be 2 withdrawn")
        tried = copy_of(copy, copy.with_name("tried"))
        done = kdcache("repair", tried, *options, "--json").value
        apart = ("path", "dry_run", "damaged")  # the paths differ
        foreseen = {name: value for name, value in outcome.value.items() if name not in apart}
        assert foreseen == {name: value for name, value in done.items() if name not in apart}
        shutil.rmtree(tried)


def test_another_teacher_or_dataset_repairs_nothing(
    kdcache: Run, copy: Path, dataset: Dataset, tmp_path: Path
) -> None:
    _damage(copy)
    before = files_of(copy)
    check_refusal(
        kdcache("repair", copy, *with_teacher(dataset, "tests.tiny:other_teacher")),
        *(3, "made with teacher "),
    )
    normalised = [*with_teacher(dataset)[:4], "--mean", "0.5,0.5,0.5", "--std", "1,1,1"]
    check_refusal(kdcache("repair", copy, *normalised), 3, "made with teacher ")
    other = tiny.make_dataset(tmp_path / "other", 6, seed=2)
    check_refusal(kdcache("repair", copy, *with_teacher(other)), 3, "made with dataset ")
    check_refusal(kdcache("repair", copy, "--data", other.root), 3, "made with dataset ")
    check_refusal(kdcache("repair", copy, "--teacher", TEACHER), 2, "give --data")
    check_refusal(kdcache("repair", copy, "--from", copy), 2, "is the cache to copy from")
    assert files_of(copy) == before


def test_what_only_a_copy_can_mend_is_named(kdcache: Run, copy: Path, dataset: Dataset) -> None:
    flip(copy / "uids/c/0/0")
    flip(copy / OBJECT)
    outcome = kdcache("repair", copy, "--json")
    assert outcome.code == 5
    (lost,) = outcome.value["not_repaired"]
    assert lost["where"] == "uids/c/0/0, contents/c/0/0"
    assert outcome.value["withdrawn"] == ["1-0"]
    assert "1 findings are not mended, the first is uids/c/0/0" in outcome.stderr
    outcome = kdcache("repair", copy, "--data", dataset.root, "--json")
    assert (outcome.code, outcome.value["not_repaired"]) == (4, [])


def test_a_lost_root_comes_from_a_copy(kdcache: Run, copy: Path, complete: Path) -> None:
    sound = files_of(copy)
    (copy / "zarr.json").write_text("{")
    damaged = files_of(copy)
    check_refusal(kdcache("verify", copy), 5, "zarr.json: damaged")
    check_refusal(kdcache("repair", copy), 5, "run kdcache repair --from a sound copy")
    outcome = kdcache("repair", copy, "--from", complete, "--dry-run")
    assert (outcome.code, lines(outcome)["zarr.json"]) == (0, "would be restored from a copy")
    assert files_of(copy) == damaged
    flip(copy / OBJECT)
    outcome = kdcache("repair", copy, "--from", complete, "--json")
    assert (outcome.code, outcome.value["root"]) == (0, "restored")
    assert files_of(copy) == sound


def test_damaged_copies_are_named_and_not_used(kdcache: Run, copy: Path, tmp_path: Path) -> None:
    bad = copy_of(copy, tmp_path / "bad")
    for path in (copy, bad):
        flip(path / OBJECT)
    outcome = kdcache("repair", copy, "--from", bad, "--json")
    assert outcome.code == 4
    (named,) = outcome.value["damaged_copies"]
    assert named["where"] == str(bad / OBJECT)
