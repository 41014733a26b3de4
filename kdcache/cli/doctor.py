"""kdcache doctor."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give
from kdcache.cli.places import CACHE_HELP, DATA_HELP, PLACE, path
from kdcache.errors import UsageError
from kdcache.stores.location import parse_place

if TYPE_CHECKING:
    from kdcache.doctor.section import Section


def doctor(
    cache: Annotated[
        str | None,
        typer.Option(metavar=PLACE, help=f"Compare it with this machine: a cache {CACHE_HELP}."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar=PLACE, help=f"With --cache: make some of it again. {DATA_HELP}"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="DIR", help="Measure its disk; default: the cache's."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar=PLACE, help="Ask it: s3://…, gs://…, az://… or https://…."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine is, and whether caches made elsewhere replay here.

    The last line is the verdict; where it is no, it names the library to change, and the exit code
    is 3. Of a --cache that cannot be read, it is the code of that error; other steps may fail
    without one. Each takes a few seconds at most.

    Examples:

      kdcache doctor

      kdcache doctor --cache build/cache --data build/photos

      kdcache doctor --store s3://team/catalogue --json
    """
    from kdcache.doctor import access, caches, disk, machine, replay, software
    from kdcache.doctor.section import attempt
    from kdcache.processes import terminable

    if data is not None and cache is None:
        raise UsageError("--data: goes with --cache, whose views are made again of it")
    measured = folder
    if measured is None:
        place = None if cache is None else parse_place(cache)
        measured = place if isinstance(place, Path) and place.is_dir() else Path.cwd()
    steps: dict[str, Callable[[], Section]] = {
        "system": software.system,
        "pixels": software.pixel_libraries,
        "libraries": software.other_libraries,
        "decoders": software.decoders,
        "processor": machine.processor,
        "cores": machine.cores,
        "memory": machine.memory,
        "shared": machine.shared_memory,
        "files": machine.open_files,
        "gpus": machine.gpus,
        "disk": lambda: disk.disk(measured),
        "replay": replay.replay,
    }
    if store is not None:
        steps["store"] = lambda: access.access(store)
    if cache is not None:
        images = None if data is None else parse_place(data)
        steps["cache"] = lambda: caches.check_cache(parse_place(cache), images)
    try:
        with terminable():  # else SIGTERM would leave what the disk is measured with
            found = {name: attempt(step) for name, step in steps.items()}
    except KeyboardInterrupt as end:
        raise typer.Exit(143 if end.args else 130) from None
    failed = next((s for n, s in found.items() if n in ("replay", "cache") and s.error), None)
    error = None if failed is None else failed.error
    verdict = replay.HOLDS if failed is None else failed.text
    give(
        {
            "verdict": verdict,
            "replays": error is None,
            "sections": {name: section.to_dict() for name, section in found.items()},
        },
        as_json=as_json,
        lines={**{name: section.line() for name, section in found.items()}, "verdict": verdict},
    )
    if error is not None:
        raise error
