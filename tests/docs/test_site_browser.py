"""The built documentation in a real browser: readable on a phone, in the dark, and searchable."""

import itertools
import time
from pathlib import Path

import pytest

from tests.report.browser import Browser
from tests.report.reading import SCHEMES, WIDTHS, luminance

pytestmark = pytest.mark.slow

FACTS = """[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor,
  [...document.images].filter((image) => !image.complete || !image.naturalWidth).length]"""
FOUND = "[...document.querySelectorAll('ul.search li > a')].map((link) => link.textContent)"


def test_every_page_is_whole_on_a_phone_and_a_desktop_light_and_dark(
    browser: Browser, site: Path
) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page, width, scheme in itertools.product(pages, WIDTHS, SCHEMES):
        browser.open(page, width=width, scheme=scheme)
        wide, background, broken = browser.value(FACTS)
        where = (page.name, width, scheme)
        assert (browser.complaints, broken) == ([], 0), where
        assert wide <= width, where
        assert (luminance(background) > 0.5) == (scheme == "light"), where


def test_the_search_finds_a_page_without_a_server(browser: Browser, site: Path) -> None:
    page = (site / "search.html").as_uri() + "?q=quarantined"
    browser.open(page, width=WIDTHS[0], scheme="light")
    end = time.monotonic() + 20
    while "JSON" not in (found := browser.value(FOUND)):  # they come one after the other
        assert time.monotonic() < end, found
        time.sleep(0.1)
