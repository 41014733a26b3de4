"""Commit records, coverage and the seal of a complete cache.

Invariant: a span exists if, and only if, its commit record does. A record carries its own digest,
and the sha256 of every object of its span.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kdcache.cache.layout import Grid, Span, span_named
from kdcache.cache.objects import Folder, Objects
from kdcache.cache.shard import Place
from kdcache.errors import CorruptError, IncompleteError, MismatchError
from kdcache.identity import FORMAT_VERSION, canonical_json, digest, read_json
from kdcache.stores import location
from kdcache.targets.fidelity import NO_ROWS, Fidelity

SEAL = "seal.json"
COMMITS = "commits"


@dataclass(frozen=True)
class Commit:
    """What is known of a committed span.

    cache: id of the cache. unusable: rows without targets, ascending. objects: size_bytes and
    sha256 by object name. tiles: by array, where the chunk of each view stands in its object; of
    the witness there is one chunk.
    layers: digests of what each layer of the pixel function gave in the first view.
    fidelity: what the encoding lost. versions: libraries, device and settings of the writer.
    seconds: wall time by part.
    """

    cache: str
    tar: int
    run: int
    views: tuple[int, ...]
    rows: int
    unusable: tuple[int, ...]
    objects: dict[str, dict[str, int | str]]
    tiles: dict[str, tuple[Place, ...]]
    layers: dict[str, str]
    fidelity: Fidelity
    versions: dict[str, str]
    seconds: dict[str, float]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the span's objects."""
        return sum(int(entry["size_bytes"]) for entry in self.objects.values())


@dataclass(frozen=True)
class Seal:
    """The totals of a complete cache. unusable: rows without targets in some view, by tar."""

    cache: str
    views: int
    size_bytes: int
    unusable: dict[int, tuple[int, ...]]
    fidelity: Fidelity


def _write(folder: Folder, name: str, body: dict[str, Any], *, replace: bool = False) -> bool:
    body = {"format": FORMAT_VERSION, **json.loads(canonical_json(body))}
    text = json.dumps({**body, "digest": digest(body)}, indent=1, sort_keys=True)
    return folder.publish(name, text.encode(), replace=replace)


def _read(folder: Objects, name: str) -> dict[str, Any]:
    return _parse(folder.read(name), folder.place / name)


def _parse(data: bytes, where: location.Place) -> dict[str, Any]:
    try:
        body = read_json(data)
        claimed = body.pop("digest")
        if digest(body) == claimed and body.pop("format") == FORMAT_VERSION:
            return dict(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CorruptError(f"{where}: damaged record; run kdcache repair")


_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def _whole(numbers: Iterable[Any], *, below: int = 2**63) -> tuple[int, ...]:
    """Return whole numbers from 0 on.

    Raises:
        ValueError: they are something else.
    """
    found = tuple(numbers)
    if not all(type(number) is int and 0 <= number < below for number in found):
        raise ValueError("not whole numbers")
    return found


def _rows(numbers: Iterable[Any], *, below: int = 2**63) -> tuple[int, ...]:
    """Return row numbers, ascending.

    Raises:
        ValueError: they are something else.
    """
    found = _whole(numbers, below=below)
    if sorted(set(found)) != list(found):
        raise ValueError("not ascending")
    return found


def _of(kind: type | tuple[type, ...], values: dict[str, Any]) -> dict[str, Any]:
    """Return values that are all of a kind.

    Raises:
        TypeError: they are not.
    """
    if not all(isinstance(value, kind) for value in values.values()):
        raise TypeError(f"not {kind}")
    return values


def _fidelity(body: dict[str, Any]) -> Fidelity:
    rows, agree = _whole((body["rows"], body["agree"]))
    kl, error, gradient = (tuple(map(float, body[name])) for name in ("kl", "error", "gradient"))
    if not len(kl) == len(error) == len(gradient) == len(NO_ROWS.kl):
        raise ValueError("other temperatures")
    return Fidelity(rows, kl, agree, error, gradient)


def _object(entry: dict[str, Any]) -> dict[str, int | str]:
    (size_bytes,) = _whole([entry["size_bytes"]])
    return {"size_bytes": size_bytes, **_of(str, {"sha256": entry["sha256"]})}


def _commit(body: dict[str, Any]) -> Commit:
    """Return the commit record that a body says.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: it is none.
    """
    tar, run, rows = _whole((body["tar"], body["run"], body["rows"]))
    tiles = {name: tuple(Place(*_whole(p)) for p in ps) for name, ps in body["tiles"].items()}
    if not all(tiles.values()):
        raise ValueError("an array without tiles")
    return Commit(
        **_of(str, {"cache": body["cache"]}),
        tar=tar,
        run=run,
        views=_rows(body["views"]),
        rows=rows,
        unusable=_rows(body["unusable"], below=rows),
        objects={name: _object(entry) for name, entry in body["objects"].items()},
        tiles=tiles,
        layers=_of(str, body["layers"]),
        fidelity=_fidelity(body["fidelity"]),
        versions=_of(str, body["versions"]),
        seconds=_of((int, float), body["seconds"]),
    )


def write_commit(folder: Folder, commit: Commit) -> None:
    """Publish a span's commit record.

    Raises:
        MismatchError: the span was committed with other objects meanwhile.
    """
    span = Span(commit.tar, commit.run)
    if _write(folder, span.commit_name, asdict(commit)):
        return
    if read_commit(folder, span, cache=commit.cache).objects != commit.objects:
        raise MismatchError(
            f"{folder.place / span.commit_name}: another process committed this span with other "
            "targets; run kdcache repair, then precompute again with one teacher and batch size"
        )


def read_commit(folder: Objects, span: Span, *, cache: str) -> Commit:
    """Return a span's commit record. cache: the id of the cache.

    Raises:
        IncompleteError: the span is not committed.
        CorruptError: the record is damaged, or of another span or cache.
    """
    try:
        data = folder.read(span.commit_name)
    except FileNotFoundError:
        raise IncompleteError(
            f"{folder.place}: span {span} is not computed; run kdcache precompute again"
        ) from None
    return parse_commit(data, span, cache=cache, where=folder.place / span.commit_name)


def parse_commit(data: bytes, span: Span, *, cache: str, where: location.Place) -> Commit:
    """Return what the bytes of a span's commit record say; as read_commit.

    Raises:
        CorruptError: the record is damaged, or of another span or cache.
    """
    try:
        commit = _commit(_parse(data, where))
    except _UNREADABLE:
        raise CorruptError(f"{where}: is no commit record; run kdcache repair") from None
    if (commit.tar, commit.run) != span or commit.cache != cache:
        raise CorruptError(
            f"{where}: the record of span {commit.tar}-{commit.run} of cache {commit.cache[:12]}, "
            f"expected {span} of {cache[:12]}; run kdcache repair"
        )
    return commit


def committed(folder: Objects) -> set[Span]:
    """Return the spans that have a commit record."""
    spans = map(span_named, folder.names(COMMITS))
    return {span for span in spans if span is not None}


def missing(folder: Objects, grid: Grid) -> list[Span]:
    """Return the spans of the grid that are not committed, in order."""
    done = committed(folder)
    return [span for span in grid.spans() if span not in done]


def summarise(folder: Objects, grid: Grid, cache: str) -> Seal:
    """Return the totals of the committed spans of the grid."""
    size_bytes, fidelity = 0, NO_ROWS
    unusable: dict[int, set[int]] = {}
    done = committed(folder)
    folder.expect(span.commit_name for span in grid.spans() if span in done)
    for span in grid.spans():
        if span in done:
            commit = read_commit(folder, span, cache=cache)
            size_bytes += commit.size_bytes
            fidelity += commit.fidelity
            if commit.unusable:
                unusable.setdefault(span.tar, set()).update(commit.unusable)
    rows = {tar: tuple(sorted(found)) for tar, found in unusable.items()}
    return Seal(cache, grid.num_views, size_bytes, rows, fidelity)


def write_seal(folder: Folder, seal: Seal) -> None:
    """Publish the totals of a complete cache, in place of an older seal."""
    _write(folder, SEAL, asdict(seal), replace=True)


def read_seal(folder: Objects) -> Seal | None:
    """Return the totals of a sealed cache; None if it is not sealed.

    Raises:
        CorruptError: the seal is damaged.
    """
    try:
        body = _read(folder, SEAL)
    except FileNotFoundError:
        return None
    try:
        views, size_bytes = _whole((body["views"], body["size_bytes"]))
        return Seal(
            **_of(str, {"cache": body["cache"]}),
            views=views,
            size_bytes=size_bytes,
            unusable={int(tar): _rows(rows) for tar, rows in body["unusable"].items()},
            fidelity=_fidelity(body["fidelity"]),
        )
    except _UNREADABLE:
        raise CorruptError(f"{folder.place / SEAL}: is no seal; run kdcache repair") from None
