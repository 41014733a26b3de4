"""One self-contained HTML page: no network, light and dark, narrow and wide.

Its policy lets a browser run and apply nothing but the style and the script that it was made with,
which are named by their digests: no attribute of style, and no script within text, has an effect.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from typing import Literal

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from kdcache.report.figures import GREY, Picture
from kdcache.report.sheet import Card

MARK = '<meta name="generator" content="kdcache">'  # of our pages, which may be written over
NOTHING = Markup("")
ENVIRONMENT = Environment(
    loader=PackageLoader("kdcache.report", "templates"), autoescape=True, trim_blocks=True
)


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is not shown.

    table: rows of cells, the first row the headings. sheet: rows of cards. html: the rest, as it
    is: whoever made it has escaped all texts.
    """

    title: str
    paragraphs: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    figures: Sequence[Picture] = ()
    sheet: Sequence[Sequence[Card]] = ()
    html: Markup = NOTHING


def render_page(
    title: str,
    sections: Sequence[Section],
    *,
    script: str = "",
    forms: Literal["none", "self"] = "none",
) -> str:
    """Return the page as HTML text; all text is escaped. forms: where its forms may lead.

    Figures are taken as they are, but what is grey in them has the colour of the text.
    """
    style = template_source("page.css")
    return ENVIRONMENT.get_template("page.html").render(
        title=title,
        sections=sections,
        inline=inline,
        mark=Markup(MARK),
        style=Markup(style),
        script=Markup(script),
        policy=Markup(
            f"default-src 'none'; img-src data:; style-src {_named(style)}; "
            f"script-src {_named(script)}; base-uri 'none'; form-action '{forms}'"
        ),
    )


def template_source(name: str) -> str:
    """Return a file of the templates as it is."""
    assert ENVIRONMENT.loader is not None
    return ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0]


def _named(text: str) -> str:
    """Return how a policy names a style or script; nothing at all where there is none."""
    digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'" if text else "'none'"


def inline(picture: Picture) -> Markup:
    """Return a picture's SVG for a page whose policy forbids attributes of style.

    What they say is said by attributes of their own. Grey becomes the colour of the text.
    """
    svg = re.sub(r"<style[^>]*>.*?</style>", "", picture.svg, flags=re.DOTALL)
    svg = re.sub(r'(<[^<>]*?)style="([^"]*)"', lambda tag: tag[1] + _attributes(tag[2]), svg)
    svg = svg.replace("<svg", '<svg stroke-linejoin="round"', 1)  # of matplotlib's style
    return Markup(svg.replace(GREY, "currentColor"))


def _attributes(style: str) -> str:
    pairs = (part.partition(":") for part in unescape(style).split(";"))
    return " ".join(
        f'{name.strip()}="{escape(value.strip())}"' for name, _, value in pairs if value
    )
