"""kdcache precompute."""

import os
from dataclasses import replace
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.limits import (
    AtTemperature,
    LimitTemperature,
    MaxBytes,
    MaxGradientError,
    MaxKl,
    check_auto,
    read_budget,
    settle_encoding,
)
from kdcache.cli.output import give, human_bytes, say
from kdcache.cli.places import DATA_HELP, PLACE, absolute, path
from kdcache.cli.recipe import RECIPE_HELP, recipe_names
from kdcache.cli.reuse import (
    CatalogueOption,
    FetchOption,
    PublishOption,
    RefOption,
    RequireOption,
    SignOption,
    UnknownOption,
    WhoOption,
    reuse_given,
)
from kdcache.cli.running import read_batch_size, read_slice, run_visibly
from kdcache.cli.sharing import published_lines, published_value
from kdcache.cli.shell import SETTINGS
from kdcache.cli.teachers import (
    Average,
    AverageOption,
    Device,
    Labels,
    Mean,
    PrecisionOption,
    Shares,
    Std,
    TeacherClasses,
    Teachers,
    Weights,
    teacher_given,
)
from kdcache.errors import UsageError
from kdcache.stores.location import parse_place

if TYPE_CHECKING:
    from kdcache.cache.layout import Span
    from kdcache.cache.manifest import Seal
    from kdcache.cache.store import Cache
    from kdcache.sharing.publish import Sent


class Engine(StrEnum):
    """Who computes spans."""

    inline = "inline"
    processes = "processes"
    ray = "ray"


DEFAULT_BATCH = 256


def precompute(
    data: Annotated[str, typer.Option(metavar=PLACE, help=DATA_HELP)],
    teacher: Teachers,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP, autocompletion=recipe_names)],
    views: Annotated[int, typer.Option(min=1, max=1_000_000, help="Views of each image.")],
    cache: Annotated[
        Path, typer.Option(parser=path, help="Where the cache is, or will be, on this disk.")
    ],
    weights: Weights = None,
    shares: Shares = None,
    average: AverageOption = Average.logits,
    labels: Labels = None,
    teacher_classes: TeacherClasses = None,
    mean: Mean = None,
    std: Std = None,
    precision: PrecisionOption = None,
    device: Device = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Run the teacher through torch.compile.")
    ] = False,
    batch_text: Annotated[
        str,
        typer.Option(
            "--batch-size",
            metavar="N|auto",
            help="Views in one call of the teacher; auto finds the fastest. Halved where memory "
            "runs out.",
        ),
    ] = "256",
    engine: Annotated[
        Engine, typer.Option(help="Who runs the teacher: this process, several, or a Ray cluster.")
    ] = Engine.inline,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes or Ray actors, each with a GPU of its own if there are GPUs; default: "
            "one a GPU, or as many actors as the cluster has room for.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: auto, or HOST:PORT; by default one is started here."),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="packed:K, adaptive:E, topk:K, dense:f2, dense:u1, or auto: chosen by the limits "
            "below on a sample. Default: dense:f2 up to 64 classes, then packed:32."
        ),
    ] = None,
    max_gradient_error: MaxGradientError = None,
    max_kl: MaxKl = None,
    max_bytes: MaxBytes = None,
    temperature: LimitTemperature = AtTemperature.one,
    span_views: Annotated[
        int | None, typer.Option(help="Views computed from one decoding; default: up to 8.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Processes that render; 0 renders between the teacher's calls."),
    ] = 0,
    slice_text: Annotated[
        str | None,
        typer.Option(
            "--slice", metavar="I/N", help="Compute this part of N alone, I from 0: one a machine."
        ),
    ] = None,
    retry_quarantined: Annotated[
        bool,
        typer.Option("--retry-quarantined", help="Try the spans again that failed before."),
    ] = False,
    data_licence: Annotated[
        str | None, typer.Option("--licence-data", "--data-licence", help="SPDX expression.")
    ] = None,
    weights_licence: Annotated[
        str | None, typer.Option("--licence-weights", "--weights-licence", help="SPDX expression.")
    ] = None,
    output_licence: Annotated[
        str | None, typer.Option("--licence-output", "--output-licence", help="SPDX expression.")
    ] = None,
    catalogue: CatalogueOption = None,
    fetch: FetchOption = False,
    require_signature: RequireOption = False,
    publish: PublishOption = False,
    ref: RefOption = None,
    sign: SignOption = None,
    who: WhoOption = None,
    licence_unknown: UnknownOption = False,
    as_json: Json = False,
) -> None:
    """Run the teacher over all views and store its targets; goes on where it stopped.

    Example:

      kdcache precompute --data build/photos --teacher torchvision:resnet50 --weights resnet50.pth
      --recipe funmatch --views 16 --cache build/cache
    """
    given = dict(locals())
    from kdcache.cache.store import is_cache, open_cache
    from kdcache.data.blocks import dataset_source
    from kdcache.data.document import load_dataset
    from kdcache.models.shown import disagreements
    from kdcache.models.steadiness import measure_steadiness
    from kdcache.precompute.batching import fit_batch_size
    from kdcache.precompute.engines import run_inline
    from kdcache.precompute.jobs import JobSpec
    from kdcache.precompute.prepare import check_classes, describe_cache, prepare_cache
    from kdcache.precompute.processes import devices_for, run_processes
    from kdcache.precompute.ray_engine import RayOptions, run_ray
    from kdcache.precompute.span import Job
    from kdcache.recipe.schema import load_recipe

    batch_size = read_batch_size(batch_text)
    budget = read_budget(max_gradient_error, max_kl, max_bytes=max_bytes, temperature=temperature)
    check_auto(encoding, budget)
    part, reuse = read_slice(slice_text), reuse_given(given)
    images = parse_place(data)
    dataset, plan = load_dataset(images), load_recipe(recipe)
    store_there = open_cache(cache) if is_cache(cache) else None
    spec = teacher_given(given, dataset.num_classes, like=store_there)
    check_engine(engine, processes=processes, address=address, device=device)
    # Where others compute, this process only says what the teacher is.
    inline = engine is Engine.inline
    network = spec.load(device) if inline else replace(spec, compiled=False).load("cpu")
    for sentence in (*network.warnings, *disagreements(network, plan)):
        say(f"warning: {sentence}", as_json=as_json)
    if batch_size is None and inline:
        batch_size = fit_batch_size(network, plan.size_for("teacher"))
        say(f"batches of {batch_size} views", as_json=as_json)
    source, other_classes = dataset_source(dataset, plan), teacher_classes is not None
    if budget is not None:
        check_classes(dataset, plan, teacher=network, other_classes=other_classes)
        encoding = settle_encoding(
            budget,
            source,
            teacher=network,
            cache=cache,
            views=views,
            batch_size=batch_size or DEFAULT_BATCH,
            as_json=as_json,
        )
    steadiness = None
    if store_there is None:
        steadiness = measure_steadiness(network, plan.size_for("teacher"))
        if not steadiness.deterministic:
            say(f"teacher {network.spec}: {steadiness}", as_json=as_json)
    elif encoding is None:
        encoding = str(store_there.info.encoding)
    info = describe_cache(
        dataset,
        plan,
        teacher=network,
        encoding=encoding,
        licences={
            "data": data_licence,
            "weights": weights_licence or network.licence,
            "output": output_licence,
        },
        other_classes=other_classes,
        steadiness=steadiness,
    )
    licences = published = None
    if reuse is not None:
        licences = reuse.licences(info)
        published = reuse.look(info, cache, views=views, as_json=as_json)
        if store_there is None:
            span_views = span_views or reuse.span_views(published, views=views)
    store = prepare_cache(cache, info, dataset=dataset, num_views=views, span_views=span_views)
    if reuse is not None:
        reuse.fetch(published, store)
    devices = devices_for(device, processes) if engine is Engine.processes else []
    # What skips bad images tries again where one was the cause.
    chosen = _choose(store, part, retry=retry_quarantined or skip_bad, as_json=as_json)
    say(
        f"cache {store.info.id[:12]}: {len(chosen)} spans of {store.grid.span_views} views to do "
        f"on {network.device if inline else ', '.join(devices) or engine.value}",
        as_json=as_json,
    )
    if inline:
        job = Job(source, network, store, batch_size or DEFAULT_BATCH, skip_bad, workers)
        run = partial(run_inline, job, None if part is None else chosen)
    else:
        together = JobSpec(
            absolute(images), cache.absolute(), spec.absolute(), batch_size, skip_bad, workers
        )
        if engine is Engine.processes:
            run = partial(run_processes, together, devices, spans=chosen)
        else:
            run = partial(run_ray, together, RayOptions(address, processes), spans=chosen)
    seal, num_spans = run_visibly(store, chosen, run, as_json=as_json)
    sent = None if reuse is None else reuse.publish(store, licences)
    _give_computed(store, seal, num_spans=num_spans, sent=sent, as_json=as_json)


def _choose(
    store: "Cache", part: tuple[int, int] | None, *, retry: bool, as_json: bool
) -> list["Span"]:
    """Return the spans to compute; those in quarantine only to try them again."""
    from kdcache.cache.quarantine import quarantined
    from kdcache.precompute.engines import release_all, slice_of

    chosen = store.missing() if part is None else slice_of(store.missing(), *part)
    if retry:
        release_all(store, chosen)
    aside = set(quarantined(store.folder)).intersection(chosen)
    if aside:
        say(
            f"{len(aside)} spans are left out that failed before: --retry-quarantined tries again",
            as_json=as_json,
        )
    return [span for span in chosen if span not in aside]


def _give_computed(
    store: "Cache", seal: "Seal", *, num_spans: int, sent: "Sent | None", as_json: bool
) -> None:
    unusable = sum(len(rows) for rows in seal.unusable.values())
    value: dict[str, object] = {
        "id": store.info.id,
        "path": str(store.path),
        "spans_computed": num_spans,
        "views": seal.views,
        "size_bytes": seal.size_bytes,
        "rows_unusable": unusable,
        "fidelity": seal.fidelity.summary(),
    }
    images, absent = store.info.dataset["num_samples"], len(store.missing())
    value["spans_missing"] = absent
    lines: dict[str, object] = {
        "cache": f"{store.path} ({store.info.id[:12]})",
        "computed": f"{num_spans} spans; "
        + (
            f"{absent} spans are missing, left to other slices"
            if absent
            else f"{seal.views} views of {images} images stored"
        ),
        "size": human_bytes(seal.size_bytes),
    }
    if unusable:
        lines["unusable"] = f"{unusable} images, left out"
    if sent is not None:
        value["published"] = published_value(sent)
        lines |= published_lines(sent)
    give(value, as_json=as_json, lines=lines)


def check_engine(
    engine: Engine, *, processes: int | None, address: str | None, device: str
) -> None:
    """Check that the options of engines are those of the engine.

    Raises:
        UsageError: they are not.
    """
    if address is not None and engine is not Engine.ray:
        raise UsageError("--address: is of a Ray cluster; add --engine ray")
    if processes is not None and engine is Engine.inline:
        raise UsageError("--processes: add --engine processes, or --engine ray")
    if engine is Engine.ray and find_spec("ray") is None:
        raise UsageError("--engine ray: Ray is not installed; make ray, or pip install ray")
    of_all = os.environ.get(SETTINGS["--device"])  # which says nothing of Ray's machines
    if device not in ("auto", of_all) and engine is Engine.ray:
        raise UsageError("--device: Ray gives each actor its GPU; leave this out")
