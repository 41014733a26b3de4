"""How far a cache is: from the names of its commit records, the seal and its writers' files.

No commit record is read but for a few from which the size is estimated, so that it is quick for
caches of 100,000 spans, on file servers, too.
"""

from collections import Counter
from dataclasses import dataclass

from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import Cache
from kdcache.cache.writers import Writer, read_writers
from kdcache.errors import KdcacheError

SAMPLE = 16


@dataclass(frozen=True)
class Status:
    """How far a cache is.

    spans, views: done of all; views times images. tars: complete, begun and all. size_bytes: of the
    spans that are done; None if there are none or their records are damaged. size_is_exact: False
    of an estimate from some records. views_left: to be computed, without those quarantined.
    quarantined: errors of spans that are set aside and not done. notes: what could not be read.
    """

    spans: tuple[int, int]
    views: tuple[int, int]
    tars: tuple[int, int, int]
    size_bytes: int | None
    size_is_exact: bool
    is_sealed: bool
    views_left: int
    quarantined: dict[Span, KdcacheError]
    writers: tuple[Writer, ...]
    notes: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Return whether all spans are done."""
        return self.spans[0] == self.spans[1]

    @property
    def is_over(self) -> bool:
        """Return whether nothing more will come unless somebody starts a job."""
        return not self.alive and self.views_left == 0

    @property
    def alive(self) -> tuple[Writer, ...]:
        """Return the writers that are alive."""
        return tuple(writer for writer in self.writers if writer.is_alive)

    @property
    def views_per_s(self) -> float:
        """Return what the living writers compute in a second."""
        return sum(writer.views_per_s for writer in self.alive)

    @property
    def left_s(self) -> float | None:
        """Return the time that is left at this rate; None if nobody computes."""
        if self.views_left == 0:
            return 0.0
        return self.views_left / self.views_per_s if self.views_per_s else None


def read_status(cache: Cache) -> Status:
    """Return how far a cache is."""
    folder, grid, rows = cache.folder, cache.grid, cache.rows.tolist()
    runs = grid.num_views // grid.span_views
    names = committed(folder)
    done = [span for span in names if span.tar < grid.num_tars and span.run < runs]
    writers, notes = read_writers(folder)
    aside = {
        span: error
        for span, error in quarantined(folder).items()
        if span.tar < grid.num_tars and span.run < runs and span not in names
    }
    try:
        seal = cache.valid_seal()
    except KdcacheError as error:
        seal, notes = None, [*notes, str(error)]
    complete = len(done) == grid.num_tars * runs
    by_tar = Counter(span.tar for span in done)
    stored = sum(rows[tar] * count for tar, count in by_tar.items()) * grid.span_views
    all_views = sum(rows) * grid.num_views
    set_aside = sum(rows[span.tar] for span in aside) * grid.span_views
    size_bytes, is_exact = (seal.size_bytes, True) if seal and complete else _size(cache, done)
    whole = sum(count == runs for count in by_tar.values())
    return Status(
        spans=(len(done), grid.num_tars * runs),
        views=(stored, all_views),
        tars=(whole, len(by_tar) - whole, grid.num_tars),
        size_bytes=size_bytes,
        size_is_exact=is_exact,
        is_sealed=seal is not None and complete,
        views_left=all_views - stored - set_aside,
        quarantined=aside,
        writers=tuple(writers),
        notes=tuple(notes),
    )


def _size(cache: Cache, done: list[Span]) -> tuple[int | None, bool]:
    """Return the bytes of spans, and whether that is exact, from the records of some of them."""
    chosen = sorted(done)[:: max(1, len(done) // SAMPLE)]
    size_bytes = rows = 0
    for span in chosen:
        try:
            commit = cache.commit(span)
        except (KdcacheError, OSError):
            continue  # withdrawn meanwhile, or for kdcache verify to find
        size_bytes += commit.size_bytes
        rows += commit.rows
    if not rows:
        return None, False
    total = sum(int(cache.rows[span.tar]) for span in done)
    return round(size_bytes * total / rows), rows == total
