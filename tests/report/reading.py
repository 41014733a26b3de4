"""What is wrong with a page for those who look at it, or hear it, in a real browser."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.report.browser import Browser, Scheme

WIDTHS = (360, 1280)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
LEAST_CONTRAST = 4.5  # of text, in WCAG 2

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
    width: document.documentElement.scrollWidth,
    background: getComputedStyle(document.body).backgroundColor,
    colours: all("body *").filter(hasText).map((e) => [e.textContent.trim(), colour(e)]),
    unnamed: all("img:not([alt]), img[alt='']").length
      + all("svg").filter((e) => !e.closest("[role=img]")?.ariaLabel).length,
    hidden: all("body *").filter((e) => e.scrollWidth > e.clientWidth && e.clientWidth
      && getComputedStyle(e).overflowX !== "visible" && (e.tabIndex || !e.ariaLabel)).length,
    pictures: all("svg").map((e) => ({
      box: rect(e), texts: all("text", e).map((t) => [t.textContent, rect(t)]) })),
  };
})()"""


def faults(browser: Browser, page: Path | str) -> list[str]:
    """Return all that is wrong with a page, on a phone and a desktop, light and dark."""
    return [
        f"{width} {scheme}: {fault}"
        for width, scheme in itertools.product(WIDTHS, SCHEMES)
        for fault in _faults(browser, page, width=width, scheme=scheme)
    ]


def _faults(browser: Browser, page: Path | str, *, width: int, scheme: Scheme) -> Iterator[str]:
    browser.open(page, width=width, scheme=scheme)
    facts = browser.value(FACTS)
    yield from browser.complaints
    if facts["width"] > width:
        yield f"the page is {facts['width']} wide"
    if (luminance(facts["background"]) > 0.5) != (scheme == "light"):
        yield f"the background is {facts['background']}"
    if facts["unnamed"]:
        yield f"{facts['unnamed']} pictures have no words"
    if facts["hidden"]:
        yield f"{facts['hidden']} boxes scroll where no keyboard reaches"
    for text, colour in facts["colours"]:
        if _contrast(colour, facts["background"]) < LEAST_CONTRAST:
            yield f"{text!r} is pale: {colour}"
    for picture in facts["pictures"]:
        yield from _crowded(picture)


def _crowded(picture: dict[str, Any]) -> Iterator[str]:
    """Yield what words of a picture leave it or lie on each other."""
    left, top, right, bottom = picture["box"]
    for text, (x, y, x_end, y_end) in picture["texts"]:
        if not (left <= x < x_end <= right and top <= y < y_end <= bottom):
            yield f"{text!r} leaves its picture"
    for (one, a), (other, b) in itertools.combinations(picture["texts"], 2):
        across = min(a[2], b[2]) - max(a[0], b[0])
        down = min(a[3], b[3]) - max(a[1], b[1])
        if across > 0 and down > 2:  # boxes have room for descenders
            yield f"{one!r} and {other!r} lie on each other"


def _contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 has it."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour as WCAG 2 has it."""
    assert colour.startswith("rgb("), colour
    parts = np.array([int(part) for part in re.findall(r"\d+", colour)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
