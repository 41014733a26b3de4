"""kdcache export."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give, human_bytes
from kdcache.cli.teachers import triple
from kdcache.cli.train import RUN_HELP, STUDENT_HELP
from kdcache.texts import printable

if TYPE_CHECKING:
    from kdcache.student.agreement import Agreement
    from kdcache.student.trained import Trained

NAMES_SHOWN = 3
_NOTED = "default: as in the weights file."


def export(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    out: Annotated[Path, typer.Argument(help="New file: NAME.pt2 (torch.export) or NAME.onnx.")],
    student: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=f"{STUDENT_HELP} A factory, and hf:…, must be named."),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help=_NOTED)] = None,
    size: Annotated[int | None, typer.Option(help=f"Side of the images; {_NOTED}")] = None,
    mean: Annotated[str | None, typer.Option(help=f"Of pixels in 0 to 1; {_NOTED}")] = None,
    std: Annotated[str | None, typer.Option(help=f"Of pixels in 0 to 1; {_NOTED}")] = None,
    pixels: Annotated[
        bool,
        typer.Option(
            "--pixels/--normalised",
            help="Whether the file takes uint8 pixels, or float32 images normalised before.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a student as one file that runs without kdcache, compared with the student itself.

    Examples:

      kdcache export build/run student.onnx

      kdcache export build/run/best.safetensors best.onnx

      kdcache export build/run student.pt2 --student my.models:tiny
    """
    from kdcache.student.export import export_student
    from kdcache.student.trained import load_trained, make_facts

    given = make_facts(
        student=student,
        num_classes=num_classes,
        size=size,
        mean=None if mean is None else triple(mean, "--mean"),
        std=None if std is None else triple(std, "--std"),
    )
    trained = load_trained(run, given)
    agreement = export_student(trained, out, pixels=pixels, overwrite=overwrite)
    _give(trained, out, agreement, pixels=pixels, as_json=as_json)


def _named(trained: "Trained") -> str:
    """Return how many classes there are, and the names of the first."""
    if trained.classes is None:
        return f"{trained.num_classes}, without names"
    shown = [printable(name) for name in trained.classes[:NAMES_SHOWN]]
    more = ["…"] if trained.num_classes > NAMES_SHOWN else []
    return f"{trained.num_classes} ({', '.join(shown + more)})"


def _give(
    trained: "Trained", out: Path, agreement: "Agreement", *, pixels: bool, as_json: bool
) -> None:
    mean, std, size = trained.preprocessing.mean, trained.preprocessing.std, trained.size
    moved = trained.noted not in (None, trained.spec)
    value = {
        "path": str(out),
        "size_bytes": out.stat().st_size,
        "weights": str(trained.weights),
        "student": trained.spec,
        "trained_as": trained.noted,
        "num_classes": trained.num_classes,
        "classes": trained.classes,
        "size": size,
        "mean": mean,
        "std": std,
        "takes": "pixels" if pixels else "images",
        **asdict(agreement),
    }
    law = f"(x / 255 - mean) / std, mean {mean}, std {std}"
    shape = f"(batch, 3, {size}, {size})"
    lines = {
        "file": f"{out} ({human_bytes(out.stat().st_size)})",
        "weights": trained.weights,
        "student": f"{trained.spec}, trained as {trained.noted}" if moved else trained.spec,
        "takes": f"uint8 pixels {shape}; computes {law}"
        if pixels
        else f"float32 images {shape}, normalised before: {law}",
        "gives": f"float32 logits (batch, {trained.num_classes})",
        "classes": _named(trained),
        "agrees": f"logits within {agreement.max_difference:.2g}, {agreement.relative:.2g} of "
        f"their range; top-1 on {agreement.top1:.0%} of {agreement.images} random images",
    }
    give(value, as_json=as_json, lines=lines)
