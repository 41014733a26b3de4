"""kdcache train."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give, say
from kdcache.cli.precompute import Device, triple
from kdcache.cli.recipe import RECIPE_HELP


class Learn(StrEnum):
    """What the student learns from."""

    cache = "cache"
    fixed = "fixed"
    labels = "labels"


class StudentPrecision(StrEnum):
    """How the student computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Data = Annotated[Path, typer.Option(help="Folder or dataset.json of the images.")]
Student = Annotated[str, typer.Option(help="torchvision:NAME or package.module:factory.")]
Channels = Annotated[
    str | None, typer.Option(help="By channel, of pixels in 0 to 1; default: the teacher's.")
]


def train(
    data: Data,
    student: Student,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    epochs: Annotated[int, typer.Option(help="Epochs; each has another view.")],
    cache: Annotated[Path | None, typer.Option(help="The teacher's targets.")] = None,
    learn: Annotated[
        Learn, typer.Option(help="Replayed views, one fixed target an image, or labels.")
    ] = Learn.cache,
    recipe: Annotated[
        str | None, typer.Option(help=f"For --learn fixed and labels. {RECIPE_HELP}")
    ] = None,
    val_data: Annotated[Path | None, typer.Option(help="Images to measure on.")] = None,
    val_cache: Annotated[Path | None, typer.Option(help="Their targets: one centre view.")] = None,
    batch_size: Annotated[int, typer.Option()] = 256,
    learning_rate: Annotated[float, typer.Option(help="Highest rate of AdamW.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of matrices, not of vectors.")] = 0.01,
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.03,
    clip: Annotated[float, typer.Option(help="Greatest norm of the gradient.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of the KL.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of fresh weights and order.")] = 0,
    num_workers: Annotated[int, typer.Option("--workers", help="Processes that render.")] = 2,
    window: Annotated[int, typer.Option(help="Blocks over which views are shuffled.")] = 16,
    first_view: Annotated[int, typer.Option(help="View of the first epoch.")] = 0,
    views_per_load: Annotated[
        int, typer.Option(help="Views made of an image each time it is decoded; divides --epochs.")
    ] = 1,
    precision: Annotated[StudentPrecision, typer.Option()] = StudentPrecision.float32,
    device: Device = "auto",
    mean: Channels = None,
    std: Channels = None,
    eval_every: Annotated[int, typer.Option(help="Epochs between measurements.")] = 1,
    save_every: Annotated[int, typer.Option(help="Epochs between checkpoints.")] = 1,
    max_reuse: Annotated[
        float | None, typer.Option(help="Refuse to use stored views more often than this.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a student.

    Example:

      kdcache train --data build/photos --cache build/cache --student torchvision:resnet18
      --epochs 300 --out build/run
    """
    from kdcache.recipe.schema import load_recipe
    from kdcache.student.config import make_config
    from kdcache.student.loop import train as train_student
    from kdcache.student.setup import Sources, make_run, reuse_factor

    config = make_config(
        student=student,
        learn=learn.value,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        temperature=temperature,
        seed=seed,
        num_workers=num_workers,
        window=window,
        first_view=first_view,
        views_per_load=views_per_load,
        precision=precision.value,
        mean=None if mean is None else triple(mean, "--mean"),
        std=None if std is None else triple(std, "--std"),
        eval_every=eval_every,
        save_every=save_every,
    )
    plan = None if recipe is None else load_recipe(recipe)
    sources = Sources(data, cache, plan, val_data, val_cache)
    run = make_run(config, sources, folder=out, device=device, max_reuse=max_reuse)
    reuse = reuse_factor(config, run.stream)
    if reuse is None:
        views = "fresh views"
    elif reuse <= 1:
        views = f"{epochs} of {run.stream.num_views} stored views, each used once"
    else:
        views = f"{run.stream.num_views} stored views, each used {reuse:.3g} times"
    say(
        f"{epochs} epochs of {run.stream.num_samples} samples on {run.device}; {views}; at most "
        f"{run.stream.memory_bytes / 2**20:,.0f} MiB of rendered blocks",
        as_json=as_json,
    )
    last: dict[str, Any] = {}

    def report(metrics: dict[str, Any]) -> None:
        last.clear()
        last.update(metrics)
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in metrics.items()
            if name != "epoch"
        )
        say(f"epoch {metrics['epoch']}/{epochs}: {shown}", as_json=as_json)

    try:
        train_student(run, resume=resume, report=report)
    except KeyboardInterrupt:
        say(f"stopped; go on from {out} with --resume", as_json=as_json)
        raise typer.Exit(130) from None
    value = {"run": str(out), "reuse": reuse, **last}
    give(value, as_json=as_json, lines={"student": out / "student.safetensors"})
