"""Claims about pages in a real browser: on a phone and a desktop, light and dark."""

from pathlib import Path

import numpy as np
import pytest

from kdcache.report.figures import Line, Picture, Scale, lines_svg
from kdcache.report.page import Section, render_page
from kdcache.report.sheet import Card, png_address
from pipelines.study.report import write_results
from tests.pipelines.study_result import make_result
from tests.report.browser import Browser
from tests.report.reading import faults


def test_a_page_of_all_parts_too_wide_for_any_window_has_no_fault(
    browser: Browser, tmp_path: Path
) -> None:
    wide = "wide" * 50
    lines = [Line(name, [1, 2], [3.0, 3.0]) for name in ("first", "second", "third")]
    svg = lines_svg(lines, "lines", x=Scale("epoch"), y=Scale("loss"))
    card = Card(png_address(np.zeros((2, 2, 3), np.uint8)), "a digit", (("7", 0.9), ("1", 0.1)))
    sections = [
        Section(wide, paragraphs=[wide], table=[["head"] * 40, [wide] * 40]),
        Section("Pictures", figures=[Picture("lines", svg, "three lines")] * 2),
        Section("Sheet", sheet=[[card] * 6]),
    ]
    (tmp_path / "page.html").write_text(render_page(wide, sections))
    assert faults(browser, tmp_path / "page.html") == []


@pytest.mark.parametrize("holds", [True, False], ids=["holding", "failing"])
def test_the_study_s_page_has_no_fault(browser: Browser, tmp_path: Path, holds: bool) -> None:
    write_results(make_result(holds=holds), tmp_path)
    assert faults(browser, tmp_path / "digits.html") == []


SOUND = (
    "<meta name=viewport content='width=device-width'>"
    "<style>:root { color-scheme: light dark } body { background: Canvas }</style>"
)
SVG = (
    "<svg width=90 height=30 fill=currentColor><text x={} y=20>{}</text><text y=20>on</text></svg>"
)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p style='width: 400px'>x", "360 light: the page is 4"),
        ("<p style='color: #777'>x", "dark: 'x' is pale: rgb(119, 119, 119)"),
        ("<style>body { background: white !important }</style>", "360 dark: the background is "),
        ("<img src='data:,'>", "1 pictures have no words"),
        (SVG.format(40, "apart"), "1 pictures have no words"),
        (f"<div role=img aria-label=x>{SVG.format(80, 'long')}</div>", "'long' leaves its picture"),
        (f"<div role=img aria-label=x>{SVG.format(2, 'a')}</div>", "'a' and 'on' lie on each"),
        ("<div style='overflow: auto'><p style='width: 2000px'>x</div>", "no keyboard reaches"),
        ("<script>missing()</script>", "missing is not defined"),
    ],
)
def test_a_fault_is_found(browser: Browser, tmp_path: Path, body: str, fault: str) -> None:
    (tmp_path / "page.html").write_text(SOUND + body)
    assert any(fault in found for found in faults(browser, tmp_path / "page.html"))


def test_what_has_no_fault_is_not_blamed(browser: Browser, tmp_path: Path) -> None:
    figure = f"<div role=img aria-label=x>{SVG.format(40, 'apart')}</div>"
    (tmp_path / "page.html").write_text(f"{SOUND}<p>x</p><img src='data:,' alt=y>{figure}")
    assert faults(browser, tmp_path / "page.html") == []
