"""The card of a published cache: README.md, for people and for the Hugging Face Hub.

Invariant: texts of others stand in code spans and in quoted YAML alone, on one line, without what
moves a cursor or turns the direction of writing: they make no links, HTML, cells or front matter.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdcache.cache.published import Contribution, Manifest
from kdcache.recipe.schema import Recipe
from kdcache.sharing.croissant import described_by, device_hours, title
from kdcache.sharing.licences import UNKNOWN

MAX_TEXT = 300  # characters of a text of others
_BANDS = (
    *("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"),
    *("1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T"),
)
# What the Hub calls as SPDX does, but in small letters; it knows others by their own names.
_OF_THE_HUB = frozenset(
    (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "MPL-2.0", "ISC", "Zlib"),
        *("CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
        *("CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
        *("CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0"),
        *("CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0"),
    )
)


def card(manifest: Manifest, attributes: dict[str, Any]) -> str:
    """Return the card of a published cache: Markdown, with YAML in front.

    attributes: the table kdcache of its root group's attributes.

    Raises:
        CorruptError: the attributes are damaged.
        MismatchError: they are another cache's.
    """
    described = described_by(attributes, manifest)
    environment = Environment(
        loader=PackageLoader("kdcache.sharing", "templates"),
        trim_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: what is of others goes through code
    )
    environment.filters |= {"code": code, "hours": _hours, "versions": _versions}
    hours = device_hours(manifest)
    return environment.get_template("card.md.j2").render(
        front="\n".join(_front(manifest)),
        manifest=manifest,
        teacher=manifest.teacher.spec,
        images=manifest.dataset.name or f"dataset {manifest.dataset.id[:12]}",
        facts=_facts(manifest, described.info.recipe, described.info.classes),
        licences=[(name, text or UNKNOWN) for name, text in manifest.licences],
        together="a cost that is not known" if hours is None else f"{_hours(hours)} device-hours",
        recipe_name=manifest.recipe.name or manifest.recipe.id[:12],
        recipe=json.dumps(described.info.recipe.canonical(), indent=1, sort_keys=True),
    )


def code(text: str) -> str:
    """Return a text of anybody as a Markdown code span, which is also safe in a table."""
    shown = plain(text).replace("`", "'").replace("|", "¦")
    return f"` {shown} `" if shown else "` - `"


def plain(text: str) -> str:
    """Return a text of anybody on one line of limited length, as far as it can be printed."""
    words = "".join(c if c.isprintable() else " " for c in text[: 10 * MAX_TEXT]).split()
    line = " ".join(words)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def _front(manifest: Manifest) -> Iterable[str]:
    """Yield the lines of the front matter that the Hub reads."""
    yield from _licence(manifest.licences.output)
    yield f"pretty_name: {_quoted(title(manifest))}"
    yield from _list("task_categories", ["image-classification"])
    yield from _list("tags", ["knowledge-distillation", "teacher-logits", "kdcache", "zarr"])
    yield from _list("size_categories", [_band(manifest.dataset.num_samples * manifest.views)])
    yield "viewer: false"


def _licence(expression: str | None) -> Iterable[str]:
    if expression is None:
        yield 'license: "unknown"'
    elif expression in _OF_THE_HUB:
        yield f"license: {_quoted(expression.lower())}"
    else:
        yield 'license: "other"'
        name = re.sub(r"[^a-z0-9.]+", "-", expression.lower()).strip("-")
        yield f"license_name: {_quoted(name or 'other')}"
        yield 'license_link: "README.md"'


def _list(name: str, entries: Iterable[str]) -> Iterable[str]:
    yield f"{name}:"
    yield from (f"- {_quoted(entry)}" for entry in entries)


def _quoted(text: str) -> str:
    """Return a text as a double-quoted scalar of YAML, which JSON's strings are."""
    return json.dumps(plain(text), ensure_ascii=False)


def _band(count: int) -> str:
    """Return the Hub's word for a number of rows."""
    return _BANDS[min(max(len(str(count)) - 3, 0), len(_BANDS) - 1)]


def _facts(
    manifest: Manifest, recipe: Recipe, classes: tuple[str, ...] | None
) -> list[tuple[str, str]]:
    """Return what it is, as cells of a table."""
    share = "complete" if manifest.is_complete else f"{manifest.spans} of {manifest.all_spans}"
    dataset, sizes = manifest.dataset, f"{recipe.size} x {recipe.size}"
    if recipe.teacher is not None:
        sizes += f" (the teacher's {recipe.teacher.size} x {recipe.teacher.size})"
    named = "" if classes is None else f", from {code(classes[0])} to {code(classes[-1])}"
    return [
        ("cache", f"`{manifest.cache}`"),
        ("images", f"{dataset.num_samples} in {dataset.num_tars} tars, id `{dataset.id}`"),
        ("teacher", f"{code(manifest.teacher.spec)}, fingerprint {code(manifest.teacher.id)}"),
        ("views", f"{manifest.views} of each image, {sizes} pixels"),
        ("spans", f"{share}, each of {manifest.span_views} views of one tar"),
        ("encoding", code(manifest.encoding)),
        ("classes", f"{manifest.num_classes}{named}"),
        ("size", f"{manifest.size_bytes} bytes in {len(manifest.objects)} objects"),
    ]


def _hours(hours: float | None) -> str:
    return "not known" if hours is None else f"{hours:.4g}"


def _versions(part: Contribution) -> str:
    """Return what a contribution was made with."""
    libraries = [f"{name} {version}" for name, version in sorted(part.versions.items())]
    commit = [f"commit {part.commit[:12]}"] if part.commit else []
    return ", ".join([f"kdcache {part.kdcache}", *commit, *libraries])
