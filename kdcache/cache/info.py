"""What a cache is: the attributes of its root group."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from kdcache import __version__
from kdcache.cache.layout import WITNESSES, Grid
from kdcache.cache.limits import check_limits
from kdcache.cache.published import check_items, first_problem
from kdcache.errors import CorruptError, UsageError
from kdcache.identity import FORMAT_NEEDS, FORMAT_VERSION, cache_id, canonical_json, digest
from kdcache.recipe.schema import Recipe, parse_recipe
from kdcache.stores.location import Place
from kdcache.targets.encoding import Encoding, parse_encoding
from kdcache.targets.target import FieldSpec

REPAIR = "kdcache repair --from a sound copy"
MOST_ITEMS = 10_000  # of the recipe, and of other tables of texts
_KNOWN = (
    *("format", "needs", "id", "grid", "dataset", "recipe", "teacher", "encoding"),
    *("num_classes", "classes", "licences", "versions", "digest"),
)


@dataclass(frozen=True)
class CacheInfo:
    """Ids and text of everything that made a cache.

    dataset: id, num_samples, and tars as name, num_rows, digest. teacher: id (its fingerprint) and
    the text of what made it. licences: SPDX expressions of data, weights and output, or None.
    unknown: attributes that this kdcache does not know, which it keeps.
    """

    dataset: dict[str, Any]
    recipe: Recipe
    teacher: dict[str, Any]
    encoding: Encoding
    num_classes: int
    classes: tuple[str, ...] | None
    licences: dict[str, str | None]
    versions: dict[str, str]
    unknown: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Return the cache id, 64 hexadecimal digits."""
        return cache_id(
            dataset_id=self.dataset["id"],
            recipe_id=self.recipe.id,
            teacher_id=self.teacher["id"],
            encoding=str(self.encoding),
        )

    @cached_property
    def specs(self) -> tuple[FieldSpec, ...]:
        """Return the stored arrays of the encoding."""
        return self.encoding.specs(self.num_classes)

    @cached_property
    def witnesses(self) -> tuple[str, ...]:
        """Return the arrays of witnesses, one for each rendering of a view."""
        return tuple(WITNESSES[role] for role in self.recipe.roles)

    def attributes(self, grid: Grid, *, extends_to: int | None = None) -> dict[str, Any]:
        """Return the attributes as plain JSON values; digest is of all others.

        extends_to: the number of views that the arrays are about to have.
        """
        extent = {
            "views": grid.num_views,
            "span_views": grid.span_views,
            "max_rows": grid.max_rows,
        }
        body: dict[str, Any] = {
            **self.unknown,
            "format": FORMAT_VERSION,
            "needs": FORMAT_NEEDS,
            "id": self.id,
            "grid": extent if extends_to is None else {**extent, "extends_to": extends_to},
            "dataset": self.dataset,
            "recipe": self.recipe.canonical(),
            "teacher": self.teacher,
            "encoding": str(self.encoding),
            "num_classes": self.num_classes,
            "classes": self.classes,
            "licences": self.licences,
            "versions": self.versions,
        }
        plain: dict[str, Any] = json.loads(canonical_json(body))
        return {**plain, "digest": digest(plain)}


@dataclass(frozen=True)
class Described:
    """What the root attributes say. extends_to: views that the arrays may have already, if more."""

    info: CacheInfo
    grid: Grid
    extends_to: int | None


def read_attributes(attributes: dict[str, Any], *, source: Place) -> Described:
    """Return what the root attributes of a cache say.

    Raises:
        UsageError: the format is newer than this kdcache reads, or this is no cache.
        CorruptError: the attributes do not give the digest or the id that they state.
    """
    body = attributes.get("kdcache")
    if not isinstance(body, dict):
        raise UsageError(
            f"{source}: a Zarr group, but no kdcache cache; choose another path or, if it was one, "
            f"run {REPAIR}"
        )
    if body.get("format") != FORMAT_VERSION:
        needs = body.get("needs", "another version")
        raise UsageError(
            f"{source}: cache format {body.get('format')}, this kdcache {__version__} reads "
            f"{FORMAT_VERSION}; install kdcache {needs} or newer"
        )
    try:
        if digest({k: v for k, v in body.items() if k != "digest"}) != body["digest"]:
            raise CorruptError(
                f"{source}/zarr.json: attributes differ from their digest; run {REPAIR}"
            )
        _check_items(body)
        found = _describe(body, source=source)
        if found.info.id == body["id"]:
            return found
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, UsageError) as error:
        raise CorruptError(
            f"{source}/zarr.json: damaged attributes: {error}; run {REPAIR}"
        ) from error
    raise CorruptError(
        f"{source}/zarr.json: attributes give another id than they state; run {REPAIR}"
    )


class _Part(BaseModel):
    """A table of the attributes; fields that it does not name are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Tar(_Part):
    name: str
    num_rows: Annotated[int, Field(ge=0, lt=2**32)]
    digest: str


class _Dataset(_Part):
    id: str
    num_samples: Annotated[int, Field(ge=0)]
    tars: Annotated[list[_Tar], FailFast(), Field(min_length=1)]


_Nats = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1)]


class _Steadiness(_Part):
    repeat_nats: _Nats
    batch_nats: _Nats


class _Teacher(_Part):
    """What made the targets; older caches say less of it. shares: of its members, one each."""

    id: str
    spec: str
    precision: str = "unknown"
    steadiness: _Steadiness | None = None
    members: list[dict[str, Any]] = []
    average: str = ""
    shares: list[_Share] = []

    @model_validator(mode="after")
    def _is_one_or_a_mean(self) -> "_Teacher":
        is_mean = {bool(self.members), bool(self.shares), bool(self.average)}
        if len(is_mean) > 1 or len(self.members) != len(self.shares):
            raise ValueError("members, shares and average do not fit together")
        return self


class _Grid(_Part):
    views: Annotated[int, Field(ge=1, lt=2**31)]
    span_views: Annotated[int, Field(ge=1, lt=2**31)]
    max_rows: Annotated[int, Field(ge=0, lt=2**32)]
    extends_to: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class _Attributes(_Part):
    """What the attributes must be of, before anything is made of them."""

    dataset: _Dataset
    teacher: _Teacher
    grid: _Grid
    recipe: dict[str, Any]
    encoding: str
    num_classes: Annotated[int, Field(ge=2, le=2**31)]
    classes: list[str] | None
    licences: dict[str, str | None]
    versions: dict[str, str]


def _describe(body: dict[str, Any], *, source: Place) -> Described:
    try:
        known = _Attributes.model_validate(body)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    rows = [tar.num_rows for tar in known.dataset.tars]
    if known.dataset.num_samples != sum(rows) or known.grid.max_rows < max(rows):
        raise ValueError("dataset: its tars have other numbers of rows than it and the grid")
    info = CacheInfo(
        dataset=body["dataset"],
        recipe=parse_recipe(body["recipe"], source=f"{source}: recipe"),
        teacher=body["teacher"],
        encoding=parse_encoding(body["encoding"], body["num_classes"]),
        num_classes=body["num_classes"],
        classes=None if body["classes"] is None else tuple(body["classes"]),
        licences=body["licences"],
        versions=body["versions"],
        unknown={name: value for name, value in body.items() if name not in _KNOWN},
    )
    extent = body["grid"]
    grid = Grid(
        num_tars=len(info.dataset["tars"]),
        num_views=extent["views"],
        span_views=extent["span_views"],
        max_rows=extent["max_rows"],
        block=info.recipe.block,
    )
    extends_to = extent.get("extends_to")
    check_limits(grid if extends_to is None else grid.with_views(extends_to), info.specs)
    check_limits(grid, info.specs)
    return Described(info, grid, extends_to)


def _check_items(body: dict[str, Any]) -> None:
    """Check that telling what is wrong with tables of texts would not take long.

    Raises:
        LookupError, TypeError, ValueError: it would, or there are none.
    """
    for part in ("recipe", "versions", "licences"):
        check_items(body[part], most=MOST_ITEMS)
    if not all(isinstance(name, str) for name in body["classes"] or ()):
        raise ValueError("classes: a name is no text")


def with_extent(
    attributes: dict[str, Any], *, views: int, extends_to: int | None = None
) -> dict[str, Any]:
    """Return root attributes with another number of views, all else as it was.

    extends_to: the number of views that the arrays are about to have.
    """
    body = {name: value for name, value in attributes["kdcache"].items() if name != "digest"}
    extent = {name: value for name, value in body["grid"].items() if name != "extends_to"}
    extent["views"] = views
    if extends_to is not None:
        extent["extends_to"] = extends_to
    body["grid"] = extent
    return {**attributes, "kdcache": {**body, "digest": digest(body)}}
