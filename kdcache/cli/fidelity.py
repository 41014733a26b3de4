"""kdcache fidelity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kdcache.cli.data import Json
from kdcache.cli.limits import (
    AtTemperature,
    LimitTemperature,
    MaxBytes,
    MaxGradientError,
    MaxKl,
    largest_tar,
    measure_candidates,
    read_budget,
    sample_teacher,
)
from kdcache.cli.output import give, say
from kdcache.cli.places import CACHE_HELP, DATA_HELP, PLACE
from kdcache.cli.recipe import RECIPE_HELP, recipe_names
from kdcache.cli.teachers import (
    Average,
    AverageOption,
    Device,
    Labels,
    Mean,
    OptionalTeachers,
    PrecisionOption,
    Shares,
    Std,
    TeacherClasses,
    Weights,
    teacher_given,
)
from kdcache.errors import UsageError
from kdcache.stores.location import Place, parse_place

if TYPE_CHECKING:
    from kdcache.targets.choice import Budget, Measured

Comparison = tuple["Measured", ...]


def fidelity(
    cache: Annotated[
        str | None,
        typer.Argument(metavar="[CACHE]", help=f"A dense cache {CACHE_HELP}; else a teacher."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar=PLACE, help=DATA_HELP)] = None,
    teacher: OptionalTeachers = None,
    recipe: Annotated[
        str | None, typer.Option(help=RECIPE_HELP, autocompletion=recipe_names)
    ] = None,
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
    samples: Annotated[int, typer.Option(min=1, help="Views to measure on.")] = 1024,
    max_gradient_error: MaxGradientError = None,
    max_kl: MaxKl = None,
    max_bytes: MaxBytes = None,
    temperature: LimitTemperature = AtTemperature.one,
    out: Annotated[Path | None, typer.Option(help="PNG to draw the comparison into.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what encodings cost and lose for a teacher, and choose one by limits.

    A student's gradient is its probabilities less the teacher's. The gradient error is by how much
    stored targets change it, as a share of an untrained student's gradient. Limits on error or KL
    choose the smallest encoding that meets them, one on bytes alone the most faithful.

    Examples:

      kdcache fidelity --data build/photos --teacher torchvision:resnet50 --weights resnet50.pth
      --recipe funmatch --max-gradient-error 1%

      kdcache fidelity build/dense-cache --max-bytes 40 --temperature 2 --out encodings.png
    """
    given = dict(locals())
    from kdcache.cache.store import open_cache
    from kdcache.data.blocks import dataset_source
    from kdcache.data.document import load_dataset
    from kdcache.precompute.prepare import check_classes
    from kdcache.precompute.sample import SAMPLED_VIEWS, stored_logits
    from kdcache.recipe.schema import load_recipe

    budget = read_budget(max_gradient_error, max_kl, max_bytes=max_bytes, temperature=temperature)
    check_picture(out)
    others = {"--data": data, "--teacher": teacher or None, "--recipe": recipe}
    if cache is not None:
        place = parse_place(cache)
        _check_alone(place, {**others, "--weights": weights})
        store = open_cache(place)
        logits_NC, tar_rows = stored_logits(store, num_rows=samples), store.grid.max_rows
    elif data is None or not teacher or recipe is None:
        absent = ", ".join(name for name, value in others.items() if value is None)
        raise UsageError(f"Missing {absent}: give all of {', '.join(others)}, or a dense cache")
    else:
        dataset, plan = load_dataset(parse_place(data)), load_recipe(recipe)
        network = teacher_given(given, dataset.num_classes).load(device)
        check_classes(dataset, plan, teacher=network, other_classes=teacher_classes is not None)
        source = dataset_source(dataset, plan)
        logits_NC = sample_teacher(
            source, network, samples=samples, views=SAMPLED_VIEWS, batch_size=batch_size
        )
        tar_rows = largest_tar(source)
    measured = measure_candidates(logits_NC, tar_rows=tar_rows)
    _conclude(measured, budget, views=len(logits_NC), out=out, as_json=as_json)


def _check_alone(cache: Place, others: dict[str, object]) -> None:
    """Check that a cache is the only source of logits.

    Raises:
        UsageError: options name another one.
    """
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(
            f"{cache} and {', '.join(given)}: two sources of logits; give the cache alone, or "
            "--data, --teacher and --recipe"
        )


def check_picture(out: Path | None) -> None:
    """Check that a PNG can be written there.

    Raises:
        UsageError: it cannot.
    """
    if out is not None and (out.suffix.lower() != ".png" or not out.parent.is_dir()):
        raise UsageError(
            f"--out {out}: expected a name that ends in .png, in a folder that is there"
        )


def _conclude(
    measured: Comparison, budget: "Budget | None", *, views: int, out: Path | None, as_json: bool
) -> None:
    """Print and draw what was measured, and the encoding that meets the budget.

    Raises:
        UsageError: none does; all else is printed and drawn before.
    """
    from kdcache.targets.choice import choose, describe, pareto

    front = pareto(measured)
    chosen: Measured | None = None
    refusal: UsageError | None = None
    if budget is not None:
        try:
            chosen = choose(measured, budget)
        except UsageError as error:
            refusal = error
    if as_json:
        give(_value(measured, front, chosen=chosen, views=views), as_json=True, lines={})
    else:
        _print_table(measured, front, chosen=chosen)
        say(
            f"measured on {views} views. top-1: views whose largest class stays. error: of the "
            "gradient. *: on the front, which no other betters in bytes and in error at T = 1 and "
            "T = 2",
            as_json=False,
        )
        if budget is None:
            say("--max-gradient-error, --max-kl or --max-bytes name the one to use", as_json=False)
    if out is not None:
        from kdcache.files import write_whole
        from kdcache.report.fidelity import draw_comparison

        title = f"Encodings, measured on {views} views"
        write_whole(out, lambda path: draw_comparison(measured, path, title=title, chosen=chosen))
    if refusal is not None:
        raise refusal
    if chosen is not None and budget is not None and not as_json:
        say(f"{describe(chosen, budget)}: {budget.aim} with {budget}", as_json=False)
        say(f"--encoding {chosen.encoding}", as_json=False)


def _value(
    measured: Comparison, front: Comparison, *, chosen: "Measured | None", views: int
) -> dict[str, object]:
    """Return what was measured as JSON values."""
    return {
        "views": views,
        "encodings": [
            {
                "encoding": str(one.encoding),
                "bytes_per_view": one.bytes_per_view,
                **one.fidelity.summary(),
                "front": one in front,
            }
            for one in measured
        ],
        "chosen": None if chosen is None else str(chosen.encoding),
    }


def _print_table(measured: Comparison, front: Comparison, *, chosen: "Measured | None") -> None:
    table = Table(box=None, pad_edge=False, collapse_padding=True)  # 80 columns
    table.add_column("encoding", no_wrap=True)
    for name in ("bytes", "KL T=1", "T=2", "T=4", "top-1", "error T=1", "T=2", "T=4"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for one in measured:
        found = one.fidelity.summary()
        table.add_row(
            str(one.encoding),
            f"{one.bytes_per_view:.1f}",
            *(f"{kl:.2g}" for kl in found["kl_nats"].values()),
            f"{found['top1_agreement']:.1%}",
            *(f"{error:.2%}" for error in found["gradient_error"].values()),
            "*" if one in front else "",
            style="bold" if one is chosen else None,
        )
    Console(highlight=False).print(table)
