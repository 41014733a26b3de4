"""The manifest of a published cache: what it is, and the size and sha256 of each of its objects.

Invariant: a manifest names only objects that a cache has, below its own folder; nothing in it is
executed or imported, and a damaged or hostile one is refused before anything is made of it.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcache.errors import CorruptError, UsageError
from kdcache.identity import canonical_json, read_json
from kdcache.stores.location import Place

FORMAT: Literal[1] = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig.json"
CONTRIBUTIONS = "contributions"
MAX_BYTES = 1 << 28
_NAME = re.compile(
    r"zarr\.json|seal\.json|commits/\d{1,10}-\d{1,10}\.json|contributions/[0-9a-f]{16}\.json"
    r"|[a-z][a-z0-9_]{0,31}/(zarr\.json|c(/\d{1,10}){1,4})"
)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=10_000)]
Count = Annotated[int, Field(ge=0, lt=2**48)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class PublishedObject(_Record):
    """An object's size, and its digest."""

    size_bytes: Count
    sha256: Digest


class DatasetSummary(_Record):
    """The images: id, samples, tars, and a name for people."""

    id: Digest
    num_samples: Count
    num_tars: Count
    name: Text | None


class RecipeSummary(_Record):
    """The views: id and canonical text of the recipe, and a name for people."""

    id: Digest
    name: Text | None
    text: dict[str, Any]


class TeacherSummary(_Record):
    """The teacher: its fingerprint, and the spec that made it, which is never imported."""

    id: Text
    spec: Text


class Licences(_Record):
    """SPDX expressions; None where its publisher said that it is unknown."""

    data: Text | None
    weights: Text | None
    output: Text | None


class Contribution(_Record):
    """What one team computed: who published how many spans, when, made by what, at which cost.

    when: UTC, ISO 8601. device_hours: of the processes that computed; None where it is not known.
    commit: of the code that computed, where it is known. records: digest of the commit records, by
    which one that is published twice is told from two.
    """

    who: Text
    when: Text
    spans: Count
    device_hours: float | None
    kdcache: Text
    commit: Text | None
    versions: dict[Text, Text]
    records: Digest | None = None


class Manifest(_Record):
    """What a published cache is. views: that its arrays have room for; spans: that are there."""

    format: Literal[1]
    cache: Digest
    dataset: DatasetSummary
    recipe: RecipeSummary
    teacher: TeacherSummary
    encoding: Text
    num_classes: Count
    views: Count
    span_views: Count
    spans: Count
    licences: Licences
    contributions: tuple[Contribution, ...]
    objects: dict[str, PublishedObject]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all objects."""
        return sum(entry.size_bytes for entry in self.objects.values())

    @property
    def is_complete(self) -> bool:
        """Return whether all spans are there."""
        return self.span_views > 0 and self.spans == (
            self.dataset.num_tars * (self.views // self.span_views)
        )

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON, which its digest and signature are of."""
        return canonical_json(self.model_dump(mode="json"))


def manifest_digest(data: bytes) -> str:
    """Return the sha256 of a manifest's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, *, where: Place) -> Manifest:
    """Return what a manifest says.

    Raises:
        CorruptError: it is damaged, or names what no cache has.
        UsageError: a newer kdcache wrote it.
    """
    if len(data) > MAX_BYTES:
        raise CorruptError(f"{where}: a manifest of {len(data)} bytes, at most {MAX_BYTES}")
    try:
        body = read_json(data)
        found = body["format"] if isinstance(body, dict) else None
        if type(found) is int and found > FORMAT:
            raise UsageError(
                f"{where}: manifest format {found}, this kdcache reads up to {FORMAT}; install a "
                "newer kdcache"
            )
        _check_names(body.get("objects", {}) if isinstance(body, dict) else {})
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)[:200]
    raise CorruptError(
        f"{where}: no manifest of a cache: {reason}; ask who published it to publish it again"
    )


def _check_names(objects: Mapping[str, Any]) -> None:
    """Check that objects are named as a cache names them.

    Raises:
        ValueError: a name is anything else.
    """
    for name in objects:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"object {name[:80]!r} is none of a cache")
