"""Croissant metadata of a published cache: https://docs.mlcommons.org/croissant, version 1.1.

Invariant: equal caches give equal bytes, and what is stated can be read with any Croissant reader
from the published folder: the tars and the commit records out of their JSON. Croissant has no word
for chunks of a Zarr array, so that targets are described, as the arrays that hold them, and no
field pretends to read them.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

from kdcache.cache.info import Described, read_attributes
from kdcache.cache.metadata import ROOT, array_documents
from kdcache.cache.published import FORMAT, MANIFEST, Manifest, manifest_digest
from kdcache.errors import MismatchError
from kdcache.sharing.licences import UNKNOWN, listed_address

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
_ZARR = "https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html"
_JSON = "application/json"
_MEANINGS = {
    "indices": "classes kept, by falling value",
    "values": "distances below the largest log-probability, companded to 32 nats",
    "tails": "mass outside the entries kept, at temperatures 1, 2 and 4, as logarithms or log-odds",
    "gaps": "classes kept, by rising class, as differences",
    "codes": "distances below the largest, companded",
    "counts": "how many entries each row keeps",
    "logits": "logits less the row's largest",
    "ranges": "the range of each row's codes",
    "witness": "xxh3-64 of the pixels that the student sees, by block",
    "teacher_witness": "xxh3-64 of the pixels that the teacher saw, by block",
    "uids": "names of the samples: xxh3-64 of their keys",
    "contents": "xxh3-64 of the image files",
    "rows": "samples of each tar",
}

Table = dict[str, Any]


def croissant(manifest: Manifest, attributes: dict[str, Any]) -> bytes:
    """Return the Croissant metadata of a published cache as JSON-LD in ASCII.

    attributes: the table kdcache of its root group's attributes.

    Raises:
        CorruptError: the attributes are damaged.
        MismatchError: they are another cache's.
    """
    described = described_by(attributes, manifest)
    body = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": title(manifest),
        "description": _description(manifest),
        "identifier": manifest.cache,
        "url": "README.md",
        "version": f"{FORMAT}.{manifest.views}.{manifest.spans}",
        "license": _licence(manifest.licences.output),
        "keywords": ["knowledge distillation", "teacher logits", "image classification"],
        "citeAs": _citation(manifest),
        **_people(manifest),
        "isBasedOn": _bases(manifest),
        **_responsible(manifest),
        "distribution": _distribution(manifest),
        "recordSet": [_tars(), _spans(), _arrays(described)],
    }
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True).encode()


def described_by(attributes: dict[str, Any], manifest: Manifest) -> Described:
    """Return what a cache's attributes say, which must be of the manifest's cache.

    Raises:
        CorruptError: the attributes are damaged.
        MismatchError: they are another cache's.
    """
    described = read_attributes({"kdcache": attributes}, source=Path(manifest.cache[:12]))
    if described.info.id != manifest.cache:
        raise MismatchError(
            f"cache {manifest.cache[:12]}: its {ROOT} is of {described.info.id[:12]}; publish it "
            "again"
        )
    return described


def title(manifest: Manifest) -> str:
    """Return a name for people, on one line."""
    dataset = manifest.dataset.name or f"dataset {manifest.dataset.id[:12]}"
    teacher, images = (
        shorten(text, 80, placeholder="…") for text in (manifest.teacher.spec, dataset)
    )
    return f"Targets of {teacher} for {images}"


def published_times(manifest: Manifest) -> list[datetime]:
    """Return when its parts were published, ascending; what is no ISO 8601 is left out."""
    times = []
    for part in manifest.contributions:
        try:
            when = datetime.fromisoformat(part.when)
            times.append(when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC))
        except (ValueError, OverflowError):
            continue
    return sorted(times)


def device_hours(manifest: Manifest) -> float | None:
    """Return what all parts cost together; None where it is not known of each."""
    hours = [part.device_hours for part in manifest.contributions]
    known = [each for each in hours if each is not None]
    return sum(known) if known and len(known) == len(hours) else None


# --- what it is ----------------------------------------------------------------------------


def _description(manifest: Manifest) -> str:
    recipe = manifest.recipe.name or manifest.recipe.id[:12]
    share = "all" if manifest.is_complete else str(manifest.spans)
    return (
        f"Outputs of a frozen image classifier ({manifest.teacher.spec}) over {manifest.views} "
        f"seeded views of each of {manifest.dataset.num_samples} images, {manifest.num_classes} "
        f"classes, encoded as {manifest.encoding}; {share} spans of the views are there. Recipe "
        f"{recipe}. A Zarr v3 group that kdcache replays to students, with the same pixels that "
        "the teacher saw. It holds no images."
    )


def _licence(expression: str | None) -> str:
    """Return a licence as Croissant asks for it: an address of SPDX, or else a text."""
    if expression is None:
        return UNKNOWN
    return listed_address(expression) or expression


def _citation(manifest: Manifest) -> str:
    return f"{title(manifest)}. Cache {manifest.cache}, made with kdcache."


def _people(manifest: Manifest) -> Table:
    names = sorted({part.who for part in manifest.contributions if part.who.strip()})
    found: Table = {}
    if names:
        found["creator"] = [{"@type": "sc:Organization", "name": name} for name in names]
    if times := published_times(manifest):
        found |= {"datePublished": _day(times[0]), "dateModified": _day(times[-1])}
    return found


def _day(when: datetime) -> str:
    return when.date().isoformat()


def _bases(manifest: Manifest) -> list[Table]:
    """Return the images and the teacher, with their licences."""
    parts = (
        ("images", manifest.dataset.name, manifest.dataset.id, manifest.licences.data),
        ("teacher", manifest.teacher.spec, manifest.teacher.id, manifest.licences.weights),
    )
    return [
        {
            "@type": "sc:CreativeWork",
            "name": f"{kind}: {name or identifier[:12]}",
            "identifier": identifier,
            "license": _licence(licence),
        }
        for kind, name, identifier, licence in parts
    ]


def _responsible(manifest: Manifest) -> Table:
    """Return what of the responsible-AI vocabulary fits: nobody annotated, a network did."""
    hours = device_hours(manifest)
    cost = "a cost that was not recorded" if hours is None else f"{hours:.6g} device-hours"
    makers = sorted({part.kdcache for part in manifest.contributions})
    tools = [f"kdcache {version}" for version in makers]
    libraries = sorted(
        {f"{k} {v}" for part in manifest.contributions for k, v in part.versions.items()}
    )
    commits = sorted({part.commit for part in manifest.contributions if part.commit})
    found: Table = {
        "rai:dataCollection": f"Computed, at {cost}; no images or labels were collected.",
        "rai:dataCollectionType": ["Software Collection"],
        "rai:dataPreprocessingProtocol": [
            f"Views by recipe {manifest.recipe.id}: "
            + json.dumps(manifest.recipe.text, sort_keys=True)
        ],
        "rai:dataManipulationProtocol": f"Logits encoded as {manifest.encoding}.",
        "rai:machineAnnotationTools": [
            f"{manifest.teacher.spec} (fingerprint {manifest.teacher.id})",
            *tools,
            *libraries,
            *(f"code at commit {commit}" for commit in commits),
        ],
        "rai:dataLimitations": [
            "What the teacher gets wrong, the targets hold; the licences of the images and of the "
            "teacher's weights may bind what is made with them."
        ],
        "rai:dataUseCases": ["Training students by knowledge distillation."],
    }
    if times := published_times(manifest):
        found["rai:dataCollectionTimeFrame"] = sorted({_day(times[0]), _day(times[-1])})
    return found


# --- where it is ---------------------------------------------------------------------------


def _distribution(manifest: Manifest) -> list[Table]:
    body = manifest.to_bytes()
    files = [_file(MANIFEST, size=len(body), sha256=manifest_digest(body))]
    if (root := manifest.objects.get(ROOT)) is not None:
        files.append(_file(ROOT, size=root.size_bytes, sha256=root.sha256))
    arrays = sorted({name.split("/")[0] for name in manifest.objects if "/c/" in name})
    commits = _files(
        "commits", ["commits/*.json"], kind=_JSON, text="One record for each span that is there."
    )
    zarr = [
        _files(
            name,
            [f"{name}/zarr.json", f"{name}/c/**"],
            kind=_ZARR,
            text=f"Zarr array: {_MEANINGS.get(name, name)}. Sizes and sha256 of its objects stand "
            f"in {MANIFEST}.",
        )
        for name in arrays
    ]
    return [*files, commits, *zarr]


def _file(name: str, *, size: int, sha256: str) -> Table:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": _JSON,
        "sha256": sha256,
    }


def _files(name: str, patterns: Sequence[str], *, kind: str, text: str) -> Table:
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": name,
        "description": text,
        "encodingFormat": kind,
        "includes": list(patterns),
    }


# --- what can be read ----------------------------------------------------------------------


def _tars() -> Table:
    fields = {
        "name": ("sc:Text", "The tar's name."),
        "num_rows": ("cr:UInt32", "Its samples."),
        "digest": ("sc:Text", "sha256 of its samples' uids and contents."),
    }
    path = "$.attributes.kdcache.dataset.tars[*]."
    return _records(
        "tars",
        "The WebDataset files that the views were made from, in order.",
        [
            _field(f"tars/{name}", kind, text, source=({"fileObject": {"@id": ROOT}}, path + name))
            for name, (kind, text) in fields.items()
        ],
    )


def _spans() -> Table:
    fields = {
        "cache": ("sc:Text", "Id of the cache."),
        "tar": ("cr:UInt32", "Number of the tar, from 0."),
        "run": ("cr:UInt32", "Number of the run of views, from 0."),
        "rows": ("cr:UInt32", "Samples of the tar."),
    }
    files = {"fileSet": {"@id": "commits-files"}}
    return _records(
        "spans",
        "The spans that are there: runs of views of one tar, as their commit records say.",
        [
            _field(f"spans/{name}", kind, text, source=(files, f"$.{name}"))
            for name, (kind, text) in fields.items()
        ],
    )


def _arrays(described: Described) -> Table:
    info = described.info
    documents = array_documents(info.specs, described.grid, witnesses=info.witnesses)
    texts = {
        "name": "Name of the array.",
        "data_type": "As Zarr names it.",
        "dimensions": "Names of the dimensions.",
        "shape": "Lengths of the dimensions.",
        "meaning": "What it holds; the rules are in kdcache's docs/format.md.",
    }
    rows = [
        {
            "arrays/name": name,
            "arrays/data_type": document["data_type"],
            "arrays/dimensions": " x ".join(document["dimension_names"]),
            "arrays/shape": " x ".join(map(str, document["shape"])),
            "arrays/meaning": _MEANINGS.get(name, name),
        }
        for name, document in documents.items()
    ]
    fields = [_field(f"arrays/{name}", "sc:Text", text) for name, text in texts.items()]
    found = _records("arrays", "The arrays that hold the targets, and whose they are.", fields)
    return {**found, "data": rows}


def _records(name: str, text: str, fields: Iterable[Table]) -> Table:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": text,
        "field": list(fields),
    }


def _field(name: str, kind: str, text: str, *, source: tuple[Table, str] | None = None) -> Table:
    field = {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": text,
        "dataType": kind,
    }
    if source is None:
        return field
    return {**field, "source": {**source[0], "extract": {"jsonPath": source[1]}}}


_CONTEXT: Table = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{
        word: f"cr:{word}"
        for word in (
            *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract"),
            *("field", "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray"),
            *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
            *("references", "regex", "repeated", "replace", "samplingRate", "separator"),
            *("source", "subField", "transform"),
        )
    },
}
