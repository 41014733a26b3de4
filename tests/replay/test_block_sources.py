"""Claims about blocks of a dataset: the same samples, wherever the dataset holds them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.data.blocks import BlockSource, dataset_source, matched_source
from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError
from kdcache.identity import content_digest
from tests import tiny

RECIPE = tiny.make_recipe()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """The same 24 images in three layouts."""
    root = tmp_path_factory.mktemp("copies")
    folder = tiny.write_images(root / "images", 24)
    return [
        tiny.pack_images(folder, root / f"{rows}-{seed}", rows_per_tar=rows, shuffle_seed=seed)
        for rows, seed in ((10, None), (7, 1), (24, 2))
    ]


def _matched(dataset: Dataset, parts: list[np.ndarray]) -> BlockSource:
    """Return a source of these rows of the dataset, as tars of their own."""
    return matched_source(
        dataset,
        RECIPE,
        uids=[dataset.uids[part] for part in parts],
        contents=[dataset.contents[part] for part in parts],
    )


def test_blocks_of_a_dataset_are_its_rows_in_order(copies: list[Dataset]) -> None:
    dataset = copies[0]
    source = dataset_source(dataset, RECIPE)
    assert [source.num_rows(tar) for tar in range(source.num_tars)] == [10, 10, 4]
    assert source.blocks(1) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    for tar in range(3):
        own = dataset.rows(tar)
        files = [data for rows in source.blocks(tar) for data in source.read(tar, rows)]
        assert [content_digest(data) for data in files] == dataset.contents[own].tolist()
        labels = [source.labels(tar, rows) for rows in source.blocks(tar)]
        assert np.concatenate(labels).tolist() == dataset.labels[own].tolist()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_rows_in_any_order_are_found_again(copies: list[Dataset], data: st.DataObject) -> None:
    dataset = data.draw(st.sampled_from(copies))
    order = data.draw(st.permutations(range(24)))[: data.draw(st.integers(1, 24))]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(order) - 1, 1)), max_size=3)))
    parts = [p for p in np.split(np.array(order), cuts) if len(p)]
    source = _matched(dataset, parts)
    assert source.num_tars == len(parts)
    for tar, part in enumerate(parts):
        rows = slice(0, len(part))
        found = [content_digest(image) for image in source.read(tar, rows)]
        assert found == dataset.contents[part].tolist()
        assert source.labels(tar, rows).tolist() == dataset.labels[part].tolist()
        keys = [source.where(tar, row).rsplit("key ", 1)[1] for row in range(len(part))]
        assert len(set(keys)) == len(part)


def test_copies_in_other_tars_render_the_same_blocks(copies: list[Dataset]) -> None:
    first = copies[0]
    here = dataset_source(first, RECIPE)
    tars = [first.rows(tar) for tar in range(3)]
    for other in copies[1:]:
        there = matched_source(
            other,
            RECIPE,
            uids=[first.uids[rows] for rows in tars],
            contents=[first.contents[rows] for rows in tars],
        )
        for tar in range(3):
            for rows in here.blocks(tar):
                blocks = [source.render(tar, rows, views=[0, 5]) for source in (here, there)]
                assert blocks[0].witnesses().tolist() == blocks[1].witnesses().tolist()
                key = [source.where(tar, rows.start).rsplit("key ")[1] for source in (here, there)]
                assert key[0] == key[1]


def test_skipped_rows_are_not_rendered(copies: list[Dataset]) -> None:
    source = dataset_source(copies[0], RECIPE)
    block = source.render(1, slice(4, 8), views=[0], skip={5, 0})
    assert block.usable_N.tolist() == [True, False, True, True]
    assert block.problems == {}


def test_samples_that_are_missing_or_changed_are_counted(copies: list[Dataset]) -> None:
    dataset = copies[0]
    uids, contents = dataset.uids.copy(), dataset.contents.copy()
    uids[[3, 7]] ^= np.uint64(1)
    with pytest.raises(MismatchError, match="2 of the cache's 24 samples are not in this dataset"):
        matched_source(dataset, RECIPE, uids=[uids], contents=[contents])
    contents[[12, 20]] ^= np.uint64(1)
    expected = r"000001\.tar, key class\d/\d+: this image file, and 1 others, differ"
    with pytest.raises(MismatchError, match=expected):
        matched_source(dataset, RECIPE, uids=[dataset.uids], contents=[contents])


def test_the_largest_uid_is_found_or_missed_like_any_other(
    copies: list[Dataset], tmp_path: Path
) -> None:
    dataset = copies[0]
    beyond = np.array([2**64 - 1, 0], np.uint64)
    with pytest.raises(MismatchError, match="2 of the cache's 2 samples"):
        matched_source(dataset, RECIPE, uids=[beyond], contents=[beyond])
