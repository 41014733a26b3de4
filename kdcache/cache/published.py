"""The manifest of a published cache: what it is, and the size and sha256 of each of its objects.

Invariant: a manifest names only objects that a cache has, below its own folder; nothing in it is
executed or imported, and a damaged or hostile one is refused before anything is made of it.
"""

import hashlib
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kdcache.cache.inventory import arrays_of, check_inventory, check_names
from kdcache.errors import CorruptError, UsageError
from kdcache.identity import cache_id, canonical_json, digest, read_strict_json
from kdcache.stores.location import Place
from kdcache.texts import printable

FORMAT: Literal[1] = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig.json"
CONTRIBUTIONS = "contributions"
MAX_BYTES = 1 << 28
MAX_TOTAL_BYTES = 1 << 50
MAX_DEPTH = 16
MAX_ITEMS = 100_000  # of everything but objects
_FREE_ITEMS = 1_000_000  # of JSON; a larger manifest has an object in every 100 bytes, of 3 items
_BYTES_PER_ITEM = 24
_WHOLE = re.compile(r".*\.json|(rows|uids|contents)/c/.*")  # what is read as one


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain values, seen to be nested in few levels, and of printable texts."""
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH + 1):
        texts = [value for value in level if isinstance(value, str)]
        texts += [key for value in level if isinstance(value, dict) for key in value]
        if not all(text.isprintable() for text in texts):
            raise ValueError("a text that cannot be printed")
        lists = (
            value.values() if isinstance(value, dict) else value
            for value in level
            if isinstance(value, dict | list)
        )
        level = [value for values in lists for value in values]
    if level:
        raise ValueError(f"nested in more than {MAX_DEPTH} levels")
    return values


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, AfterValidator(printable), Field(max_length=10_000)]
Hours = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Plain = Annotated[dict[str, Any], AfterValidator(_plain)]
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
    text: Plain


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
    device_hours: Hours | None
    kdcache: Text
    commit: Text | None
    versions: dict[Text, Text]
    records: Digest | None


class PublishedFacts(_Record):
    """What a published cache is. views: that its arrays have room for; spans: that are there."""

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

    @property
    def all_spans(self) -> int:
        """Return the number of spans that the cache has when it is complete."""
        return self.dataset.num_tars * (self.views // max(self.span_views, 1))

    @property
    def is_complete(self) -> bool:
        """Return whether all spans are there."""
        return self.spans == self.all_spans


class Manifest(PublishedFacts):
    """What a published cache is, and all of its objects by name."""

    format: Literal[1]
    objects: dict[str, PublishedObject]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all objects."""
        return sum(entry.size_bytes for entry in self.objects.values())

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON, which its digest and signature are of."""
        return canonical_json(self.model_dump(mode="json"))


def manifest_digest(data: bytes) -> str:
    """Return the sha256 of a manifest's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, *, where: Place) -> Manifest:
    """Return what a manifest says.

    Raises:
        CorruptError: it is damaged, or names what no cache has, or not written as kdcache does: a
            manifest has one form, since its digest and signatures are of its bytes.
        UsageError: a newer kdcache wrote it.
    """
    try:
        body = _read(data)
        _check_format(body.get("format"), where)
        _check_objects(body.pop("objects", None))
        check_items(body, most=MAX_ITEMS)
        manifest = Manifest.model_validate_json(data)
        # Fields that it leaves out are younger than it.
        if canonical_json(manifest.model_dump(mode="json", exclude_unset=True)) != data:
            raise ValueError("not as kdcache writes it, byte for byte")
        _check_consistency(manifest, where)
        return manifest
    except ValidationError as error:
        reason = first_problem(error)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(str(error)[:200])
    raise CorruptError(
        f"{where}: no manifest of a cache: {reason}; ask who published it to publish it again"
    )


def _read(data: bytes) -> dict[str, Any]:
    """Return a manifest's JSON, which takes no more memory than that of a sound one.

    Raises:
        ValueError: it is none.
    """
    items = sum(map(data.count, (b"[", b"{", b",")))
    if items > _FREE_ITEMS + len(data) // _BYTES_PER_ITEM:
        raise ValueError(f"{items} values in {len(data)} bytes")
    body = read_strict_json(data, most_bytes=MAX_BYTES)
    if not isinstance(body, dict):
        raise ValueError("not a table")
    return body


def _check_objects(objects: Any) -> None:
    """Check that objects are named and told as those of a cache, up to the first that is not.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(objects, dict):
        raise ValueError("names no objects")
    check_names(objects)
    fields = set(PublishedObject.model_fields)
    for name, entry in objects.items():
        if not isinstance(entry, dict) or entry.keys() != fields:
            raise ValueError(f"object {name} has no size and sha256, or more")
        if type(entry["size_bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise ValueError(f"object {name} has a size or sha256 of another kind")


def check_items(body: Any, *, most: int) -> None:
    """Check that there are not so many values that telling what is wrong with them takes long.

    Raises:
        ValueError: there are.
    """
    found = 0
    level: list[Any] = [[body]]
    while level and found <= most:
        found += sum(map(len, level))
        inner = (v for x in level for v in (x.values() if isinstance(x, dict) else x))
        level = [value for value in inner if isinstance(value, dict | list)]
    if found > most:
        raise ValueError(f"more than {most} values")


def _check_format(found: object, where: Place) -> None:
    if type(found) is int and FORMAT < found < 2**31:
        raise UsageError(
            f"{where}: manifest format {found}, this kdcache reads up to {FORMAT}; install a newer "
            "kdcache"
        )


def _check_consistency(manifest: Manifest, where: Place) -> None:
    """Check that what a manifest says of its cache fits together.

    Raises:
        ValueError: it does not.
        UsageError: its encoding is unknown.
    """
    recipe, dataset = manifest.recipe, manifest.dataset
    found = cache_id(
        dataset_id=dataset.id,
        recipe_id=digest(recipe.text),
        teacher_id=manifest.teacher.id,
        encoding=manifest.encoding,
    )
    if recipe.id != digest(recipe.text) or manifest.cache != found:
        raise ValueError("its dataset, recipe, teacher and encoding give other ids than it states")
    if (arrays := arrays_of(manifest.encoding)) is None:
        raise UsageError(
            f"{where}: encoding {manifest.encoding[:80]} is unknown to this kdcache; install a "
            "newer one"
        )
    if not 1 <= manifest.span_views <= manifest.views or manifest.views % manifest.span_views:
        raise ValueError(f"{manifest.views} views in spans of {manifest.span_views}")
    spans, contributions = check_inventory(
        manifest.objects,
        arrays=arrays,
        num_tars=dataset.num_tars,
        num_runs=manifest.views // manifest.span_views,
    )
    if spans != manifest.spans:
        raise ValueError(f"{manifest.spans} spans, but the records of {spans}")
    if contributions > len(manifest.contributions):
        raise ValueError(f"{contributions} contributions, of which it does not tell")
    if manifest.size_bytes > MAX_TOTAL_BYTES:
        raise ValueError(f"{manifest.size_bytes} bytes in all")
    for name, entry in manifest.objects.items():
        if _WHOLE.fullmatch(name) and entry.size_bytes > MAX_BYTES:
            raise ValueError(f"object {name!a} of {entry.size_bytes} bytes")


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong; of very many, none is written down."""
    if error.error_count() > 1000:
        return f"{error.error_count()} fields are wrong"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "its JSON"
    return printable(f"{where}: {first['msg']}"[:300])
