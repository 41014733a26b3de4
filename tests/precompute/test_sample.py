"""Claims about samples of a teacher: views of the recipe, fixed by the options; bytes as stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import DataError, IncompleteError, UsageError
from kdcache.precompute.sample import (
    ROWS_OF_BLOCK,
    measure_encodings,
    sample_logits,
    stored_logits,
)
from kdcache.targets.choice import candidates
from kdcache.targets.encoding import parse_encoding
from kdcache.targets.fidelity import measure
from tests import tiny
from tests.targets.logits import classifier_logits

ROWS = 24
VIEWS = 4


@pytest.fixture(scope="module")
def source(dataset: Dataset) -> BlockSource:
    return dataset_source(dataset, tiny.make_recipe())


def all_logits(source: BlockSource, *, views: int = VIEWS) -> Tensor:
    """Return the teacher's logits (views x rows, C) of every view."""
    teacher = tiny.make_teacher()
    parts = []
    for tar in range(source.num_tars):
        for rows in source.blocks(tar):
            pixels = source.render(tar, rows, views=range(views)).pixels_GNHW3
            flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[2:])).permute(0, 3, 1, 2)
            parts.append(teacher(flat))
    return torch.cat(parts)


def names(logits_NC: Tensor) -> list[tuple[float, ...]]:
    return [tuple(row) for row in logits_NC.tolist()]


# --- a teacher's views ---------------------------------------------------------------------


def test_a_sample_is_of_the_recipes_own_views_none_twice(source: BlockSource) -> None:
    found = names(sample_logits(source, tiny.make_teacher(), num_rows=60, num_views=VIEWS))
    assert len(found) == 60
    whole = names(all_logits(source))
    assert len(set(whole)) == len(whole)
    assert set(found) <= set(whole)
    assert len(set(found)) == 60


def test_a_sample_larger_than_the_dataset_is_all_of_it(source: BlockSource) -> None:
    found = names(sample_logits(source, tiny.make_teacher(), num_rows=1024, num_views=VIEWS))
    assert sorted(found) == sorted(names(all_logits(source)))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_a_sample_is_fixed_whatever_the_batches(source: BlockSource, batch_size: int) -> None:
    options = {"num_rows": 50, "num_views": VIEWS}
    expected = sample_logits(source, tiny.make_teacher(), **options)
    done = 0

    def count(views: int) -> None:
        nonlocal done
        assert views <= batch_size
        done += views

    found = sample_logits(
        source, tiny.make_teacher(), batch_size=batch_size, progress=count, **options
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert done == 50


def test_a_short_sample_is_the_start_of_a_longer_one_of_as_many_rows_a_block(
    tmp_path: Path,
) -> None:
    many = dataset_source(
        tiny.make_dataset(tmp_path, 40, rows_per_tar=20), tiny.make_recipe(block=20)
    )
    short, long = (
        sample_logits(many, tiny.make_teacher(), num_rows=rows, num_views=VIEWS) for rows in (9, 30)
    )
    assert names(short) == names(long)[:9]


def test_large_blocks_give_a_few_rows_each(tmp_path: Path) -> None:
    """Neighbours in a tar that was not shuffled are of one class."""
    many = dataset_source(
        tiny.make_dataset(tmp_path, 80, rows_per_tar=40), tiny.make_recipe(block=40)
    )
    seen: list[int] = []

    def note(pixels: NDArray[np.uint8]) -> None:
        seen.append(len(pixels))

    teacher = tiny.watched(tiny.make_teacher(), note)
    sample_logits(many, teacher, num_rows=2 * ROWS_OF_BLOCK, num_views=1, batch_size=ROWS_OF_BLOCK)
    assert seen == [ROWS_OF_BLOCK, ROWS_OF_BLOCK]


def test_images_that_cannot_be_used_are_not_in_a_sample(tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "images", 12)
    bad = sorted(folder.rglob("*.*"))
    bad[3].write_bytes(b"no image")
    spoilt = dataset_source(tiny.pack_images(folder, tmp_path / "data"), tiny.make_recipe())
    found = sample_logits(spoilt, tiny.make_teacher(), num_rows=1024, num_views=VIEWS)
    assert len(found) == 11 * VIEWS
    for path in bad:
        path.write_bytes(b"no image")
    spoilt = dataset_source(tiny.pack_images(folder, tmp_path / "none"), tiny.make_recipe())
    with pytest.raises(DataError, match="no image of the sample can be used"):
        sample_logits(spoilt, tiny.make_teacher(), num_views=VIEWS)


def test_logits_that_are_not_finite_are_refused(source: BlockSource) -> None:
    teacher = tiny.make_teacher()
    next(teacher.network.parameters()).data[0] = float("nan")
    with pytest.raises(UsageError, match=r"linear_teacher: gave logits that are not finite; check"):
        sample_logits(source, teacher)


# --- a dense cache -------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["dense:f2", "dense:u1"])
def test_a_dense_cache_gives_the_teachers_log_probabilities(
    dataset: Dataset, source: BlockSource, tmp_path: Path, encoding: str
) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), encoding=encoding)
    found = stored_logits(cache)
    expected = all_logits(source).log_softmax(1)
    assert len(found) == ROWS * VIEWS
    distance = (found[:, None] - expected[None]).abs().amax(2)
    limit = (expected.amax() - expected.amin()) / (1000 if encoding == "dense:f2" else 100)
    assert (distance.amin(1) < limit).all()
    assert len(set(names(found))) == len(set(names(expected)))
    some = stored_logits(cache, num_rows=30)
    assert len(some) == 30
    assert len(set(names(some))) == 30
    assert set(names(some)) <= set(names(found))
    assert names(stored_logits(cache, num_rows=30)) == names(some)


def test_of_a_cache_that_is_not_complete_what_is_there_is_taken(
    dataset: Dataset, tmp_path: Path
) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe(), encoding="dense:f2")
    with pytest.raises(IncompleteError, match="holds no views yet"):
        stored_logits(job.cache)
    tiny.run_span(job, job.cache.missing()[-1])  # 4 rows of the last tar in 2 views
    assert len(stored_logits(job.cache)) == 8


def test_a_sparse_cache_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe(), encoding="packed:3")
    with pytest.raises(UsageError, match=r"its encoding is packed:3, .*--data, --teacher and"):
        stored_logits(job.cache)


# --- measuring -----------------------------------------------------------------------------


def test_measurements_are_those_of_a_cache_of_the_same_rows(
    dataset: Dataset, tmp_path: Path
) -> None:
    """One tar in one view is one tile: the bytes are those of its chunks."""
    for encoding in ("topk:3", "packed:3", "adaptive:0.05", "dense:u1", "dense:f2"):
        recipe = tiny.make_recipe()
        path = tmp_path / encoding
        packed = tiny.make_dataset(tmp_path / f"of {encoding}", 12, rows_per_tar=12)
        cache = tiny.precompute(
            path, packed, recipe, encoding=encoding, num_views=1, span_views=1, batch_size=12
        )
        commit = cache.commit(cache.grid.span_of(0, 0))
        logits = all_logits(dataset_source(packed, recipe), views=1)
        (one,) = measure_encodings(logits, [cache.info.encoding])
        stored = sum(commit.tiles[spec.name][0].size_bytes for spec in cache.info.specs)
        assert one.bytes_per_view == stored / 12
        found, expected = one.fidelity.summary(), commit.fidelity.summary()
        assert found["gradient_error"] == pytest.approx(expected["gradient_error"], rel=1e-6)


def test_all_candidates_are_measured_in_their_order() -> None:
    logits = classifier_logits(80, num_classes=50)
    done: list[int] = []
    measured = measure_encodings(logits, candidates(50), progress=done.append)
    assert [one.encoding for one in measured] == list(candidates(50))
    assert done == [1] * len(measured)
    for one in measured:
        fields = one.encoding.encode(logits)
        assert one.fidelity == measure(logits, fields, one.encoding)
        assert one.bytes_per_view > 0


def test_tiles_of_few_rows_cost_more_and_lose_as_much() -> None:
    logits = classifier_logits(200, num_classes=50)
    encodings = [parse_encoding(text, 50) for text in ("packed:5", "adaptive:0.02", "dense:f2")]
    large = measure_encodings(logits, encodings)
    small = measure_encodings(logits, encodings, tile_rows=10)
    for one, other in zip(small, large, strict=True):
        assert one.bytes_per_view > other.bytes_per_view + 1
        assert one.fidelity.error == pytest.approx(other.fidelity.error, rel=1e-9)


def test_many_rows_and_many_classes_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = classifier_logits(1300, num_classes=30)
    encodings = [parse_encoding(text, 30) for text in ("packed:5", "adaptive:0.02", "dense:f2")]
    whole = measure_encodings(logits, encodings)
    monkeypatch.setattr("kdcache.precompute.sample.ENTRIES", 30 * 100)
    for one, other in zip(measure_encodings(logits, encodings), whole, strict=True):
        assert one.bytes_per_view == other.bytes_per_view
        assert one.fidelity.rows == 1300
        assert one.fidelity.error == pytest.approx(other.fidelity.error, rel=1e-9)
    monkeypatch.setattr("kdcache.precompute.sample.ENTRIES", 1)
    assert measure_encodings(logits[:20], encodings)[0].fidelity.rows == 20
