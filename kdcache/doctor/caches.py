"""Whether one cache replays here: the versions that made it, and some of its blocks made again."""

import time
from collections.abc import Iterator

from kdcache.cache.audit import Finding, Item, check_blocks
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import BlockSource
from kdcache.data.document import load_dataset
from kdcache.doctor.access import impatient
from kdcache.doctor.section import Section
from kdcache.errors import CorruptError, IncompleteError, MismatchError
from kdcache.pixels.witness import pixel_versions
from kdcache.replay.open import cache_source
from kdcache.stores.location import Place

MOST_TARS = 8
LIMIT_S = 4.0


def check_cache(place: Place, data: Place | None) -> Section:
    """Return which library versions made a cache and, of its images, that some blocks replay.

    Without data only versions are compared. With it, a block each of several tars is made again.

    Raises:
        MismatchError: a block has other pixels than the teacher saw, or data are other images.
        IncompleteError: no view is stored yet.
        CorruptError, UsageError: what is there cannot be read.
    """
    with impatient():
        return _check(open_cache(place), data)


def _check(cache: Cache, data: Place | None) -> Section:
    spans = _sampled(cache)
    unlike = _unlike(cache, spans)
    versions = ", ".join(f"{n} {there} ({here} here)" for n, (there, here) in unlike.items())
    text = f"{cache.place}: made with " + (versions or "the versions of this machine")
    value = {"place": str(cache.place), "versions": {n: v[0] for n, v in unlike.items()}}
    if data is None:
        return Section(f"{text}; --data makes some of its views again", {**value, "blocks": 0})
    source = cache_source(cache, load_dataset(data), cache.info.recipe)
    count = 0
    for finding in check_blocks(cache, source, _blocks(source, cache, spans)):
        if finding is not None:
            raise _refusal(cache, finding)
        count += 1
    return Section(f"{text}; {count} blocks made again, all equal", {**value, "blocks": count})


def _refusal(cache: Cache, finding: Finding) -> CorruptError | MismatchError:
    kind = CorruptError if finding.span is not None else MismatchError
    return kind(f"{cache.place}: {finding.where}: {finding.problem}")


def _sampled(cache: Cache) -> list[Span]:
    """Return a committed span of several tars, spread evenly."""
    first = {span.tar: span for span in sorted(committed(cache.objects), reverse=True)}
    if not first:
        raise IncompleteError(f"{cache.place}: no view is stored yet; run kdcache precompute")
    tars = sorted(first)
    step = -(-len(tars) // MOST_TARS)
    return [first[tar] for tar in tars[::step]]


def _blocks(source: BlockSource, cache: Cache, spans: list[Span]) -> Iterator[Item]:
    """Yield the first block of each span's first view, as long as there is time."""
    started = time.monotonic()
    for span in spans:
        yield span, cache.grid.views(span)[0], source.blocks(span.tar)[0]
        if time.monotonic() - started > LIMIT_S:
            return


def _unlike(cache: Cache, spans: list[Span]) -> dict[str, tuple[str, str]]:
    """Return the versions, there and here, of the pixel libraries that differ."""
    here = pixel_versions()
    made = [cache.commit(span).versions for span in spans]
    there = {name: sorted({of.get(name, "unknown") for of in made}) for name in here}
    return {
        name: (" and ".join(found), here[name])
        for name, found in there.items()
        if found != [here[name]]
    }
