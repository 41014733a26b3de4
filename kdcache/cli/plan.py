"""kdcache plan."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.fidelity import check_picture
from kdcache.cli.output import give, human_bytes, say
from kdcache.cli.places import DATA_HELP, PLACE
from kdcache.cli.recipe import RECIPE_HELP, recipe_names
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
    from kdcache.precompute.probe import Probe
    from kdcache.report.plan import Plan, Views, Wishes


def plan(
    data: Annotated[str, typer.Option(metavar=PLACE, help=DATA_HELP)],
    teacher: Teachers,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP, autocompletion=recipe_names)],
    views: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Views of each image.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of a student run, in place of --views.")
    ] = None,
    reuse: Annotated[
        float | None,
        typer.Option(
            help="How often a student run uses each view: epochs over views. Default: 3 times the "
            "root of the epochs as views, which stayed within 0.03 nats of a live teacher on "
            "digits."
        ),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(
            min=1, max=1_000_000, help="GPUs of the job; without one, machines like this."
        ),
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1_000_000,
            help="Processes that render, for each GPU; default: what keeps it busy, as far as the "
            "cores allow.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Student runs to state costs for.")
    ] = 3,
    student_images_per_s: Annotated[
        float | None, typer.Option(min=1e-6, max=1e9, help="Speed of the student on one GPU.")
    ] = None,
    gpu_price: Annotated[float, typer.Option(min=0, max=1e9, help="Price of a GPU's hour.")] = 2.0,
    storage_price: Annotated[
        float, typer.Option(min=0, max=1e9, help="Price of a GB for a month.")
    ] = 0.02,
    months: Annotated[
        float, typer.Option(min=0, max=12_000, help="How long the cache is kept.")
    ] = 12.0,
    weights: Weights = None,
    shares: Shares = None,
    average: AverageOption = Average.logits,
    labels: Labels = None,
    teacher_classes: TeacherClasses = None,
    mean: Mean = None,
    std: Std = None,
    precision: PrecisionOption = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Views in one call of the teacher.")] = 256,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="packed:K, adaptive:E, topk:K, dense:f2 or dense:u1. Default: dense:f2 up to 64 "
            "classes, then packed:32."
        ),
    ] = None,
    span_views: Annotated[
        int | None, typer.Option(help="Views computed from one decoding; default: up to 8.")
    ] = None,
    probe_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds to measure; one block at least.")
    ] = 30.0,
    out: Annotated[Path | None, typer.Option(help="PNG to draw the costs into.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what a view costs here, and say what a cache will: space, time, money, break-even.

    The break-even compares the cache with the teacher running in every step of every student run.
    Prices are in any currency.

    Examples:

      kdcache plan --data build/photos --teacher torchvision:resnet50 --weights resnet50.pth
      --recipe funmatch --epochs 300 --gpus 4

      kdcache plan --data build/photos --teacher torchvision:resnet50 --weights resnet50.pth
      --recipe funmatch --views 16 --gpu-price 3.5 --runs 10 --out plan.png
    """
    given = dict(locals())
    from kdcache.data.document import load_dataset
    from kdcache.recipe.schema import load_recipe

    check_picture(out)
    _check_weights(teacher, weights)
    dataset, loaded = load_dataset(parse_place(data)), load_recipe(recipe)

    from kdcache.data.blocks import dataset_source  # these import torch, which takes seconds
    from kdcache.precompute.prepare import check_classes, default_encoding
    from kdcache.precompute.probe import ProbeOptions, probe_costs
    from kdcache.report.plan import Prices, Wishes, busy_workers, make_plan
    from kdcache.targets.encoding import parse_encoding

    wanted = _read_views(views, epochs, reuse=reuse, span_views=span_views)
    prices = Prices(gpu_price, storage_price, months)
    network = teacher_given(given, dataset.num_classes).load(device)
    num_classes = check_classes(
        dataset, loaded, teacher=network, other_classes=teacher_classes is not None
    )
    kept = parse_encoding(encoding or default_encoding(num_classes), num_classes)
    options = ProbeOptions(kept, num_classes, wanted.span_views, batch_size, probe_s)
    say(f"measuring on {network.device}, for about {probe_s:.0f} s", as_json=as_json)
    probe = probe_costs(dataset_source(dataset, loaded), network, options)
    wishes = Wishes(
        num_images=dataset.num_samples,
        num_tars=len(dataset.tars),
        image_bytes=sum(tar.size_bytes for tar in dataset.tars) / dataset.num_samples,
        views=wanted,
        num_devices=gpus,
        num_workers=busy_workers(probe.costs) if workers is None else workers,
        runs=runs,
        student_images_per_s=student_images_per_s,
        prices=prices,
    )
    found = make_plan(probe.costs, wishes)
    unit = "GPU" if network.device.type == "cuda" else "machine"
    lines = {
        "measured": f"{_time(probe.costs.teacher_s)} of the teacher and "
        f"{_time(probe.costs.render_s)} of a core a view, in {probe.seconds:.0f} s on "
        f"{network.device}",
        **_lines(found, wishes, unit=unit, encoding=str(kept)),
    }
    value = _value(probe, wishes, found, device=str(network.device), encoding=str(kept))
    give(value, as_json=as_json, lines=lines)
    if out is not None:
        from kdcache.files import write_whole
        from kdcache.report.break_even import draw_break_even

        caption = "\n".join(lines[name] for name in ("storage", "time", "prices"))
        write_whole(out, lambda path: draw_break_even(found, path, runs=runs, caption=caption))


def _check_weights(specs: list[str], weights: Path | None) -> None:
    """Refuse early what loading a teacher would refuse after long imports.

    Raises:
        UsageError: there is no such weights file, or a network of torchvision has none.
    """
    if weights is not None and not weights.exists():
        raise UsageError(f"{weights}: no such weights file")
    for spec in specs:
        if weights is None and spec.startswith("torchvision:") and "@" not in spec:
            raise UsageError(
                f"teacher {spec}: without weights it knows nothing; give --weights FILE, or name "
                f"them, as {spec}@FILE"
            )


def _read_views(
    views: int | None, epochs: int | None, *, reuse: float | None, span_views: int | None
) -> "Views":
    """Return the views that the options ask for.

    Raises:
        UsageError: neither views nor epochs are given, or both; or they do not fill spans.
    """
    from kdcache.report.plan import epochs_of_views, views_of_epochs

    if views is not None and epochs is not None:
        raise UsageError(
            f"--views {views} and --epochs {epochs}: each follows from the other by --reuse; give "
            "one of them"
        )
    if views is not None:
        return epochs_of_views(views, reuse=reuse, span_views=span_views)
    if epochs is not None:
        return views_of_epochs(epochs, reuse=reuse, span_views=span_views)
    raise UsageError("Missing --views, or --epochs of a student run: give one of them")


def _time(seconds: float) -> str:
    """Return seconds in us, ms or s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _wall(hours: float) -> str:
    """Return hours as seconds, minutes, hours or days."""
    if hours >= 48:
        return f"{hours / 24:.3g} days"
    for unit, size in (("h", 1.0), ("min", 1 / 60)):
        if hours >= size:
            return f"{hours / size:.3g} {unit}"
    return f"{hours * 3600:.3g} s"


def _lines(found: "Plan", wishes: "Wishes", *, unit: str, encoding: str) -> dict[str, str]:
    """Return the plan for people."""
    from kdcache.report.plan import money

    views, prices, runs = wishes.views, wishes.prices, wishes.runs
    return {
        "views": f"{views.num_views} of each of {wishes.num_images:,} images, in spans of "
        f"{views.span_views}; {views.epochs} epochs use each {views.reuse:.3g} times",
        "storage": f"{human_bytes(found.storage_bytes)} as {encoding}",
        "time": _job(found, wishes, unit),
        "student": _student(found, wishes, unit),
        "prices": f"{prices.device_hour:g} a {unit}-hour, {prices.gb_month:g} a GB and month, for "
        f"{prices.months:g} months",
        "cached": f"{money(found.cached_cost)} once: {money(found.precompute_cost)} to compute, "
        f"{money(found.storage_cost)} to store",
        "online": f"{money(found.online_cost)} in each student run; {runs} runs: "
        f"{money(runs * found.online_cost)}",
        "break-even": _break_even(found.break_even),
    }


def _job(found: "Plan", wishes: "Wishes", unit: str) -> str:
    devices = f"{wishes.num_devices} {unit}{'s' if wishes.num_devices > 1 else ''}"
    workers = f"{wishes.num_workers} worker{'s' if wishes.num_workers > 1 else ''}"
    workers += " each" if wishes.num_devices > 1 else ""
    rendering = workers if wishes.num_workers else "rendering in turn"
    limits = {"teacher": "the teacher", "rendering": "rendering", "cores": "the cores"}
    limits["spans"] = "its few spans: fewer --span-views or images of a tar make more"
    return (
        f"{_number(found.teacher_hours)} {unit}-hours of the teacher; {_wall(found.wall_hours)} on "
        f"{devices} with {rendering}, {_number(found.views_per_s)} views/s, limited by "
        f"{limits[found.limited_by]}"
    )


def _student(found: "Plan", wishes: "Wishes", unit: str) -> str:
    speed = wishes.student_images_per_s
    text = (
        f"reads {_number(found.read_mb_per_s)} MB/s at {_number(speed or 1000)} images/s:"
        f" {human_bytes(wishes.image_bytes)} an image, "
        f"{found.read_bytes - wishes.image_bytes:.1f} B its target"
    )
    if found.student_hours is None:
        return text
    online = found.student_hours + found.online_hours
    return (
        f"{text}; {_number(found.student_hours)} {unit}-hours a run, {_number(online)} with the "
        "teacher"
    )


def _break_even(runs: float | None) -> str:
    if runs is None:
        return "never: at these prices a teacher online costs nothing"
    if runs <= 1:
        return f"{runs:.2g} student runs: the cache is cheaper from the first run on"
    return f"{_number(runs)} student runs: the cache is cheaper from {math.ceil(runs)} runs on"


def _value(
    probe: "Probe", wishes: "Wishes", found: "Plan", *, device: str, encoding: str
) -> dict[str, Any]:
    """Return all of it as JSON values."""
    measured = asdict(probe)
    return {
        "measured": {"device": device, "encoding": encoding, **measured.pop("costs"), **measured},
        "asked": {**asdict(wishes), "reuse": wishes.views.reuse},
        "plan": {**asdict(found), "cached_cost": found.cached_cost},
    }
