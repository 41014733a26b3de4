"""kdcache find, kdcache ref, kdcache rebuild, kdcache gc."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.caches import FINDINGS_SHOWN
from kdcache.cli.data import Json
from kdcache.cli.output import give, human_bytes, say
from kdcache.cli.recipe import RECIPE_HELP
from kdcache.cli.sharing import CatalogueText, Who
from kdcache.errors import CorruptError, UntrustedError, UsageError
from kdcache.stores.location import parse_place, without_credentials
from kdcache.texts import counted, printable

if TYPE_CHECKING:
    from kdcache.sharing.catalogue import Catalogue, Published
    from kdcache.sharing.find import Wanted
    from kdcache.sharing.gc import Waste
    from kdcache.sharing.index import Ref, Summary

SHOWN = 12  # digits of ids
HISTORY_SHOWN = 10
DATASETS_SHOWN = 5


def find(
    catalogue: CatalogueText,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="ID|PATH", help="Id of the images, or where their dataset.json is."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A part of the teacher's name, or its id.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help=f"{RECIPE_HELP} Or its id.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Number of classes.")] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A part of one of the licences.")
    ] = None,
    views: Annotated[int | None, typer.Option(min=1, help="Views of each image, at least.")] = None,
    as_json: Json = False,
) -> None:
    """List the caches of a catalogue, those with the most views first.

    Examples:

      kdcache find s3://bucket/catalogue --dataset build/photos --views 16

      kdcache find https://host/catalogue --teacher resnet50 --licence CC-BY
    """
    from kdcache.sharing.find import Wanted

    wanted = Wanted(
        dataset=None if dataset is None else _dataset_id(dataset),
        recipe=None if recipe is None else _recipe_id(recipe),
        teacher=teacher,
        classes=classes,
        licence=licence,
        views=views,
    )
    list_published(catalogue, wanted, as_json=as_json)


def list_published(catalogue: str, wanted: "Wanted", *, as_json: bool) -> None:
    """Print what the caches of a catalogue are that are as wanted."""
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.find import choose
    from kdcache.sharing.index import shown_refs

    place = open_catalogue(catalogue)
    place.check_there()
    summaries, damaged = place.summaries()
    refs, bad = place.refs()
    found = choose(summaries, wanted)
    if as_json:
        value = {
            "caches": [_value(s, shown_refs(refs, s.cache)) for s in found],
            "damaged": [*damaged.values(), *bad.values()],
        }
        give(value, as_json=True, lines={})
        return
    rows = [_row(s, shown_refs(refs, s.cache)) for s in found]
    if rows:
        say(_columns([_HEADS, *rows]), as_json=False)
    else:
        images = sorted({_images(summary) for summary in summaries.values()})
        more = ["…"] if len(images) > DATASETS_SHOWN else []
        there = ", ".join([*images[:DATASETS_SHOWN], *more])
        advice = f", of images {there}; kdcache find {place.place} lists all" if images else ""
        count = len(summaries)
        say(f"{place.place}: no such cache, of {count} that are there{advice}", as_json=False)
    for text in [*damaged.values(), *bad.values()][:FINDINGS_SHOWN]:
        say(f"  left out: {text}", as_json=False)


_HEADS = ("cache", "refs", "teacher", "images", "recipe", "classes", "views", "to fetch", "licence")


def _row(summary: "Summary", refs: Sequence[str]) -> tuple[str, ...]:
    stored = summary.spans * summary.span_views // max(summary.dataset.num_tars, 1)
    whole = summary.is_complete
    return (
        summary.cache[:SHOWN],
        ", ".join(refs),
        summary.teacher.spec,
        _images(summary),
        summary.recipe.name or summary.recipe.id[:8],
        str(summary.num_classes),
        str(summary.views) if whole else f"{stored} of {summary.views}",
        human_bytes(summary.size_bytes),
        summary.licences.output or "unknown",
    )


def _images(summary: "Summary") -> str:
    return f"{summary.dataset.num_samples} ({summary.dataset.id[:8]})"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Return texts in columns."""
    shown = [[printable(text) or "-" for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    )


def _value(summary: "Summary", refs: Sequence[str]) -> dict[str, Any]:
    complete = summary.is_complete
    return {**summary.model_dump(mode="json"), "complete": complete, "refs": list(refs)}


def _dataset_id(text: str) -> str:
    place = parse_place(text)
    if isinstance(place, Path) and not place.exists():
        return _id(text, "--dataset", "or where their dataset.json is")
    from kdcache.data.document import load_dataset

    return load_dataset(place).id


def _recipe_id(text: str) -> str:
    from kdcache.recipe.schema import load_recipe, presets

    if text in presets() or Path(text).exists():
        return load_recipe(text).id
    return _id(text, "--recipe", f"a file, or one of {', '.join(presets())}")


def _id(text: str, option: str, other: str) -> str:
    if not text or set(text.lower()) - set("0123456789abcdef"):
        shown = without_credentials(text)[:40]
        raise UsageError(f"{option} {shown!a}: expected an id, its first digits, {other}")
    return text


def show_published(catalogue: str, cache: str, *, trusted: Path | None, as_json: bool) -> None:
    """Say what a published cache is, who made it, under which licences, and who signed it."""
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.index import Summary, shown_refs
    from kdcache.sharing.keys import load_trusted
    from kdcache.sharing.signed import check_signed

    place = open_catalogue(catalogue)
    published = place.published(place.resolve(cache))
    refs = _refs(place)
    try:
        signed_by, doubt = check_signed(published, load_trusted(trusted)), None
    except UntrustedError as error:
        signed_by, doubt = None, str(error).partition(": ")[2]
    summary = Summary.of(published.manifest, published.data)
    names = shown_refs(refs, published.id)
    value = {**_value(summary, names), "signed_by": signed_by, "doubt": doubt}
    give(
        value, as_json=as_json, lines=_shown(published, summary, names, signed_by or f"no: {doubt}")
    )


def _refs(place: "Catalogue") -> "dict[str, Ref]":
    """Return the refs of a catalogue; none where it cannot tell them."""
    try:
        return place.refs()[0]
    except (CorruptError, UsageError):  # of catalog.json, which is only a help
        return {}


def _shown(
    published: "Published", summary: "Summary", refs: Sequence[str], signed: str
) -> dict[str, object]:
    manifest = published.manifest
    share = "complete" if manifest.is_complete else f"{manifest.spans} of {summary.all_spans} spans"
    licences = manifest.licences.model_dump()
    lines: dict[str, object] = {
        "cache": manifest.cache,
        "where": published.place,
        "refs": ", ".join(refs) or "none",
        "dataset": f"{manifest.dataset.num_samples} samples in {manifest.dataset.num_tars} tars "
        f"({manifest.dataset.id[:SHOWN]})",
        "recipe": f"{manifest.recipe.name or 'own'} ({manifest.recipe.id[:SHOWN]})",
        "teacher": f"{manifest.teacher.spec} ({manifest.teacher.id[:SHOWN]})",
        "encoding": f"{manifest.encoding}, {manifest.num_classes} classes",
        "views": f"{manifest.views} in spans of {manifest.span_views}, {share}",
        "to fetch": f"{human_bytes(manifest.size_bytes)} in {len(manifest.objects)} objects, with "
        "records and metadata",
        "licences": ", ".join(f"{part} {text or 'unknown'}" for part, text in licences.items()),
        "manifest": f"sha256 {summary.manifest}",
        "signed by": signed,
    }
    for number, part in enumerate(manifest.contributions, 1):
        hours = "" if part.device_hours is None else f", {part.device_hours:.4g} device-hours"
        code = f" ({part.commit[:SHOWN]})" if part.commit else ""
        lines[f"part {number}"] = (
            f"{part.spans} spans by {part.who}, {part.when}{hours}, kdcache {part.kdcache}{code}"
        )
    return lines


def ref(
    catalogue: CatalogueText,
    name: Annotated[str, typer.Argument(help="The ref.")],
    cache: Annotated[
        str | None,
        typer.Argument(metavar="[ID|REF]", help="What it shall refer to; default: print it."),
    ] = None,
    who: Who = None,
    as_json: Json = False,
) -> None:
    """Let a name refer to a published cache, or say to what it refers, and did.

    Example:

      kdcache ref s3://bucket/catalogue resnet50-funmatch 42a5cf92
    """
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.names import set_ref
    from kdcache.sharing.owners import publisher_name
    from kdcache.sharing.refs import check_ref_name

    place, name = open_catalogue(catalogue), check_ref_name(name)
    if cache is None:
        found = place.ref(name)
        if found is None:
            raise UsageError(f"{place.place}: has no ref {name}; give the cache that it shall name")
    else:
        found = set_ref(place, name, place.resolve(cache), who=publisher_name(who))
        _keep_index(place)
    give(_ref_value(name, found), as_json=as_json, lines=_ref_lines(name, found))


def _keep_index(place: Any) -> None:
    from kdcache.sharing.names import update_index

    update_index(place, [])


def _ref_value(name: str, found: "Ref") -> dict[str, Any]:
    return {"ref": name, **found.model_dump(mode="json")}


def _ref_lines(name: str, found: "Ref") -> Mapping[str, object]:
    lines: dict[str, object] = {"ref": name, "cache": found.cache}
    for number, change in enumerate(reversed(found.history[-HISTORY_SHOWN:]), 1):
        lines[f"change {number}"] = f"{change.cache[:SHOWN]} by {change.who}, {change.when}"
    return lines


def rebuild(catalogue: CatalogueText, as_json: Json = False) -> None:
    """Bring catalog.json, and manifests whose publisher died, in line with what is there.

    Example:

      kdcache rebuild s3://bucket/catalogue
    """
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.rebuild import rebuild as rebuild_catalogue

    place = open_catalogue(catalogue)
    found = rebuild_catalogue(place)
    give(
        {"caches": found.caches, "mended": list(found.mended), "damaged": list(found.damaged)},
        as_json=as_json,
        lines={
            "catalogue": place.place,
            "caches": found.caches,
            "mended": ", ".join(cache[:SHOWN] for cache in found.mended) or "none",
        },
    )
    for text in found.damaged[:FINDINGS_SHOWN]:
        say(f"  left as it is: {text}", as_json=as_json)
    if found.damaged:
        raise CorruptError(
            f"{counted(len(found.damaged), 'thing is', 'things are')} damaged; the first: "
            f"{found.damaged[0]}"
        )


def gc(
    catalogue: CatalogueText,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete it; without this, only say what there is.")
    ] = False,
    days: Annotated[
        float, typer.Option(min=0.0, help="Days for which it has not changed, at least.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Say, or delete, what a catalogue holds that no manifest names.

    Nobody may be publishing for longer than --days meanwhile: what was sent and is not named yet
    is deleted once it is older.

    Example:

      kdcache gc s3://bucket/catalogue --delete
    """
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.gc import DAY_S, delete_waste, find_waste

    place = open_catalogue(catalogue)
    waste = find_waste(place, older_than_s=days * DAY_S)
    if delete:
        waste = delete_waste(place, waste, older_than_s=days * DAY_S)
    give(
        {
            "deleted": delete,
            "objects": [entry.name for entry in waste.objects],
            "unpublished": {cache: len(found) for cache, found in waste.folders.items()},
            "refs": list(waste.refs),
            "size_bytes": waste.size_bytes,
            "damaged": list(waste.damaged),
        },
        as_json=as_json,
        lines=_waste_lines(waste, delete=delete),
    )
    for text in waste.damaged[:FINDINGS_SHOWN]:
        say(f"  left as it is: {text}", as_json=as_json)


def _waste_lines(waste: "Waste", *, delete: bool) -> dict[str, object]:
    done = "deleted" if delete else "to be deleted with --delete"
    return {
        "objects": f"{len(waste.objects)} that no manifest names",
        "unpublished": f"{len(waste.folders)} caches without a manifest",
        "refs": f"{len(waste.refs)} to caches that are gone",
        "in all": f"{len(waste.names)} objects, {human_bytes(waste.size_bytes)}: {done}"
        if waste.names
        else "nothing",
    }
