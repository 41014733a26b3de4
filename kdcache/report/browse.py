"""Pages of all images of a cache: what a request to `kdcache show --serve` is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from urllib.parse import parse_qs, urlencode

import numpy as np
from markupsafe import Markup

from kdcache.errors import IncompleteError, KdcacheError, UsageError
from kdcache.identity import sample_uid
from kdcache.report.cache_page import DAMAGED, WRONG, Inspection, cache_sections, cache_title
from kdcache.report.contact import Sheet, draw_sheets, make_sheets
from kdcache.report.gallery import EXPLAINED, VIEWS, what_is_wrong
from kdcache.report.page import ENVIRONMENT, Section, render_page, template_source
from kdcache.texts import printable

MOST_DIGITS = 12  # of a number in an address
NO_LINKS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Answer:
    """A page, and the status of HTTP that it has. to: another address to go to, in its place."""

    status: int
    html: str = ""
    to: str = ""


@dataclass(frozen=True, eq=False)
class Browser:
    """The pages of a cache: / what it is, /images of a block, /image with views, /search by key."""

    seen: Inspection

    def answer(self, target: str) -> Answer:
        """Return what a request for a path and query is answered."""
        path, _, query = target.partition("?")
        try:
            if path == "/":
                return Answer(200, self._front)
            pages = {"/images": self._images, "/image": self._image, "/search": self._search}
            if path in pages and self.seen.source is not None:
                self.seen.cache.forget()  # it may be written to, or repaired, while it is shown
                asked = {name: values[-1] for name, values in parse_qs(query).items()}
                return pages[path](asked)
            return self._problem(404, "There is no such page.")
        except (UsageError, IncompleteError) as error:
            return self._problem(404, str(error))
        except (KdcacheError, OSError) as error:
            return self._problem(500, str(error))
        except Exception as error:  # a page that fails says so, and the others are still served
            return self._problem(500, f"{type(error).__name__}: {error}")

    @cached_property
    def _front(self) -> str:
        sections = cache_sections(self.seen, loud={DAMAGED: self.seen.sample.damage})
        return self._page(cache_title(self.seen.cache), sections)

    def _page(
        self,
        title: str,
        sections: Sequence[Section],
        *,
        links: Mapping[str, str] = NO_LINKS,
        at: tuple[int, int] = (0, 0),
    ) -> str:
        if self.seen.source is not None:
            grid = self.seen.cache.grid
            html = ENVIRONMENT.get_template("browse.html").render(
                tars=grid.num_tars, views=grid.num_views, links=links, tar=at[0], view=at[1]
            )
            sections = [Section("Browse", html=Markup(html)), *sections]
        script = "" if self.seen.source is None else template_source("search.js")
        return render_page(title, sections, script=script, forms="self")

    def _problem(self, status: int, text: str) -> Answer:
        return Answer(status, self._page("Nothing to show", [Section("Why", [printable(text)])]))

    def _images(self, asked: dict[str, str]) -> Answer:
        """Return the images of a block in a view."""
        grid, source = self.seen.cache.grid, self.seen.source
        assert source is not None
        tar = _number(asked, "tar", below=grid.num_tars)
        view = _number(asked, "view", below=grid.num_views)
        blocks = source.blocks(tar)
        number = _number(asked, "block", below=len(blocks))
        block = blocks[number]
        here = {"tar": tar, "view": view, "block": number}
        moves = {
            "previous block": here | {"block": number - 1},
            "next block": here | {"block": number + 1},
            "previous view": here | {"view": view - 1},
            "next view": here | {"view": view + 1},
            "previous tar": here | {"tar": tar - 1, "block": 0},
            "next tar": here | {"tar": tar + 1, "block": 0},
        }
        links = {
            name: f"/images?{urlencode(to)}"
            for name, to in moves.items()
            if 0 <= to["tar"] < grid.num_tars
            and 0 <= to["view"] < grid.num_views
            and (0 <= to["block"] < len(blocks) or to["tar"] != tar)
        }
        title = f"Tar {tar}, view {view}, rows {block.start} to {block.stop - 1}"
        rows = range(block.start, block.stop)
        sheets = make_sheets(self.seen, tar=tar, rows=rows, views=[view])
        return self._sheets(title, sheets, links, at=(tar, view), linked=True)

    def _image(self, asked: dict[str, str]) -> Answer:
        """Return an image with views of a span, from one on."""
        grid, source = self.seen.cache.grid, self.seen.source
        assert source is not None
        tar = _number(asked, "tar", below=grid.num_tars)
        row = _number(asked, "row", below=source.num_rows(tar))
        view = _number(asked, "view", below=grid.num_views)
        stop = min(view + VIEWS, grid.views(grid.span_of(tar, view)).stop)
        place = {"tar": tar, "row": row}
        links = {
            name: f"/image?{urlencode(place | {'view': to})}"
            for name, to in (("previous views", max(view - VIEWS, 0)), ("next views", stop))
            if to != view and to < grid.num_views
        }
        block = {"tar": tar, "view": view, "block": row // source.recipe.block}
        links["its block"] = f"/images?{urlencode(block)}"
        sheets = make_sheets(self.seen, tar=tar, rows=[row], views=range(view, stop))
        return self._sheets(f"Tar {tar}, row {row}", sheets, links, at=(tar, view))

    def _sheets(
        self,
        title: str,
        sheets: list[Sheet],
        links: Mapping[str, str],
        *,
        at: tuple[int, int],
        linked: bool = False,
    ) -> Answer:
        wrong = what_is_wrong(sheets)
        sections = [Section(WRONG, wrong)] if wrong else []
        sections.append(Section("Images", [EXPLAINED], html=draw_sheets(sheets, linked=linked)))
        return Answer(200, self._page(title, sections, links=links, at=at))

    def _search(self, asked: dict[str, str]) -> Answer:
        """Return the address of the image with a key, which the index finds by its digest."""
        source, key = self.seen.source, asked.get("key", "")
        assert source is not None
        found = np.flatnonzero(source.uids == np.uint64(sample_uid(key)))
        if not len(found):
            return self._problem(404, f"No image has the key {key}; a whole key is asked for.")
        tar = int(np.searchsorted(source.starts, found[0], side="right")) - 1
        row = int(found[0] - source.starts[tar])
        done = sorted(span.run for span in self.seen.sample.done if span.tar == tar)
        view = done[0] * self.seen.cache.grid.span_views if done else 0
        return Answer(303, to=f"/image?{urlencode({'tar': tar, 'row': row, 'view': view})}")


def _number(asked: dict[str, str], name: str, *, below: int) -> int:
    """Return a number that an address states, 0 where it does not.

    Raises:
        UsageError: it is none, or too large.
    """
    text = asked.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) < below):
        raise UsageError(f"{name} {text[:40]!a}: expected 0 to {below - 1}")
    return int(text)
