"""What a cache is: the attributes of its root group."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.errors import CorruptError, UsageError
from kdcache.identity import FORMAT_VERSION, cache_id, digest
from kdcache.recipe.schema import Recipe, parse_recipe
from kdcache.targets.encoding import Encoding, FieldSpec, parse_encoding


@dataclass(frozen=True)
class CacheInfo:
    """Ids and text of everything that made a cache.

    dataset: id, num_samples, and tars as name, num_rows, digest. teacher: id (its fingerprint) and
    the text of what made it. licences: SPDX expressions of data, weights and output, or None.
    """

    dataset: dict[str, Any]
    recipe: Recipe
    teacher: dict[str, Any]
    encoding: Encoding
    num_classes: int
    classes: tuple[str, ...] | None
    licences: dict[str, str | None]
    versions: dict[str, str]

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

    def attributes(self) -> dict[str, Any]:
        """Return the attributes as plain JSON values; digest is of all others."""
        body: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "id": self.id,
            "dataset": self.dataset,
            "recipe": self.recipe.canonical(),
            "teacher": self.teacher,
            "encoding": str(self.encoding),
            "num_classes": self.num_classes,
            "classes": self.classes,
            "licences": self.licences,
            "versions": self.versions,
        }
        return {**body, "digest": digest(body)}


def info_from_attributes(attributes: dict[str, Any], *, source: Path) -> CacheInfo:
    """Return what the root attributes of a cache say.

    Raises:
        UsageError: the format is newer than this kdcache reads, or this is no cache.
        CorruptError: the attributes do not give the digest or the id that they state.
    """
    body = attributes.get("kdcache")
    if not isinstance(body, dict):
        raise UsageError(f"{source}: a Zarr group, but no kdcache cache")
    if body.get("format") != FORMAT_VERSION:
        raise UsageError(
            f"{source}: cache format {body.get('format')}, this kdcache reads {FORMAT_VERSION}; "
            "install the kdcache that wrote it"
        )
    try:
        if digest({k: v for k, v in body.items() if k != "digest"}) != body["digest"]:
            raise CorruptError(
                f"{source}/zarr.json: attributes differ from their digest; take a sound copy of it"
            )
        info = CacheInfo(
            dataset=body["dataset"],
            recipe=parse_recipe(body["recipe"], source=f"{source}: recipe"),
            teacher=body["teacher"],
            encoding=parse_encoding(body["encoding"], body["num_classes"]),
            num_classes=body["num_classes"],
            classes=None if body["classes"] is None else tuple(body["classes"]),
            licences=body["licences"],
            versions=body["versions"],
        )
        if info.id == body["id"]:
            return info
    except (AttributeError, KeyError, TypeError, UsageError) as error:
        raise CorruptError(f"{source}/zarr.json: damaged attributes: {error}") from error
    raise CorruptError(f"{source}/zarr.json: attributes give another id than they state")
