"""Claims about the grid: spans cover every tile once, and names fix what they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.cache.layout import (
    Grid,
    Span,
    default_span_views,
    make_grid,
    object_names,
    span_named,
)
from kdcache.errors import UsageError
from kdcache.targets.encoding import parse_encoding

grids = st.builds(
    lambda tars, runs, span, rows, block: Grid(tars, runs * span, span, rows, block),
    *(st.integers(1, most) for most in (5, 6, 9, 300, 70)),
)


@given(grids)
def test_every_tile_is_in_one_span(grid: Grid) -> None:
    tiles = [(span.tar, view) for span in grid.spans() for view in grid.views(span)]
    assert sorted(tiles) == [(t, v) for t in range(grid.num_tars) for v in range(grid.num_views)]
    for span in grid.spans():
        assert {grid.span_of(span.tar, view) for view in grid.views(span)} == {span}


@given(grids)
def test_blocks_hold_all_rows_and_the_last_is_not_empty(grid: Grid) -> None:
    assert (grid.blocks - 1) * grid.block < grid.max_rows <= grid.blocks * grid.block


@pytest.mark.parametrize("encoding", ["topk:2", "packed:2", "adaptive:0.1", "dense:f2", "dense:u1"])
def test_no_two_spans_share_an_object(encoding: str) -> None:
    specs = parse_encoding(encoding, 5).specs(5)
    spans = list(Grid(3, 8, 2, 10, 4).spans())
    names = [name for span in spans for name in object_names(span, specs).values()]
    assert len(set(names)) == len(names) == len(spans) * (len(specs) + 1)
    assert len({span.commit_name for span in spans}) == len(spans)


@given(st.integers(1, 10_000))
def test_a_span_has_the_largest_divisor_up_to_eight_by_default(num_views: int) -> None:
    found = default_span_views(num_views)
    assert found == max(g for g in range(1, 9) if num_views % g == 0)
    assert make_grid([1], num_views=num_views, span_views=None, block=1).span_views == found


@pytest.mark.parametrize(("num_views", "span_views"), [(0, None), (4, 3), (4, 0), (4, 8), (-4, -2)])
def test_views_that_do_not_fill_spans_are_refused(num_views: int, span_views: int | None) -> None:
    with pytest.raises(UsageError):
        make_grid([3], num_views=num_views, span_views=span_views, block=4)


def test_a_span_is_named_by_tar_and_run() -> None:
    assert Span(12, 3).commit_name == "commits/12-3.json"
    assert object_names(Span(12, 3), parse_encoding("dense:f2", 5).specs(5)) == {
        "logits": "logits/c/12/3/0/0",
        "witness": "witness/c/12/3/0",
    }
    assert object_names(Span(0, 1), parse_encoding("adaptive:0.1", 5).specs(5)) == {
        "gaps": "gaps/c/0/1/0",
        "codes": "codes/c/0/1/0",
        "tails": "tails/c/0/1/0/0",
        "counts": "counts/c/0/1/0/0",
        "witness": "witness/c/0/1/0",
    }


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_span_is_found_by_the_name_of_its_record(tar: int, run: int) -> None:
    assert span_named(Span(tar, run).commit_name.removeprefix("commits/")) == Span(tar, run)


@pytest.mark.parametrize(
    "name", ["", "1", "1-0", "1-0.json.partial", "01-0.json", "1-x.json", "-1.json", "²-0.json"]
)
def test_other_names_are_no_span(name: str) -> None:
    assert span_named(name) is None
