"""Claims about parts of a job: disjoint, together whole, and the last one seals."""

from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.cache.layout import Span
from kdcache.data.dataset import Dataset
from kdcache.precompute.engines import run_inline, slice_of
from tests import tiny


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9))), st.integers(1, 9))
def test_slices_are_disjoint_and_together_whole(pairs: list[tuple[int, int]], parts: int) -> None:
    spans = [Span(*pair) for pair in pairs]
    slices = [slice_of(spans, part, parts) for part in range(parts)]
    assert sorted(chain.from_iterable(slices)) == sorted(spans)
    for part, chosen in enumerate(slices):  # whatever others commit meanwhile
        assert all(slice_of([span], part, parts) == [span] for span in chosen)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slices_make_the_whole_cache_and_the_last_seals_it(
    dataset: Dataset, tmp_path: Path, complete: Path, order: tuple[int, ...]
) -> None:
    path = tmp_path / "c"
    for turn, part in enumerate(order):
        job = tiny.make_job(path, dataset, tiny.make_recipe())
        assert (path / "seal.json").exists() == (turn == 3)
        chosen = slice_of(job.cache.missing(), part, 3)
        assert len(chosen) == 2
        run_inline(job, chosen)
    assert (path / "seal.json").exists()
    assert tiny.tree(path) == tiny.tree(complete)
