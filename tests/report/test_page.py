import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.report.figures import COLOURS, curves_svg
from kdcache.report.page import Section, render_page
from kdcache.report.sheet import Card, png_address

EVIL = """<script>alert("1")</script> & 'quotes' "double" <img src=x onerror=y> &amp;"""
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text within each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


PICTURE = png_address(np.zeros((2, 2, 3), np.uint8))
SVG = curves_svg({"one": ([1, 2], [3, 4])}, x_label="epoch", y_label="loss")


def _page(text: str = "text") -> str:
    card = Card(PICTURE, text, ((text, 0.75), ("other", 0.25)))
    return render_page(
        text,
        [
            Section(text, paragraphs=[text, "second"]),
            Section("Table", table=[[text, "head"], [text, "cell"], ["a", "b"]]),
            Section("Figure", figures=[(SVG, text)]),
            Section("Sheet", sheet=[[card, card], [card]]),
        ],
    )


def test_a_page_is_one_whole_document() -> None:
    page = Page(_page())
    assert page.all("html") == [{"lang": "en"}]
    assert page.text["title"] == ["text"]
    assert page.text["h1"] == ["text"]
    assert page.text["h2"] == ["text", "Table", "Figure", "Sheet"]
    assert {"charset": "utf-8"} in page.all("meta")
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    _assert_shown(text)


def test_text_that_looks_like_html_is_shown_as_it_is() -> None:
    _assert_shown(EVIL)


def _assert_shown(text: str) -> None:
    page, plain = Page(_page(text)), Page(_page())
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    for tag in ("h1", "title"):
        assert page.text[tag] == [text]
    assert page.text["h2"][0] == text
    assert page.text["p"][0] == text
    assert page.text["th"][0] == text
    assert page.text["td"][0] == text
    assert page.text["dt"][0] == text
    assert page.all("figure")[0]["aria-label"] == text
    assert page.all("img")[0]["alt"] == text
    assert page.all("meter")[0]["aria-label"] == f"probability of {text}"


def test_a_page_runs_nothing_and_fetches_nothing() -> None:
    page = Page(_page(EVIL))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#"))
    for style in page.text["style"]:
        assert "url(" not in style.replace("url(#", "")
        assert "@import" not in style


def test_a_page_forbids_what_it_does_not_need() -> None:
    (policy,) = (
        str(meta["content"])
        for meta in Page(_page()).all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
    }


def test_every_picture_has_words() -> None:
    page = Page(_page())
    assert len(page.all("img")) == 3
    assert len(page.all("figure")) == 1
    for image in page.all("img"):
        assert image["alt"]
    for figure in page.all("figure"):
        assert (figure["role"], bool(figure["aria-label"])) == ("img", True)
    for meter in page.all("meter"):
        assert meter["aria-label"]


def test_what_is_empty_is_not_shown() -> None:
    tags = [tag for tag, _ in Page(render_page("t", [Section("empty")])).elements]
    assert not set(tags) & {"table", "figure", "img", "p", "div"}
    assert tags.count("section") == 1
    assert "section" not in [tag for tag, _ in Page(render_page("t", [])).elements]


def test_a_table_has_its_headings_first() -> None:
    page = Page(render_page("t", [Section("s", table=[["a", "b"], ["1", "2"], ["3", "4"]])]))
    assert page.text["th"] == ["a", "b"]
    assert page.text["td"] == ["1", "2", "3", "4"]
    assert [heading["scope"] for heading in page.all("th")] == ["col", "col"]


# --- figures -------------------------------------------------------------------------------


def _paths(svg: str) -> list[dict[str, Any]]:
    page = Page(svg)
    return [path for path in page.all("path") if "fill: none" in (path.get("style") or "")]


def test_a_figure_is_one_svg_element_with_its_names_as_text() -> None:
    svg = curves_svg({"a < b": ([1, 2, 3], [3.0, 1.0, 2.0])}, x_label="epoch", y_label="KL & co")
    page = Page(svg)
    assert page.elements[0][0] == "svg"
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    shown = [text.strip() for text in page.text["text"]]
    assert {"a < b", "epoch", "KL & co"} <= set(shown)


@pytest.mark.parametrize("count", [1, len(COLOURS), len(COLOURS) + 2])
def test_every_curve_is_drawn(count: int) -> None:
    curves = {f"curve {n}": ([1, 2, 3], [n, n + 1, n + 3]) for n in range(count)}
    svg = curves_svg(curves, x_label="x", y_label="y")
    shown = {text.strip() for text in Page(svg).text["text"]}
    assert set(curves) <= shown
    strokes = [path["style"] for path in _paths(svg)]
    drawn = sum(any(colour in style for colour in COLOURS) for style in strokes)
    assert drawn == 2 * count  # the line and its place in the legend


def test_the_same_curves_make_the_same_figure() -> None:
    """No date, no random ids."""
    curves = {"one": ([1, 2], [3, 4])}
    again = curves_svg(curves, x_label="epoch", y_label="loss")
    assert again == SVG
    assert "dc:date" not in SVG


def _named(svg: str) -> set[str]:
    """Return the ids that a figure refers to."""
    return set(re.findall(r"""(?:url\(#|href="#)([^")]+)""", svg))


def test_figures_of_one_page_refer_to_no_common_id() -> None:
    """The clip paths and marks of the first would serve the second."""
    curves = {"one": ([1, 2], [3, 4])}
    first, second = (
        _named(curves_svg(curves, x_label="epoch", y_label=label)) for label in ("loss", "lass")
    )
    assert len(first) >= 2
    assert not first & second
