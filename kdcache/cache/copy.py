"""Committed spans copied between caches of one id.

Invariant: a copied object has the size and sha256 that its span's commit record states; the record
is copied byte for byte, last, and a span that is there already is never replaced.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kdcache.cache.audit import Finding
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed, parse_commit
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, KdcacheError, MismatchError


class StoredSpan(NamedTuple):
    """A span's objects by name, and its commit record, as bytes."""

    objects: dict[str, bytes]
    record: bytes


@dataclass(frozen=True)
class Copied:
    """What copying did.

    spans: those that were copied, of size_bytes without their records. there: those that were there
    already, differing: those of them with other objects than a source. damaged: what was refused.
    """

    spans: tuple[Span, ...]
    size_bytes: int
    there: int
    differing: tuple[Span, ...]
    damaged: tuple[Finding, ...]


def check_copies(target: Cache, sources: Iterable[Cache]) -> None:
    """Check that the spans of the sources may stand in the target.

    Raises:
        MismatchError: they are of another cache, or laid out otherwise; names each difference.
    """
    for source in sources:
        pairs = {
            "dataset": (source.info.dataset["id"], target.info.dataset["id"]),
            "recipe": (source.info.recipe.id, target.info.recipe.id),
            "teacher": (source.info.teacher["id"], target.info.teacher["id"]),
            "encoding": (str(source.info.encoding), str(target.info.encoding)),
            "number of classes": (source.info.num_classes, target.info.num_classes),
            "views of a span": (source.grid.span_views, target.grid.span_views),
            "rows of a tile": (source.grid.max_rows, target.grid.max_rows),
        }
        differing = [
            f"{name} {str(theirs)[:40]}, expected {str(ours)[:40]}"
            for name, (theirs, ours) in pairs.items()
            if theirs != ours
        ]
        if differing:
            raise MismatchError(
                f"{source.path}: no copy of {target.path}: {'; '.join(differing)}; pass caches of "
                "one dataset, recipe, teacher, encoding and --span-views"
            )


def load_span(source: Cache, span: Span) -> StoredSpan:
    """Return a committed span, its objects compared with its record.

    Raises:
        CorruptError: something of it is missing, damaged, or unlike a span of this cache.
    """

    def read(name: str) -> bytes:
        try:
            return source.folder.read(name)
        except FileNotFoundError:
            raise CorruptError(f"{source.path / name}: missing; run kdcache repair") from None
        except OSError as error:
            raise CorruptError(f"{source.path / name}: cannot be read: {error.strerror}") from error

    record, where = read(span.commit_name), source.path / span.commit_name
    commit = parse_commit(record, span, cache=source.info.id, where=where)
    source.check_extent(commit)
    objects = {name: read(name) for name in source.object_names(span).values()}
    for name, data in objects.items():
        found = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if found != commit.objects[name]:
            raise CorruptError(
                f"{source.path / name}: its sha256 differs from its commit record "
                f"({len(data)} bytes, {commit.objects[name]['size_bytes']} committed); run kdcache "
                "repair"
            )
    return StoredSpan(objects, record)


def find_sound(sources: Sequence[Cache], spans: Iterable[Span]) -> set[Span]:
    """Return those of the spans that copying would find sound in one of the sources."""
    return {span for span in spans if any(_is_sound(source, span) for source in sources)}


def _is_sound(source: Cache, span: Span) -> bool:
    try:
        load_span(source, span)
    except CorruptError:
        return False
    return True


def copy_spans(
    target: Cache,
    sources: Sequence[Cache],
    spans: Iterable[Span],
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copy those of the spans that the target lacks from the first source that has them sound.

    Spans that another process is working on are left to it, and looked at again when nothing else
    is left. progress is given the number of spans done.

    Raises:
        UsageError: the disk is full or read-only; what was copied stays.
    """
    outcomes: list[_Outcome] = []
    todo, have = list(spans), [committed(source.folder) for source in sources]
    for wait in (False, True):
        held = []
        for span in todo:
            having = [s for s, done in zip(sources, have, strict=True) if span in done]
            outcome = _copy_span(target, having, span, wait=wait) if having else None
            if outcome is not None:
                outcomes.append(outcome)
            elif having:
                held.append(span)
                continue
            progress(1)
        todo = held
    return Copied(
        spans=tuple(o.span for o in outcomes if o.what == "copied"),
        size_bytes=sum(o.size_bytes for o in outcomes),
        there=sum(o.what in ("there", "differs") for o in outcomes),
        differing=tuple(o.span for o in outcomes if o.what == "differs"),
        damaged=tuple(finding for o in outcomes for finding in o.damaged),
    )


@dataclass(frozen=True)
class _Outcome:
    span: Span
    what: Literal["copied", "there", "differs", "refused"]
    size_bytes: int
    damaged: tuple[Finding, ...]


def _copy_span(
    target: Cache, sources: Sequence[Cache], span: Span, *, wait: bool
) -> _Outcome | None:
    """Copy a span under its lock; None if another process holds it."""
    if target.folder.exists(span.commit_name):
        return _compare(target, sources, span)
    damaged = []
    with target.folder.lock(span.lock, wait=wait) as held:
        if not held:
            return None
        if target.folder.exists(span.commit_name):
            return _compare(target, sources, span)
        for source in sources:
            try:
                loaded = load_span(source, span)
            except CorruptError as error:
                damaged.append(_finding(error, span))
                continue
            try:
                target.folder.write(loaded.objects)
                published = target.folder.publish(span.commit_name, loaded.record)
            except OSError as error:
                raise target.cannot_write(f"span {span}", error) from error
            if not published:
                raise MismatchError(
                    f"{target.path}: span {span} was committed in spite of its lock; see that the "
                    "file system locks files, then run kdcache repair"
                )
            size_bytes = sum(map(len, loaded.objects.values()))
            return _Outcome(span, "copied", size_bytes, tuple(damaged))
    return _Outcome(span, "refused", 0, tuple(damaged))


def _compare(target: Cache, sources: Sequence[Cache], span: Span) -> _Outcome:
    """Compare the records of a span that the target has with those of the sources."""
    found, damaged = [], []
    for cache in (target, *sources):
        try:
            found.append(cache.commit(span).objects)
        except KdcacheError as error:
            damaged.append(_finding(error, span))
    differs = any(objects != found[0] for objects in found)
    return _Outcome(span, "differs" if differs else "there", 0, tuple(damaged))


def _finding(error: KdcacheError, span: Span) -> Finding:
    where, _, problem = str(error).removesuffix("; run kdcache repair").partition(": ")
    return Finding(where, problem, span)
