"""kdcache teacher check."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give, say
from kdcache.cli.places import DATA_HELP, PLACE
from kdcache.cli.recipe import RECIPE_HELP, recipe_names
from kdcache.cli.teachers import (
    SPEC_HELP,
    Average,
    AverageOption,
    Device,
    Labels,
    Mean,
    PrecisionOption,
    Shares,
    Std,
    TeacherClasses,
    Weights,
    teacher_given,
)
from kdcache.stores.location import parse_place

if TYPE_CHECKING:
    from kdcache.models.teacher import Teacher
    from kdcache.report.teachers import Measure, TeacherReport

app = typer.Typer(no_args_is_help=True, help="Look at teachers before a cache is made of them.")
NAMES_SHOWN = 3


@app.callback()
def root() -> None:
    """Look at teachers before a cache is made of them."""


@app.command()
def check(
    teacher: Annotated[
        list[str], typer.Argument(metavar="SPEC", help=f"{SPEC_HELP}. Several are averaged.")
    ],
    data: Annotated[str, typer.Option(metavar=PLACE, help=f"Images to measure on. {DATA_HELP}")],
    recipe: Annotated[
        str | None,
        typer.Option(help=f"What it is to be shown. {RECIPE_HELP}", autocompletion=recipe_names),
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
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one call.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Images to measure on, at most.")] = 1000,
    workers: Annotated[int, typer.Option(min=0, help="Processes that render.")] = 0,
    as_json: Json = False,
) -> None:
    """Load a teacher and say what it is, how fast and how good it is on labelled images.

    Says where a recipe shows it other images than it was made for.

    Examples:

      kdcache teacher check timm:resnet50.a1_in1k --data build/val --recipe funmatch

      kdcache teacher check torchvision:resnet50@resnet50.pth --data build/val --samples 5000
    """
    given = dict(locals())
    from kdcache.data.document import load_dataset
    from kdcache.recipe.schema import load_recipe
    from kdcache.report.teachers import CheckOptions, report_teacher

    dataset = load_dataset(parse_place(data))
    plan = None if recipe is None else load_recipe(recipe)
    network = teacher_given(given, dataset.num_classes).load(device)
    report = report_teacher(network, dataset, plan, CheckOptions(batch_size, samples, workers))
    lines = _lines(network, report)
    if mean is None and network.takes == "images" and network.inputs.mean is None:
        lines["normalises"] = f"{network.preprocessing}, a guess: its source does not say"
    if plan is not None and report.shown is None:
        lines["as shown"] = "the same" if report.refused is None else "fails"
    give(_value(network, report), as_json=as_json, lines=lines)
    for sentence in report.warnings:
        say(f"warning: {sentence}", as_json=as_json)


def _value(teacher: "Teacher", report: "TeacherReport") -> dict[str, Any]:
    measures = {name: getattr(report, name) for name in ("own", "shown")}
    return {
        **teacher.description,
        "takes": teacher.takes,
        "inputs": asdict(teacher.inputs),
        "licence": teacher.licence,
        "device": str(teacher.device),
        "num_classes": report.num_classes,
        "classes": None if teacher.classes is None else list(teacher.classes),
        "steadiness": report.steadiness.to_dict(),
        "batch_size": report.batch_size,
        "images_per_s": report.images_per_s,
        "measures": {
            name: None
            if measure is None
            else {
                "size": measure.size,
                "resize": measure.resize,
                "crop": measure.crop,
                **measure.score.to_dict(),
            }
            for name, measure in measures.items()
        },
        "refused": report.refused,
        "warnings": list(report.warnings),
    }


def _lines(teacher: "Teacher", report: "TeacherReport") -> dict[str, object]:
    names, inputs = teacher.classes, teacher.inputs
    more = ", …" if len(names or ()) > NAMES_SHOWN else ""
    shown = "" if names is None else f": {', '.join(names[:NAMES_SHOWN])}{more}"
    itself = teacher.takes == "pixels" and not teacher.parts.keys() & {"members", "labels"}
    said = {
        "size": inputs.size,
        "crop": None if inputs.crop is None else f"{inputs.crop:.3g}",
        "interpolation": inputs.interpolation,
    }
    known = ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)
    lines: dict[str, object] = {
        "teacher": teacher.spec,
        "fingerprint": teacher.description["id"],
        "weights": teacher.weights_id[:12],
        "made for": known or "its source does not say",
        "normalises": "itself" if itself else f"{teacher.preprocessing}",
        "licence": teacher.licence or "its source does not say",
        "classes": f"{report.num_classes}{shown}",
        "precision": f"{teacher.precision} on {teacher.device}",
        "steadiness": report.steadiness,
        "speed": f"{report.images_per_s:,.1f} images/s of {report.size} pixels in batches of "
        f"{report.batch_size}",
        "accuracy": _accuracy(report.own),
    }
    if report.shown is not None:
        lines["as shown"] = _accuracy(report.shown)
    return lines


def _accuracy(measure: "Measure") -> str:
    score = measure.score
    how = (
        f"on {score.samples} images, the central {measure.crop:.3g} at {measure.size} pixels "
        f"({measure.resize})"
    )
    if score.top1 is None:
        return f"not measured: no labels of its classes ({how})"
    top5 = "" if score.top5 is None else f", top-5 {score.top5:.2%}"
    return f"top-1 {score.top1:.2%}{top5}, calibration error {score.calibration_error:.3f} {how}"
