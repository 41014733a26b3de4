"""Tar, view and row to array coordinates, spans and object names; pure.

Arrays are (tars, views, rows, width). A span is a run of views of one tar: one shard object of each
array, written and committed at once, so that nobody ever rewrites part of an object.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from kdcache.errors import UsageError
from kdcache.recipe.parts import Role
from kdcache.targets.target import FieldSpec

MAX_SPAN_VIEWS = 8
# The array of each role's witnesses; the teacher's only where it has a rendering of its own.
WITNESSES: dict[Role, str] = {"student": "witness", "teacher": "teacher_witness"}
EXTENT_LOCK = 2**62  # of the root document and the seal; beyond the locks of all spans


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

    @property
    def lock(self) -> int:
        """Return the number of the span's lock, the same for every number of views."""
        return (self.tar << 32) + self.run


def span_named(name: str) -> Span | None:
    """Return the span of a record's file name, TAR-RUN.json; None if it is no such name."""
    tar, _, run = name.removesuffix(".json").partition("-")
    span = Span(int(tar), int(run)) if tar.isdecimal() and run.isdecimal() else None
    return span if name == f"{span}.json" else None


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

    def with_views(self, num_views: int) -> "Grid":
        """Return the grid with another number of views."""
        return replace(self, num_views=num_views)

    def spans(self) -> Iterator[Span]:
        """Yield all spans, tar by tar."""
        for tar in range(self.num_tars):
            yield from self.spans_of(tar)

    def spans_of(self, tar: int) -> list[Span]:
        """Return the spans of a tar."""
        return [Span(tar, run) for run in range(self.num_views // self.span_views)]

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
    check_views(num_views, span_views)
    return Grid(len(rows), num_views, span_views, max(rows), block)


def check_views(num_views: int, span_views: int) -> None:
    """Check that views fill whole spans.

    Raises:
        UsageError: they do not.
    """
    if num_views < 1 or span_views < 1 or num_views % span_views:
        least = max(span_views, 1)
        near = max(num_views // least, 1) * least
        raise UsageError(
            f"{num_views} views in spans of {span_views}: the number of views must be a multiple "
            f"of the views of a span, such as {near} or {near + least}"
        )


def object_name(array: str, span: Span, *, dimensions: int) -> str:
    """Return the name of a span's object in an array of so many dimensions."""
    return f"{array}/c/{span.tar}/{span.run}" + "/0" * (dimensions - 2)


def object_names(
    span: Span, specs: tuple[FieldSpec, ...], *, witnesses: tuple[str, ...] = ("witness",)
) -> dict[str, str]:
    """Return the names of the objects that a span writes, by array."""
    fields = {
        spec.name: object_name(spec.name, span, dimensions=3 if spec.layout == "ragged" else 4)
        for spec in specs
    }
    return fields | {name: object_name(name, span, dimensions=3) for name in witnesses}
