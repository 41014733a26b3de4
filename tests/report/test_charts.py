import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.report.charts import bars, coverage_map
from tests.report.test_page import Page


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_every_count_is_a_bar_of_its_height(counts: list[int]) -> None:
    array = np.array(counts, np.int64)
    page = Page(bars("name", "title <", array, top=1.0, words="words").svg)
    heights = [float(at["height"] or 0) for at in page.all("rect")]
    there = [count for count in counts if count]
    assert len(heights) == len(there)
    most = max(heights, default=0)
    assert heights == pytest.approx([most * count / max(there) for count in there], rel=1e-3)
    assert "title <" in page.text["text"]


def test_a_map_of_a_complete_cache_has_a_bar_a_row() -> None:
    svg = coverage_map(np.ones((3, 80)), tars=3, views=300, words="all").svg
    frame, *rows = Page(svg).all("rect")
    assert len(rows) == 3
    assert all(row["width"] == frame["width"] and "fill-opacity" not in row for row in rows)


def test_what_is_not_whole_on_a_map_is_never_drawn_as_whole_or_as_nothing() -> None:
    shares = np.array([[0.0, 1e-9, 0.5, 1 - 1e-9, 1.0]])
    _, *cells = Page(coverage_map(shares, tars=9, views=9, words="some").svg).all("rect")
    opacities = [float(cell.get("fill-opacity") or 1) for cell in cells]
    assert len(opacities) == 4
    assert 0 < opacities[0] < opacities[1] < opacities[2] < opacities[3] == 1


def test_the_largest_map_is_small() -> None:
    shares = np.random.default_rng(0).random((80, 80))
    assert len(coverage_map(shares, tars=1281, views=300, words="some").svg) < 1_000_000
