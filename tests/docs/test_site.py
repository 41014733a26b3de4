"""Claims of the built documentation: whole, of this code, and sufficient to itself."""

import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from kdcache.cli.app import app
from pipelines.site import pictures
from pipelines.site.api import PUBLIC
from tests.docs.blocks import ROOT

pytestmark = pytest.mark.slow

LOADING = {"img": "src", "script": "src", "link": "href", "source": "srcset", "iframe": "src"}
LOADING |= {"object": "data", "video": "src", "form": "action", "use": "href", "base": "href"}


class Page(HTMLParser):
    """What a page names: ids, what it loads, where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.unnamed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found["id"]} if "id" in found else set()
        if tag in LOADING and LOADING[tag] in found:
            self.loads.append(found[LOADING[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img" and len(found.get("alt", "")) < 20:
            self.unnamed.append(found["src"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    found = {
        str(path.relative_to(site)): Page(path.read_text()) for path in sorted(site.rglob("*.html"))
    }
    assert len(found) > 25
    return found


def test_each_source_is_a_page(pages: dict[str, Page]) -> None:
    docs = ROOT / "docs"
    sources = {str(p.relative_to(docs).with_suffix(".html")) for p in docs.rglob("*.md")}
    assert sources == pages.keys() - {"genindex.html", "search.html"}


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert page.loads
        for address in page.loads:
            parts = urlsplit(address)
            assert not parts.scheme + parts.netloc, (name, address)
            assert (site / _target(name, parts.path)).is_file(), (name, address)
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:@import|url\()\s*[\"']?([^\"')\s]+)", sheet.read_text()):
            assert address.startswith(("data:", "#")), (sheet.name, address)


def _broken(pages: dict[str, Page], site: Path) -> Iterator[tuple[str, str]]:
    for name, page in pages.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https"):
                continue
            path = _target(name, parts.path)
            if path in pages:
                fragment = unquote(parts.fragment)
                if fragment and fragment not in pages[path].ids:
                    yield name, address
            elif not (site / path).is_file():
                yield name, address


def _target(page: str, path: str) -> str:
    """Return what a relative address of a page leads to, as seen from the site's root."""
    joined = posixpath.join(posixpath.dirname(page), unquote(path))
    return posixpath.normpath(joined) if path else page


def test_every_internal_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    assert list(_broken(pages, site)) == []
    count = sum(len(page.links) for page in pages.values())
    assert count > 1000
    pages = pages | {"bad.html": Page('<a href="faq.html#nowhere"></a><a href="no.html"></a>')}
    assert len(list(_broken(pages, site))) == 2


def test_every_picture_says_what_it_shows_and_is_as_it_was_drawn(pages: dict[str, Page]) -> None:
    assert {name: page.unnamed for name, page in pages.items() if page.unnamed} == {}
    for name, draw in pictures.PICTURES.items():
        path = pictures.FOLDER / f"{name}.svg"
        assert path.read_text() == draw(), "run python -m pipelines.site.pictures"
        assert f"pictures/{name}.svg" in (ROOT / "docs/concepts.md").read_text()


def _commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name)
        yield from _commands(command, (*path, name))


def test_the_reference_has_every_command_and_every_public_name(
    site: Path, pages: dict[str, Page]
) -> None:
    commands = [f"kdcache-{'-'.join(path)}" for path in _commands(typer.main.get_command(app))]
    assert len(commands) > 30
    assert set(commands) <= pages["reference/commands.html"].ids
    assert "--rows-per-tar" in (site / "reference/commands.html").read_text()
    assert "–" not in (site / "reference/commands.html").read_text()  # of "--option" in a sentence
    names = {e.split()[0].rpartition(":")[2].removesuffix("()") for g in PUBLIC.values() for e in g}
    found = {name.lower().replace("_", "-") for name in pages["reference/api.html"].ids}
    assert {name.lower().replace("_", "-") for name in names} <= found


def test_the_environment_variables_are_those_of_the_code() -> None:
    text = (ROOT / "docs/reference/environment.md").read_text()
    stated = set(re.findall(r"^\| `(KDCACHE_\w+)`", text, re.MULTILINE))
    source = "".join(path.read_text() for path in (ROOT / "kdcache").rglob("*.py"))
    assert stated == set(re.findall(r"\bKDCACHE_[A-Z_]+\b", source))
