import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.report.figures import COLOURS, GREY, Line, Picture, Scale, lines_svg, spread
from kdcache.report.page import Section, inline, render_page
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
LINE = Line("one", [1, 2], [3, 4])


def _svg(*lines: Line, name: str = "loss", x: str = "epoch", y: str = "loss") -> str:
    return lines_svg(lines or [LINE], name, x=Scale(x), y=Scale(y))


SVG = _svg()


def _page(text: str = "text") -> str:
    card = Card(PICTURE, text, ((text, 0.75), ("other", 0.25)))
    return render_page(
        text,
        [
            Section(text, paragraphs=[text, "second"]),
            Section("Table", table=[[text, "head"], [text, "cell"], ["a", "b"]]),
            Section("Figure", figures=[Picture("loss", SVG, text)]),
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


@pytest.mark.parametrize("script", ["", "let one = 1;"])
def test_a_page_forbids_what_it_does_not_need(script: str) -> None:
    page = Page(
        render_page("t", [Section("s", figures=[Picture("loss", SVG, "words")])], script=script)
    )
    (policy,) = (
        str(meta["content"])
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (style,) = page.text["style"]
    assert rules == {
        "default-src": "'none'",
        "style-src": _digest(style),
        "script-src": _digest(script) if script else "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not any("style" in attributes for _, attributes in page.elements)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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


def _words(svg: str) -> set[str]:
    return {text.strip() for text in Page(svg).text["text"]}


def test_text_in_a_picture_that_looks_like_an_attribute_stays_text() -> None:
    svg = '<svg><text style="fill: #000000">style="&lt;!--:y"</text></svg>'
    assert 'fill="#000000">style="&lt;!--:y"</text>' in inline(Picture("a", svg, "words"))


def test_a_figure_is_one_svg_element_with_its_names_as_text() -> None:
    svg = _svg(Line("a < b, $5", [1, 2, 3], [3.0, 1.0, 2.0]), y="KL & co")
    assert Page(svg).elements[0][0] == "svg"
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert {"a < b, $5", "epoch", "KL & co"} <= _words(svg)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_every_line_is_drawn_and_named(count: int) -> None:
    colour = "#123456"
    lines = [Line(f"line {n}", [1, 2, 3], [n, n + 1, n + 3], colour=colour) for n in range(count)]
    svg = _svg(*lines)
    assert {line.name for line in lines} <= _words(svg)
    drawn = sum(colour in path["style"] for path in _paths(svg))
    assert drawn == 2 * count  # the line, and from its end to its name


def test_an_interval_is_drawn_at_each_point() -> None:
    line = Line("one", [1, 2, 3], [2, 2, 2], low=[1, 1, 1], high=[3, 3, 3])
    assert len(_paths(_svg(line))) - len(_paths(_svg(Line("one", [1, 2, 3], [2, 2, 2])))) == 3


def test_ticks_are_plain_numbers_or_what_was_given() -> None:
    line = Line("one", [100, 3000], [0.02, 2.0])
    ticks: dict[float, str] = {100: "100", 3000: "three thousand"}
    x, y = Scale("epochs", is_log=True, ticks=ticks), Scale("KL", is_log=True)
    words = _words(lines_svg([line], "plain", x=x, y=y))
    assert words == {"one", "epochs", "KL", "100", "three thousand"} | {
        "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2",
    }  # fmt: skip


@pytest.mark.parametrize("level", [0.001, 0.0137, 0.14, 0.3, 0.75, 4.0])
def test_a_logarithmic_axis_of_nearly_equal_values_is_not_stretched(level: float) -> None:
    line = Line("one", [1, 2], [level, 1.01 * level])
    svg = lines_svg([line], "flat", x=Scale("epoch", ticks={}), y=Scale("KL", is_log=True))
    ticks = [float(word) for word in _words(svg) - {"one", "KL", "epoch"}]
    shown = [tick for tick in ticks if level / 2 < tick < level * 2]
    assert len(shown) >= 2
    assert max(shown) / min(shown) > 1.2


def test_the_same_lines_make_the_same_figure() -> None:
    """No date, no random ids, no version."""
    assert _svg() == SVG
    assert "metadata" not in SVG


def _named(svg: str) -> set[str]:
    """Return the ids that a figure refers to."""
    return set(re.findall(r"""(?:url\(#|href="#)([^")]+)""", svg))


def test_figures_of_one_page_refer_to_no_common_id() -> None:
    """The clip paths and marks of the first would serve the second."""
    first, second = _named(_svg(name="loss")), _named(_svg(name="lass"))
    assert len(first) >= 2
    assert not first & second


def test_grey_has_the_colour_of_the_text_on_a_page_alone() -> None:
    assert GREY in SVG
    page = _page()
    assert GREY not in page
    assert page.count("currentColor") > SVG.count("currentColor")


# --- colours -------------------------------------------------------------------------------


def _linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("colour", [*COLOURS, GREY])
@pytest.mark.parametrize("background", ["#ffffff", "#121212", "#0d1117"])
def test_a_colour_is_seen_on_white_and_on_near_black(colour: str, background: str) -> None:
    dark, light = sorted(
        float(_linear(one) @ (0.2126, 0.7152, 0.0722)) for one in (colour, background)
    )
    assert (light + 0.05) / (dark + 0.05) >= 3


# --- places of names -----------------------------------------------------------------------

some_places = st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=9)


@given(some_places)
def test_names_are_spread_in_their_order_and_within_the_axes(places: list[float]) -> None:
    moved = spread(places, 0.1)
    order = sorted(range(len(places)), key=places.__getitem__)
    ranked = [moved[index] for index in order]
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ranked))
    assert min(moved) >= 0
    assert max(moved) <= 1 + 1e-9


def test_names_that_have_room_stay_where_they_are() -> None:
    assert spread([0.9, 0.1, 0.5], 0.2) == pytest.approx([0.9, 0.1, 0.5])


def test_names_in_one_place_move_both_ways_alike() -> None:
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
