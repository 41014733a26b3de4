"""The documents and the manifest of a cache, made of what lies in the catalogue.

Invariant: equal commit records, contributions and attributes give equal bytes, whoever makes them
and in whatever order they came. The documents are those that a local cache of the same spans has:
they are made by one, without objects, in a temporary folder.
"""

import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from kdcache.cache.info import CacheInfo, with_extent
from kdcache.cache.layout import Grid, Span
from kdcache.cache.manifest import COMMITS, Commit
from kdcache.cache.metadata import ROOT, Document, array_document, root_document, to_text
from kdcache.cache.published import (
    CONTRIBUTIONS,
    FORMAT,
    Contribution,
    DatasetSummary,
    Licences,
    Manifest,
    PublishedObject,
    RecipeSummary,
    TeacherSummary,
)
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError
from kdcache.identity import canonical_json, digest
from kdcache.recipe.schema import parse_recipe, preset_text, presets
from kdcache.sharing.catalogue import sha256
from kdcache.stores.location import Place

ROWS = "rows/c/0"
SEAL = "seal.json"


@dataclass(frozen=True)
class Basis:
    """What a cache is, whatever spans of it are there.

    attributes: of the root group. rows: the object that tells of each tar's rows. samples: the
    objects that tell of the samples, rows among them. corrects: its licences take the place of
    others.
    """

    attributes: Document
    views: int
    rows: bytes
    samples: Mapping[str, PublishedObject]
    licences: Licences
    corrects: bool = False


@dataclass(frozen=True)
class Draft:
    """What a cache of these spans is. documents: its metadata and seal, by name.

    commits: of its spans. damaged: what is wrong with other records of its grid, by span.
    """

    info: CacheInfo
    grid: Grid
    documents: dict[str, bytes]
    commits: dict[Span, Commit]
    damaged: dict[Span, str]


def described(data: bytes) -> PublishedObject:
    """Return the size and the digest of an object's bytes."""
    return PublishedObject(size_bytes=len(data), sha256=sha256(data))


def draft(basis: Basis, records: Mapping[Span, bytes], *, where: Place) -> Draft:
    """Return what the cache is whose spans have these commit records.

    Raises:
        CorruptError: the basis is that of no cache.
    """
    with tempfile.TemporaryDirectory(prefix="kdcache-") as scratch:
        path = Path(scratch)
        try:
            bare = bare_cache(path, basis)
        except CorruptError as error:
            raise CorruptError(renamed(error, path, where)) from None
        commits: dict[Span, Commit] = {}
        damaged: dict[Span, str] = {}
        (path / COMMITS).mkdir()
        for span in sorted(records.keys() & set(bare.grid.spans())):
            (path / span.commit_name).write_bytes(records[span])
            try:
                commits[span] = bare.commit(span)
            except CorruptError as error:
                damaged[span] = renamed(error, path, where)
                (path / span.commit_name).unlink()
        if not bare.missing():
            seal(bare)
        names = [ROOT, *map(array_document, bare.array_metadata())]
        names += [SEAL] if (path / SEAL).exists() else []
        documents = {name: (path / name).read_bytes() for name in names}
    return Draft(bare.info, bare.grid, documents, commits, damaged)


def bare_cache(path: Path, basis: Basis) -> Cache:
    """Return a cache without objects, in an empty folder.

    Raises:
        CorruptError: the basis is that of no cache.
    """
    attributes = basis.attributes
    grid = attributes.get("kdcache", {}).get("grid", {})
    if grid.get("views") != basis.views or "extends_to" in grid:
        attributes = with_extent(attributes, views=basis.views)
    (path / ROOT).write_bytes(to_text(root_document(attributes, None)))
    (path / ROWS).parent.mkdir(parents=True)
    (path / ROWS).write_bytes(basis.rows)
    bare = open_cache(path, checked=False)
    for array, document in bare.array_metadata().items():
        (path / array).mkdir(exist_ok=True)
        (path / array_document(array)).write_bytes(to_text(document))
    return open_cache(path)


def renamed(error: CorruptError, path: Path, where: Place) -> str:
    """Return an error of a cache in a temporary folder, as one of what it was made of."""
    return str(error).replace(str(path), str(where))


def make_manifest(
    drafted: Draft,
    basis: Basis,
    *,
    spans: Iterable[Span],
    records: Mapping[Span, bytes],
    contributions: Mapping[str, bytes],
) -> Manifest:
    """Return the manifest of those of a draft's spans whose objects are there.

    contributions: the bytes of each, by name.
    """
    info, grid = drafted.info, drafted.grid
    spans = sorted(spans)
    objects = dict(basis.samples)
    objects |= {name: described(data) for name, data in drafted.documents.items()}
    for span in spans:
        objects[span.commit_name] = described(records[span])
        for name, entry in drafted.commits[span].objects.items():
            objects[name] = PublishedObject.model_validate(entry)
    chosen = choose_contributions(contributions)
    objects |= {name: described(contributions[name]) for name in chosen}
    return Manifest(
        format=FORMAT,
        cache=info.id,
        dataset=DatasetSummary(
            id=info.dataset["id"],
            num_samples=info.dataset["num_samples"],
            num_tars=grid.num_tars,
            name=info.dataset.get("name"),
        ),
        recipe=RecipeSummary(
            id=info.recipe.id, name=preset_of(info.recipe.id), text=info.recipe.canonical()
        ),
        teacher=TeacherSummary(id=info.teacher["id"], spec=info.teacher["spec"]),
        encoding=str(info.encoding),
        num_classes=info.num_classes,
        views=grid.num_views,
        span_views=grid.span_views,
        spans=len(spans),
        licences=basis.licences,
        contributions=tuple(chosen.values()),
        objects=dict(sorted(objects.items())),
    )


def preset_of(recipe: str) -> str | None:
    """Return the name of the preset that has this id; None without."""
    return _presets().get(recipe)


@cache
def _presets() -> dict[str, str]:
    values = {name: tomllib.loads(preset_text(name)) for name in presets()}
    return {parse_recipe(fields, source=name).id: name for name, fields in values.items()}


def contribution_name(data: bytes) -> str:
    """Return the name of a contribution, which is of its bytes."""
    return f"{CONTRIBUTIONS}/{sha256(data)[:16]}.json"


def parse_contribution(name: str, data: bytes) -> Contribution | None:
    """Return what a contribution says; None if it is damaged, or of another name."""
    if name != contribution_name(data):
        return None
    try:
        return Contribution.model_validate_json(data)
    except (ValidationError, ValueError):
        return None


def choose_contributions(contributions: Mapping[str, bytes]) -> dict[str, Contribution]:
    """Return the contributions by name: the first of those that brought the same records."""
    found = [(parse_contribution(name, data), name) for name, data in contributions.items()]
    ordered = sorted(
        ((c.when, name, c) for c, name in found if c is not None), key=lambda item: item[:2]
    )
    chosen: dict[str, Contribution] = {}
    seen: set[str] = set()
    for _, name, contribution in ordered:
        if contribution.records is None or contribution.records not in seen:
            chosen[name] = contribution
            seen.add(contribution.records or name)
    return chosen


def contribute(
    commits: Sequence[Commit], records: Sequence[bytes], *, who: str, when: str, commit: str | None
) -> bytes:
    """Return a contribution of spans, as it is stored.

    Its device-hours are the wall time that the spans' processes took from a span's first image to
    its last object, by the commit records, in which spans that one process computes at the same
    time count twice.
    """
    seconds = [float(c.seconds["wall"]) for c in commits if "wall" in c.seconds]
    hours = round(sum(seconds) / 3600, 6) if len(seconds) == len(commits) else None
    names = sorted({name for c in commits for name in c.versions})
    versions = {
        name: ", ".join(sorted({c.versions[name] for c in commits if name in c.versions}))[:1000]
        for name in names
    }
    found = Contribution(
        who=who,
        when=when,
        spans=len(commits),
        device_hours=hours,
        kdcache=versions.pop("kdcache", "unknown"),
        commit=commit,
        versions=versions,
        records=digest(sorted(sha256(record) for record in records)),
    )
    return canonical_json(found.model_dump(mode="json"))
