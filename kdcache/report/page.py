"""One self-contained HTML page: no script, no network, light and dark, narrow and wide."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from kdcache.report.figures import GREY, Picture
from kdcache.report.sheet import Card


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is not shown.

    table: rows of cells, the first row the headings. sheet: rows of cards.
    """

    title: str
    paragraphs: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    figures: Sequence[Picture] = ()
    sheet: Sequence[Sequence[Card]] = ()


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML text; all text is escaped.

    Figures are taken as they are, but what is grey in them has the colour of the text.
    """
    environment = Environment(
        loader=PackageLoader("kdcache.report", "templates"), autoescape=True, trim_blocks=True
    )

    def inline(picture: Picture) -> Markup:
        return Markup(picture.svg.replace(GREY, "currentColor"))

    return environment.get_template("page.html").render(
        title=title, sections=sections, inline=inline
    )
