"""Commit records, coverage and the seal of a complete cache.

Invariant: a span exists if, and only if, its commit record does. A record carries its own digest,
and the sha256 of every object of its span.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from kdcache.cache.layout import Grid, Span
from kdcache.cache.objects import Folder
from kdcache.errors import CorruptError, IncompleteError, MismatchError
from kdcache.identity import FORMAT_VERSION, canonical_json, digest
from kdcache.targets.fidelity import NO_ROWS, Fidelity

SEAL = "seal.json"


@dataclass(frozen=True)
class Commit:
    """What is known of a committed span.

    unusable: rows without targets, ascending. objects: size_bytes and sha256 by object name.
    layers: digests of what each layer of the pixel function gave in the first view.
    fidelity: what the encoding lost. versions: libraries of the writer. seconds: wall time by part.
    """

    tar: int
    run: int
    views: tuple[int, ...]
    rows: int
    unusable: tuple[int, ...]
    objects: dict[str, dict[str, int | str]]
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


def _read(folder: Folder, name: str) -> dict[str, Any]:
    where = folder.path / name
    try:
        body = json.loads(folder.read(name))
        claimed = body.pop("digest")
        if digest(body) == claimed and body.pop("format") == FORMAT_VERSION:
            return dict(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CorruptError(f"{where}: damaged record; delete it and run precompute again")


def _fidelity(body: dict[str, Any]) -> Fidelity:
    return Fidelity(
        body["rows"], body["kl"], body["agree"], tuple(body["error"]), tuple(body["gradient"])
    )


def write_commit(folder: Folder, commit: Commit) -> None:
    """Publish a span's commit record.

    Raises:
        MismatchError: the span was committed with other objects meanwhile.
    """
    span = Span(commit.tar, commit.run)
    if _write(folder, span.commit_name, asdict(commit)):
        return
    if read_commit(folder, span).objects != commit.objects:
        raise MismatchError(
            f"{folder.path / span.commit_name}: another process committed this span with other "
            "targets; delete the record and run precompute again, with one teacher and batch size"
        )


def read_commit(folder: Folder, span: Span) -> Commit:
    """Return a span's commit record.

    Raises:
        IncompleteError: the span is not committed.
        CorruptError: the record is damaged.
    """
    try:
        body = _read(folder, span.commit_name)
        commit = Commit(
            **{
                **body,
                "views": tuple(body["views"]),
                "unusable": tuple(body["unusable"]),
                "layers": body.get("layers", {}),  # the first caches have none
                "fidelity": _fidelity(body["fidelity"]),
            }
        )
    except FileNotFoundError:
        raise IncompleteError(
            f"{folder.path}: span {span} is not computed; run kdcache precompute again"
        ) from None
    except (KeyError, TypeError):
        raise CorruptError(
            f"{folder.path / span.commit_name}: fields are missing; delete it and run "
            "precompute again"
        ) from None
    if (commit.tar, commit.run) != span:
        raise CorruptError(
            f"{folder.path / span.commit_name}: the record of span {commit.tar}-{commit.run}; "
            "delete it and run precompute again"
        )
    return commit


def committed(folder: Folder) -> set[Span]:
    """Return the spans that have a commit record."""
    spans = set()
    for name in folder.names("commits"):
        tar, dash, index = name.removesuffix(".json").partition("-")
        if name.endswith(".json") and dash and tar.isdigit() and index.isdigit():
            spans.add(Span(int(tar), int(index)))
    return spans


def missing(folder: Folder, grid: Grid) -> list[Span]:
    """Return the spans of the grid that are not committed, in order."""
    done = committed(folder)
    return [span for span in grid.spans() if span not in done]


def summarise(folder: Folder, grid: Grid, cache: str) -> Seal:
    """Return the totals of the committed spans of the grid."""
    size_bytes, fidelity = 0, NO_ROWS
    unusable: dict[int, set[int]] = {}
    done = committed(folder)
    for span in grid.spans():
        if span in done:
            commit = read_commit(folder, span)
            size_bytes += commit.size_bytes
            fidelity += commit.fidelity
            if commit.unusable:
                unusable.setdefault(span.tar, set()).update(commit.unusable)
    rows = {tar: tuple(sorted(found)) for tar, found in unusable.items()}
    return Seal(cache, grid.num_views, size_bytes, rows, fidelity)


def write_seal(folder: Folder, seal: Seal) -> None:
    """Publish the totals of a complete cache, in place of an older seal."""
    _write(folder, SEAL, asdict(seal), replace=True)


def read_seal(folder: Folder) -> Seal | None:
    """Return the totals of a sealed cache; None if it is not sealed.

    Raises:
        CorruptError: the seal is damaged.
    """
    try:
        body = _read(folder, SEAL)
    except FileNotFoundError:
        return None
    rows = {int(tar): tuple(found) for tar, found in body["unusable"].items()}
    return Seal(**{**body, "unusable": rows, "fidelity": _fidelity(body["fidelity"])})
