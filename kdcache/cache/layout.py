"""Tar, view and row to array coordinates, spans and object names; pure.

Arrays are (tars, views, rows, width). A span is a run of views of one tar: one shard object of each
array, written and committed at once, so that nobody ever rewrites part of an object.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kdcache.errors import UsageError
from kdcache.targets.encoding import FieldSpec

MAX_SPAN_VIEWS = 8


class Span(NamedTuple):
    """The run-th run of views of a tar; named TAR-RUN."""

    tar: int
    run: int

    def __str__(self) -> str:
        return f"{self.tar}-{self.run}"

    @property
    def commit_name(self) -> str:
        """Return the name of the span's commit record."""
        return f"commits/{self}.json"


@dataclass(frozen=True)
class Grid:
    """The extent of a cache. max_rows: rows of the largest tar. span_views: views of a span."""

    num_tars: int
    num_views: int
    span_views: int
    max_rows: int
    block: int

    @property
    def blocks(self) -> int:
        """Return the number of blocks of the largest tar."""
        return -(-self.max_rows // self.block)

    def spans(self) -> Iterator[Span]:
        """Yield all spans, tar by tar."""
        for tar in range(self.num_tars):
            for run in range(self.num_views // self.span_views):
                yield Span(tar, run)

    def views(self, span: Span) -> range:
        """Return the views of a span."""
        return range(span.run * self.span_views, (span.run + 1) * self.span_views)

    def span_of(self, tar: int, view: int) -> Span:
        """Return the span that holds a tile."""
        return Span(tar, view // self.span_views)


def default_span_views(num_views: int) -> int:
    """Return the largest divisor of num_views up to 8."""
    return next(g for g in range(MAX_SPAN_VIEWS, 0, -1) if num_views % g == 0)


def make_grid(rows: list[int], *, num_views: int, span_views: int | None, block: int) -> Grid:
    """Return the grid of tars with these numbers of rows.

    Raises:
        UsageError: the views do not fill whole spans.
    """
    span_views = default_span_views(num_views) if span_views is None else span_views
    if num_views < 1 or span_views < 1 or num_views % span_views:
        raise UsageError(
            f"{num_views} views in spans of {span_views}: the number of views must be a multiple "
            "of the views of a span"
        )
    return Grid(len(rows), num_views, span_views, max(rows), block)


def object_names(span: Span, specs: tuple[FieldSpec, ...]) -> tuple[str, ...]:
    """Return the names of the objects that a span writes."""
    fields = tuple(f"{spec.name}/c/{span.tar}/{span.run}/0/0" for spec in specs)
    return (*fields, f"witness/c/{span.tar}/{span.run}/0")
