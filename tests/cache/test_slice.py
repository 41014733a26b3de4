"""Claims about parts of a cache: exact copies, that come together again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.audit import check_objects
from kdcache.cache.copy import Copied
from kdcache.cache.layout import Span
from kdcache.cache.merge import prepare_merge, prepare_slice, run_copying
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import IncompleteError, MismatchError, UsageError
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from tests import tiny
from tests.cache.filling import Filled, full
from tests.cache.keeping import files, flip
from tests.replay.streaming import digests


def cut(path: Path, out: Path, **options: Any) -> tuple[Cache, Copied]:
    copying = prepare_slice(path, out, **options)
    return copying.target, run_copying(copying)


@pytest.fixture
def whole(tmp_path: Path) -> Filled:
    """A sealed cache of 8 views in spans of 2, of three tars."""
    filled = full(tmp_path / "whole", num_views=8)
    seal(filled.cache)
    return filled


def test_the_first_views_are_the_cache_made_with_so_many(tmp_path: Path, whole: Filled) -> None:
    before = files(whole.cache.path)
    cache, copied = cut(whole.cache.path, tmp_path / "out", num_views=4)
    made = full(tmp_path / "made", num_views=4)
    seal(made.cache)
    assert (cache.missing(), len(copied.spans)) == ([], 6)
    assert cache.valid_seal() == made.cache.valid_seal()
    assert tiny.tree(cache.path) == tiny.tree(made.cache.path)
    for span in copied.spans:
        record = (cache.path / span.commit_name).read_bytes()
        assert record == (whole.cache.path / span.commit_name).read_bytes()
    assert files(whole.cache.path) == before


def test_all_views_are_a_copy_of_the_cache(tmp_path: Path, whole: Filled) -> None:
    cut(whole.cache.path, tmp_path / "out", num_views=8)
    assert files(tmp_path / "out") == files(whole.cache.path)


def test_later_views_alone_are_a_part_that_merges_back(tmp_path: Path, whole: Filled) -> None:
    late, copied = cut(whole.cache.path, tmp_path / "late", num_views=8, first_view=4)
    assert {span.run for span in copied.spans} == {2, 3}
    assert late.missing() == [Span(tar, run) for tar in range(3) for run in range(2)]
    assert list(check_objects(late)) == []
    with pytest.raises(IncompleteError):
        late.read_tile(0, 0)
    whole.check(late, 0, 7)
    cut(whole.cache.path, tmp_path / "early", num_views=4)
    run_copying(prepare_merge(tmp_path / "all", [tmp_path / "early", tmp_path / "late"]))
    assert files(tmp_path / "all") == files(whole.cache.path)


def test_parts_by_tar_merge_back(tmp_path: Path, whole: Filled) -> None:
    for name, tars in {"a": range(1), "b": range(1, 3)}.items():
        _, copied = cut(whole.cache.path, tmp_path / name, num_views=8, tars=tars)
        assert {span.tar for span in copied.spans} == set(tars)
    run_copying(prepare_merge(tmp_path / "a", [tmp_path / "b"]))
    assert files(tmp_path / "a") == files(whole.cache.path)


def test_slices_into_one_cache_add_up(tmp_path: Path, whole: Filled) -> None:
    for first in (6, 0, 4):
        cut(whole.cache.path, tmp_path / "out", num_views=8, first_view=first)
    assert files(tmp_path / "out") == files(whole.cache.path)


def test_what_the_cache_lacks_is_named(tmp_path: Path, whole: Filled) -> None:
    whole.cache.folder.remove("seal.json")
    for name in ("commits/0-0.json", "commits/2-3.json"):
        whole.cache.folder.remove(name)
    copying = prepare_slice(whole.cache.path, tmp_path / "out", num_views=4)
    assert copying.absent == (Span(0, 0),)
    assert len(run_copying(copying).spans) == 5
    assert open_cache(tmp_path / "out").missing() == [Span(0, 0)]


def test_a_damaged_span_is_not_passed_on(tmp_path: Path, whole: Filled) -> None:
    flip(whole.cache.path / "values/c/1/1/0/0")
    cache, copied = cut(whole.cache.path, tmp_path / "out", num_views=4)
    assert [finding.span for finding in copied.damaged] == [Span(1, 1)]
    assert cache.missing() == [Span(1, 1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_views": 10}, r"has views 0\.\.7, asked for were 0\.\.9"),
        ({"num_views": 3}, r"spans of 2, asked for were 0\.\.2; ask for whole spans"),
        ({"num_views": 4, "first_view": 1}, "ask for whole spans"),
        ({"num_views": 4, "first_view": 4}, "ask for a --from below --views"),
        ({"num_views": 4, "first_view": 6}, "ask for a --from below --views"),
        ({"num_views": 4, "tars": range(2, 4)}, r"has tars 0\.\.2, asked for were 2\.\.3"),
        ({"num_views": 4, "tars": range(2, 2)}, "ask for tars that are there"),
    ],
)
def test_parts_that_cannot_be_make_no_cache(
    tmp_path: Path, whole: Filled, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        cut(whole.cache.path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_another_cache_is_not_sliced_into(tmp_path: Path, whole: Filled) -> None:
    cut(whole.cache.path, tmp_path / "out", num_views=4)
    before = files(tmp_path / "out")
    with pytest.raises(UsageError, match="out: has 4 views, this slice has 8"):
        cut(whole.cache.path, tmp_path / "out", num_views=8)
    with pytest.raises(UsageError, match="is the cache to copy from"):
        cut(whole.cache.path, whole.cache.path, num_views=8)
    other = full(tmp_path / "other", encoding="topk:2", num_views=8)
    with pytest.raises(MismatchError, match="encoding topk:2, expected topk:3"):
        cut(other.cache.path, tmp_path / "out", num_views=4)
    assert files(tmp_path / "out") == before


def test_what_others_wrote_beside_our_attributes_goes_along(tmp_path: Path, complete: Path) -> None:
    source = Path(shutil.copytree(complete, tmp_path / "source"))
    root = json.loads((source / "zarr.json").read_bytes())
    root["attributes"]["notes"] = ["ours"]
    (source / "zarr.json").write_text(json.dumps(root))
    cache, _ = cut(source, tmp_path / "out", num_views=2)
    assert cache.attributes()["notes"] == ["ours"]


def test_computed_sliced_merged_streamed_is_what_was_computed(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Two teams share the views; a third has the whole."""
    recipe = tiny.make_recipe()
    whole = tiny.precompute(tmp_path / "whole", dataset, recipe, num_views=4)
    cut(whole.path, tmp_path / "first", num_views=2)
    cut(whole.path, tmp_path / "last", num_views=4, first_view=2, tars=range(2))
    cut(whole.path, tmp_path / "rest", num_views=4, first_view=2, tars=range(2, 3))
    parts = [tmp_path / name for name in ("rest", "first", "last")]
    merged = prepare_merge(tmp_path / "all", parts)
    run_copying(merged)
    options = StreamOptions(batch_size=6, num_epochs=4, num_workers=0)
    ours = digests(replay_stream(open_cache(tmp_path / "all"), dataset, options))
    assert ours == digests(replay_stream(whole, dataset, options))
    assert len(ours) == 4 * 24
    part = replay_stream(open_cache(tmp_path / "first"), dataset, StreamOptions(6, 2))
    first = digests(part)
    assert first == ours[: len(first)]
