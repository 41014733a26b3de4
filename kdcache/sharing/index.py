"""catalog.json and refs: what they say, and their text; pure.

Invariant: neither is trusted. They say where to look, and manifests say what is there.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcache.cache.published import (
    Count,
    Digest,
    Manifest,
    PublishedFacts,
    Text,
    manifest_digest,
)
from kdcache.errors import CorruptError
from kdcache.identity import read_json
from kdcache.stores.location import Place

INDEX = "catalog.json"
FORMAT: Literal[1] = 1
MAX_HISTORY = 1000


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Change(_Record):
    """What a ref was set to, when, and by whom."""

    cache: Digest
    when: Text
    who: Text


class Ref(_Record):
    """The cache that a name refers to, and all that it referred to; the last is the cache."""

    cache: Digest
    history: Annotated[tuple[Change, ...], Field(max_length=MAX_HISTORY)]


class Summary(PublishedFacts):
    """What a manifest says, but for its objects. manifest: its sha256."""

    size_bytes: Count
    manifest: Digest

    @classmethod
    def of(cls, manifest: Manifest, data: bytes) -> Self:
        """Return the summary of a manifest. data: its bytes."""
        facts = {name: getattr(manifest, name) for name in PublishedFacts.model_fields}
        return cls(**facts, size_bytes=manifest.size_bytes, manifest=manifest_digest(data))


class Index(_Record):
    """All caches of a catalogue by id, and its refs by name."""

    format: Literal[1]
    caches: dict[Digest, Summary]
    refs: dict[Text, Ref]


M = TypeVar("M", bound=BaseModel)


def parse_ref(data: bytes, *, where: Place) -> Ref:
    """Return what a ref says.

    Raises:
        CorruptError: it is damaged.
    """
    return _parse(Ref, data, where=where, advice="set it again with kdcache ref")


def parse_index(data: bytes, *, where: Place) -> Index:
    """Return what catalog.json says.

    Raises:
        CorruptError: it is damaged.
    """
    advice = "run kdcache rebuild on the catalogue"
    found = _parse(Index, data, where=where, advice=advice)
    if any(cache != summary.cache for cache, summary in found.caches.items()):
        raise CorruptError(f"{where}: names a cache by the id of another; {advice}")
    return found


def _parse(kind: type[M], data: bytes, *, where: Place, advice: str) -> M:
    try:
        read_json(data)
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg']}"
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error)[:200]
    raise CorruptError(f"{where}: damaged: {reason}; {advice}")


def to_text(record: BaseModel) -> bytes:
    """Return a ref or an index as JSON with sorted keys, which people read too."""
    body: Any = record.model_dump(mode="json")
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode()


def shown_refs(refs: Mapping[str, Ref], cache: str) -> list[str]:
    """Return the names that refer to a cache."""
    return sorted(name for name, ref in refs.items() if ref.cache == cache)
