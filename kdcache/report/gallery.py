"""Which images of a cache are shown: some by a seed, those of its surest views, and the others."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from kdcache.errors import CorruptError, IncompleteError
from kdcache.report.cache_page import Inspection
from kdcache.report.contact import Sheet, draw_sheets, make_sheets
from kdcache.report.page import Section, template_source
from kdcache.report.said import extremes

VIEWS = 4  # of each image drawn by the seed
EXTREMES = 4  # views, at each end
EXPLAINED = (
    "Each view as the teacher's renderer makes it and as the student's stream hands it over, the "
    "largest difference of two bytes, and whether they are what the teacher saw when the cache was "
    "made (witness). Boxes show what a view takes of an image, and of its partner."
)


def gallery(
    seen: Inspection, *, images: int, seed: int
) -> tuple[dict[str, list[Sheet]], list[str]]:
    """Return sheets by the titles of their sections, and what is damaged instead.

    images: how many are drawn by the seed, each with some views of a span.

    Raises:
        DataError: an image cannot be read.
    """
    said = seen.sample.said
    if said is None or seen.source is None:
        return {}, []
    samples = seen.source.starts[said.tars] + said.rows
    order = np.random.default_rng(seed).permutation(len(said))
    _, first = np.unique(samples[order], return_index=True)
    least, most = extremes(said.entropy, samples, EXTREMES)
    parts = {
        "Images": (order[np.sort(first)[:images]].tolist(), VIEWS),
        "Most certain views": (least, 1),
        "Least certain views": (most, 1),
    }
    found: dict[str, list[Sheet]] = {}
    damage: list[str] = []
    for title, (places, views) in parts.items():
        found[title] = [s for n in places for s in _sheets(seen, n, views=views, damage=damage)]
    return found, damage


def _sheets(seen: Inspection, place: int, *, views: int, damage: list[str]) -> list[Sheet]:
    """Return a view of the sample with its image, and others of its span where more are asked."""
    assert seen.sample.said is not None
    said = seen.sample.said
    tar, view, row = (int(of[place]) for of in (said.tars, said.views, said.rows))
    span = seen.cache.grid.views(seen.cache.grid.span_of(tar, view))
    start = max(min(view, span.stop - views), span.start)
    shown = range(start, min(start + views, span.stop))
    try:
        return make_sheets(seen, tar=tar, rows=[row], views=shown)
    except (CorruptError, IncompleteError) as error:  # incomplete: withdrawn meanwhile
        damage.append(f"tar {tar}, view {view}, row {row}: {error}")
        return []


def gallery_sections(found: Mapping[str, Sequence[Sheet]]) -> list[Section]:
    """Return the sections of sheets; with the first stand the search for keys and what all say."""
    search, notes = Markup(template_source("search.html")), [EXPLAINED]
    sections = []
    for title, sheets in found.items():
        sections.append(Section(title, notes, html=search + draw_sheets(sheets)))
        search, notes = Markup(""), []
    return sections


def what_is_wrong(sheets: Sequence[Sheet]) -> list[str]:
    """Return a line for each view that teacher and student see otherwise."""
    return [
        f"tar {sheet.tar}, row {sheet.row}, view {view.view}: "
        + (f"difference {view.difference}" if view.difference else "unlike its witness")
        + f"; {sheet.reason}"
        for sheet in sheets
        for view in sheet.wrong
    ]
