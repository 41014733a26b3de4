"""Published caches as the tests of their descriptions need them."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from kdcache.cache.published import (
    MANIFEST,
    Contribution,
    DatasetSummary,
    Licences,
    Manifest,
    PublishedObject,
    RecipeSummary,
    TeacherSummary,
)
from kdcache.cache.store import Cache
from kdcache.sharing.croissant import croissant

LICENCES = Licences(data="CC-BY-4.0", weights="Apache-2.0", output="CC-BY-4.0 OR LicenseRef-ours")


def contribution(**changes: Any) -> Contribution:
    """Return what one team computed."""
    fields: dict[str, Any] = {
        "who": "Team A",
        "when": "2026-01-02T03:04:05Z",
        "spans": 6,
        "device_hours": 0.5,
        "kdcache": "0.1.0",
        "commit": "c" * 40,
        "versions": {"torch": "2.11.0"},
        "records": None,
    }
    return Contribution(**{**fields, **changes})


def manifest_of(cache: Cache, **changes: Any) -> Manifest:
    """Return the manifest of a local cache."""
    info = cache.info
    objects = {
        name: PublishedObject(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in objects_of(cache.path).items()
    }
    fields: dict[str, Any] = {
        "format": 1,
        "cache": info.id,
        "dataset": DatasetSummary(
            id=info.dataset["id"],
            num_samples=info.dataset["num_samples"],
            num_tars=len(info.dataset["tars"]),
            name="photos",
        ),
        "recipe": RecipeSummary(id=info.recipe.id, name="funmatch", text=info.recipe.canonical()),
        "teacher": TeacherSummary(id=info.teacher["id"], spec=info.teacher["spec"]),
        "encoding": str(info.encoding),
        "num_classes": info.num_classes,
        "views": cache.grid.num_views,
        "span_views": cache.grid.span_views,
        "spans": len(list(cache.grid.spans())) - len(cache.missing()),
        "licences": LICENCES,
        "contributions": (contribution(),),
        "objects": objects,
    }
    return Manifest(**{**fields, **changes})


def objects_of(path: Path) -> dict[str, bytes]:
    """Return the objects of a local cache, by name."""
    files = (p for p in sorted(path.rglob("*")) if p.is_file() and p.name != ".lock")
    names = {p.relative_to(path).as_posix(): p for p in files}
    return {n: p.read_bytes() for n, p in names.items() if not n.startswith("writers/")}


def attributes_of(cache: Cache) -> dict[str, Any]:
    """Return the table that describes a cache."""
    table: dict[str, Any] = cache.attributes()["kdcache"]
    return table


def publish_by_hand(cache: Cache, catalogue: Path, **changes: Any) -> Path:
    """Return the folder of a cache in a catalogue on this disk."""
    manifest = manifest_of(cache, **changes)
    folder = catalogue / "caches" / manifest.cache
    shutil.copytree(cache.path, folder, ignore=shutil.ignore_patterns(".lock", "writers"))
    (folder / "croissant.json").write_bytes(croissant(manifest, attributes_of(cache)))
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return folder
