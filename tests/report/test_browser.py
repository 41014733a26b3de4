"""Claims about pages in a real browser: on a phone and a desktop, light and dark."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.report.figures import Line, Picture, Scale, lines_svg
from kdcache.report.page import Section, render_page
from kdcache.report.sheet import Card, png_address
from pipelines.study.report import write_results
from tests.pipelines.study_result import make_result
from tests.report.browser import Browser, Scheme, find_browser, run_browser

WIDTHS = (360, 1280)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

FACTS = """(() => {
  const rect = (e) => {
    const box = e.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom];
  };
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const hasText = (e) => e.getClientRects().length
    && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const colour = (e) => getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
  return {
    page_width: document.documentElement.scrollWidth,
    background: getComputedStyle(document.body).backgroundColor,
    colours: all("body *").filter(hasText).map((e) => [e.textContent.trim(), colour(e)]),
    unnamed: all("img:not([alt]), img[alt='']").length
      + all("svg").filter((e) => !e.closest("[role=img]")?.ariaLabel).length,
    boxes: all(".scroll").map((e) => [e.tabIndex, e.ariaLabel, e.scrollWidth > e.clientWidth]),
    pictures: all("svg").map((e) => ({
      box: rect(e), texts: all("text", e).map((t) => [t.textContent, rect(t)]) })),
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with run_browser(PROGRAM, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The study's page of both kinds of results, and one of all that a page may hold."""
    folder = tmp_path_factory.mktemp("pages")
    for name, holds in (("holding", True), ("failing", False)):
        write_results(make_result(holds=holds), folder / name)
    (folder / "parts.html").write_text(_parts())
    return {
        "holding": folder / "holding/digits.html",
        "failing": folder / "failing/digits.html",
        "parts": folder / "parts.html",
    }


def _parts() -> str:
    """Return a page with words and a table too wide for any window, a picture and cards."""
    wide = "wide" * 50
    lines = [Line(name, [1, 2], [3.0, 3.0]) for name in ("first", "second", "third")]
    svg = lines_svg(lines, "lines", x=Scale("epoch"), y=Scale("loss"))
    card = Card(png_address(np.zeros((2, 2, 3), np.uint8)), "a digit", (("7", 0.9), ("1", 0.1)))
    return render_page(
        wide,
        [
            Section(wide, paragraphs=[wide], table=[["head"] * 40, [wide] * 40]),
            Section("Pictures", figures=[Picture("lines", svg, "three lines")] * 2),
            Section("Sheet", sheet=[[card] * 6]),
        ],
    )


def _contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 has it."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    assert colour.startswith("rgb("), colour
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.fixture(params=["holding", "failing", "parts"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(itertools.product(WIDTHS, SCHEMES)), ids=str)
def facts(
    request: pytest.FixtureRequest, browser: Browser, pages: dict[str, Path], name: str
) -> dict[str, Any]:
    """What a browser says of a page in a window of a width and scheme."""
    width, scheme = request.param
    browser.open(pages[name], width=width, scheme=scheme)
    found: dict[str, Any] = browser.value(FACTS)
    return {**found, "width": width, "scheme": scheme, "complaints": list(browser.complaints)}


def test_a_page_fits_its_window_and_can_be_read_and_heard(facts: dict[str, Any]) -> None:
    assert facts["page_width"] <= facts["width"]
    assert facts["complaints"] == []
    assert facts["unnamed"] == 0
    assert (_luminance(facts["background"]) > 0.5) == (facts["scheme"] == "light")
    assert len(facts["colours"]) > 5
    pale = [
        (text, colour)
        for text, colour in facts["colours"]
        if _contrast(colour, facts["background"]) < 4.5
    ]
    assert pale == []


def test_a_table_that_is_too_wide_scrolls_in_a_box_that_a_keyboard_reaches(
    facts: dict[str, Any], name: str
) -> None:
    assert facts["boxes"]
    for tab_index, label, _ in facts["boxes"]:
        assert tab_index == 0
        assert label
    if name == "parts" or facts["width"] == 360:
        assert any(scrolls for _, _, scrolls in facts["boxes"])


def test_words_of_a_picture_lie_within_it_and_on_no_others(facts: dict[str, Any]) -> None:
    assert facts["pictures"]
    for picture in facts["pictures"]:
        left, top, right, bottom = picture["box"]
        assert len(picture["texts"]) > 5
        for text, (x, y, x_end, y_end) in picture["texts"]:
            assert left <= x < x_end <= right, text
            assert top <= y < y_end <= bottom, text
        for (one, a), (other, b) in itertools.combinations(picture["texts"], 2):
            across = min(a[2], b[2]) - max(a[0], b[0])
            down = min(a[3], b[3]) - max(a[1], b[1])
            assert across <= 0 or down <= 2, (one, other)  # descenders are in the boxes


def test_what_a_page_says_on_the_console_is_noticed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text("<body>x<script>missing()</script>")
    browser.open(tmp_path / "broken.html", width=360, scheme="light")
    assert any("missing is not defined" in text for text in browser.complaints)
