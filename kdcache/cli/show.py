"""kdcache show: the page of a cache or of a run, and what a published cache is."""

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.catalogues import list_published, show_published
from kdcache.cli.data import Json
from kdcache.cli.keys import Trusted
from kdcache.cli.output import give, human_bytes, say
from kdcache.cli.pages import check_page, write_page
from kdcache.cli.places import CACHE_HELP, DATA_HELP, PLACE
from kdcache.errors import (
    CorruptError,
    IncompleteError,
    KdcacheError,
    MismatchError,
    UsageError,
)
from kdcache.stores.location import Place, parse_place
from kdcache.texts import counted

if TYPE_CHECKING:
    from kdcache.report.cache_page import Inspection

IMAGES, SEED = 8, 0
CONFIG = "config.json"  # of a run's folder


def show(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", help=f"A cache {CACHE_HELP}; a run's folder; or a catalogue."
        ),
    ],
    cache: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID|REF]",
            help="Of a catalogue: id of a cache, 8 digits of it or more, or a ref; default: list "
            "them.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar=PLACE, help=f"Show images, views, labels. {DATA_HELP}")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write; default: NAME.html, here.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=0, max=64, help=f"Images drawn at random, with --data; default: {IMAGES}."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help=f"Of what is drawn at random; default: {SEED}."),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve pages of all images on this machine alone, instead."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Of --serve; default: any that is free."),
    ] = None,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a cache, or of a run; or say what a published cache is.

    A cache's page has its ids, coverage, cost and fidelity, what the teacher said of a sample of
    its views and, with --data, images: each view as teacher and student see it, compared.

    Examples:

      kdcache show build/cache --data build/train

      kdcache show build/cache --data build/train --serve

      kdcache show build/run

      kdcache show s3://bucket/catalogue resnet50-funmatch
    """
    given: dict[str, object] = {"--data": data, "--images": images, "--seed": seed}
    given |= {"--serve": serve or None, "--port": port, "--out": out, "--trusted": trusted}
    if cache is not None:
        _refuse(given, "the text of a published cache", but={"--trusted"})
        show_published(place, cache, trusted=trusted, as_json=as_json)
        return
    where = parse_place(place)
    if _is_catalogue(where):
        from kdcache.sharing.find import Wanted

        _refuse(given, "the list of a catalogue's caches", but=())
        list_published(place, Wanted(), as_json=as_json)
        return
    if isinstance(where, Path) and (where / CONFIG).is_file():
        _refuse(given, "the page of a run", but={"--out"})
        _write_run(where, _page(out, where), as_json=as_json)
        return
    _refuse(given, "the page of a cache", but=given.keys() - {"--trusted"})
    drawn = SEED if seed is None else seed
    if serve:
        if out is not None or images is not None or as_json:
            raise UsageError("--out, --images and --json: are of a page that is written")
        _serve(_inspected(where, data, seed=drawn), port=port or 0)
        return
    if port is not None:
        raise UsageError("--port: is of --serve; give that, too")
    if images is not None and data is None:
        raise UsageError("--images: shows images, which need --data; give their place")
    page, count = _page(out, where), IMAGES if images is None else images
    seen = _inspected(where, data, seed=drawn)
    _write_cache(seen, page, images=count, seed=drawn, as_json=as_json)


def _is_catalogue(where: Place) -> bool:
    from kdcache.cache.in_place import CACHES, REFS
    from kdcache.sharing.index import INDEX
    from kdcache.stores.store import Store

    if isinstance(where, Path):
        return (where / CACHES).is_dir()
    if where.parent.name in (CACHES, REFS):
        return False
    try:
        return Store(where).size(INDEX) is not None
    except KdcacheError:  # some buckets refuse what is not there
        return False


def _refuse(given: dict[str, object], what: str, *, but: Container[str]) -> None:
    """Refuse options that would do nothing."""
    for name, value in given.items():
        if value is not None and name not in but:
            raise UsageError(f"{name}: has no effect on {what}; leave it out")


def _page(out: Path | None, where: Place) -> Path:
    """Return where the page goes."""
    name = where.resolve().name if isinstance(where, Path) else where.name
    path = Path(f"{name or 'cache'}.html") if out is None else out
    check_page(path)
    return path


def _inspected(where: Place, data: str | None, *, seed: int) -> "Inspection":
    from kdcache.cache.in_place import local_path, what_is_there
    from kdcache.cache.store import is_cache, open_cache
    from kdcache.data.document import load_dataset
    from kdcache.replay.open import cache_source
    from kdcache.report.cache_page import Inspection
    from kdcache.report.sampling import sample_cache

    if isinstance(where, Path) and what_is_there(where) is None and not is_cache(local_path(where)):
        raise UsageError(
            f"{where}: no cache and no run here; make one with kdcache precompute, or kdcache train"
        )
    cache = open_cache(where, checked=False)
    source = None
    if data is not None:
        source = cache_source(cache, load_dataset(parse_place(data)), cache.info.recipe)
    return Inspection(cache, source, sample_cache(cache, source, seed=seed))


def _write_cache(seen: "Inspection", path: Path, *, images: int, seed: int, as_json: bool) -> None:
    from kdcache.cache.decided import REPAIR
    from kdcache.report.cache_page import DAMAGED, WRONG, cache_sections, cache_title
    from kdcache.report.gallery import gallery, gallery_sections, what_is_wrong
    from kdcache.report.page import template_source

    found, unread = gallery(seen, images=images, seed=seed)
    damage = [*seen.sample.damage, *unread]
    sheets = [sheet for those in found.values() for sheet in those]
    wrong = what_is_wrong(sheets)
    sections = [
        *cache_sections(seen, loud={WRONG: wrong, DAMAGED: damage}),
        *gallery_sections(found),
    ]
    script = template_source("search.js") if found else ""
    size = write_page(path, cache_title(seen.cache), sections, script=script)
    grid, sample = seen.cache.grid, seen.sample
    missing = grid.num_tars * (grid.num_views // grid.span_views) - len(sample.done)
    value = {
        "page": str(path),
        "size_bytes": size,
        "id": seen.cache.info.id,
        "tiles_read": sample.tiles,
        "images": len(sheets),
        "spans_missing": missing,
        "damaged": damage,
        "differing": wrong,
    }
    views = sum(len(sheet.views) for sheet in sheets)
    lines = {
        "page": f"{path} ({human_bytes(size)})",
        "read": f"{sample.tiles} of {sample.of_tiles} tiles",
        "images": f"{len(sheets)} with {views} views, of which {len(wrong)} differ"
        if found
        else "none: give --data to see them",
    }
    give(value, as_json=as_json, lines=lines)
    where = seen.cache.place
    if damage:
        things, first = counted(len(damage), "thing is", "things are"), damage[0]
        if seen.cache.is_local:
            step = f"run kdcache repair {where}, --from a sound copy if there is one"
            first = f"{first.removesuffix(f'; {REPAIR}')}; {step}"
        raise CorruptError(f"{where}: {things} damaged; the first: {first}")
    if wrong:
        made = f"{counted(len(wrong), 'view is', 'views are')} made otherwise here"
        raise MismatchError(f"{where}: {made}: {wrong[0]}")
    if missing:
        raise IncompleteError(
            f"{where}: the page shows what is there, but "
            f"{counted(missing, 'span is', 'spans are')} missing; run kdcache precompute again"
        )


def _write_run(folder: Path, path: Path, *, as_json: bool) -> None:
    """Write the page of a run.

    Raises:
        UsageError: the folder is no run's.
        CorruptError: its settings or metrics are damaged.
    """
    from kdcache.report.run_page import run_sections, run_title
    from kdcache.report.runs import read_run

    log = read_run(folder)
    size = write_page(path, run_title(log), run_sections(log))
    done = f"{log.epochs_done} of {log.epochs} epochs"
    value = {"page": str(path), "size_bytes": size, "epochs_done": log.epochs_done}
    give(value, as_json=as_json, lines={"page": f"{path} ({human_bytes(size)})", "run": done})


def _serve(seen: "Inspection", *, port: int) -> None:
    """Serve the pages of a cache until Ctrl-C or SIGTERM."""
    from kdcache.processes import terminable
    from kdcache.report.browse import Browser
    from kdcache.report.serving import make_server

    with make_server(Browser(seen).answer, port=port) as server:
        say(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", as_json=False)
        try:
            with terminable():
                server.serve_forever()
        except KeyboardInterrupt as end:
            raise typer.Exit(143 if end.args else 130) from None
