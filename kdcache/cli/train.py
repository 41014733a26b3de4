"""kdcache train."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.keys import RequireSignature, Trusted
from kdcache.cli.output import give, hint, say
from kdcache.cli.places import CACHE_HELP, DATA_HELP, PLACE, cache_places
from kdcache.cli.recipe import RECIPE_HELP, recipe_names
from kdcache.cli.teachers import PANEL as TEACHER
from kdcache.cli.teachers import (
    Average,
    AverageOption,
    Device,
    Labels,
    Mean,
    OptionalTeachers,
    Precision,
    PrecisionOption,
    Std,
    TeacherClasses,
    numbers,
    teacher_given,
    torchvision_names,
    triple,
)
from kdcache.cli.training import describe, next_steps, train_visibly
from kdcache.stores.location import Place, parse_place

if TYPE_CHECKING:
    from kdcache.models.ensemble import TeacherSpec


class Learn(StrEnum):
    """What the student learns from."""

    cache = "cache"
    function_matching = "function-matching"
    consistent = "consistent"
    fixed = "fixed"
    independent = "independent"
    online = "online"
    labels = "labels"


class OptimizerName(StrEnum):
    """Who updates the weights."""

    adamw = "adamw"
    sgd = "sgd"
    muon = "muon"
    soap = "soap"
    shampoo = "shampoo"


class ScheduleName(StrEnum):
    """How the learning rate falls."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Direction(StrEnum):
    """Which way the KL is taken."""

    forward = "forward"
    reverse = "reverse"


Data = Annotated[str, typer.Option(metavar=PLACE, help=DATA_HELP)]
RUN_HELP = (
    "Folder of a run, whose final weights are taken (student.safetensors), or a weights file, as "
    "RUN/best.safetensors."
)
STUDENT_HELP = "torchvision:NAME, timm:NAME, hf:FOLDER or hf:ID, or package.module:factory."
Student = Annotated[
    str, typer.Option(metavar="SPEC", help=STUDENT_HELP, autocompletion=torchvision_names)
]
Channels = Annotated[
    str | None, typer.Option(help="By channel, of pixels in 0 to 1; default: the teacher's.")
]

STEPS, OPTIMISER = "Samples and steps", "Loss and optimiser"
KEEPING, COMPUTING = "Measuring and keeping", "Computing"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def train(
    data: Data,
    student: Student,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    epochs: Annotated[int, typer.Option(help="Epochs; each has another view.")],
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar=PLACE,
            help=f"The teacher's targets, {CACHE_HELP}; several, over the same views, are "
            "averaged.",
        ),
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "--shares",
            help="Of each --cache, or each --teacher, in the mean, as 0.7,0.3; default: equal.",
        ),
    ] = None,
    average: AverageOption = Average.logits,
    labels: Labels = None,
    learn: Annotated[
        Learn,
        typer.Option(
            help="cache: the cached views, whatever their recipe; function-matching, consistent: "
            "the same, if mixed, or not. fixed: one target an image. independent: targets of other "
            "crops. online: the teacher looks at each view. labels: no teacher."
        ),
    ] = Learn.cache,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"Of fresh views (fixed, independent, online, labels). {RECIPE_HELP}",
            autocompletion=recipe_names,
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="First weights, as far as they fit; a weights file.")
    ] = None,
    val_data: Annotated[
        str | None,
        typer.Option(
            metavar=PLACE,
            help="Images to measure on: by their labels, on the central view of each. With "
            "--val-cache by the teacher, too.",
        ),
    ] = None,
    val_cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar=PLACE, help="Their targets: one centre view; of each teacher, or of one."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    batch_size: Annotated[
        int, _option(STEPS, "Samples of a step, over all processes and parts.")
    ] = 256,
    accumulate: Annotated[
        int, _option(STEPS, "Parts in which each process computes its share of a step.")
    ] = 1,
    seed: Annotated[int, _option(STEPS, "Of fresh weights, order, and dropout.")] = 0,
    first_view: Annotated[int, _option(STEPS, "View of the first epoch.")] = 0,
    views_per_load: Annotated[
        int, _option(STEPS, "Views made of an image each time it is decoded; divides --epochs.")
    ] = 1,
    max_reuse: Annotated[
        float | None, _option(STEPS, "Refuse to use stored views more often than this.")
    ] = None,
    window: Annotated[int, _option(STEPS, "Blocks over which views are shuffled.")] = 16,
    lanes: Annotated[
        int | None,
        _option(
            STEPS,
            "Parts of an epoch that processes share out; their number must divide it, and may "
            "change on --resume. Default: near 8.",
        ),
    ] = None,
    temperature: Annotated[float, _option(OPTIMISER, "Of the KL, which is times its square.")] = 1,
    direction: Annotated[
        Direction, _option(OPTIMISER, "KL(teacher || student), or reverse.")
    ] = Direction.forward,
    label_weight: Annotated[
        float, _option(OPTIMISER, "Share of the loss that is the labels' cross-entropy, 0 to 1.")
    ] = 0.0,
    optimizer: Annotated[
        OptimizerName,
        _option(
            OPTIMISER,
            "muon: of matrices and convolutions, AdamW for the rest. soap, shampoo: pip install "
            "'kdcache\\[optim]'.",
        ),
    ] = OptimizerName.adamw,
    learning_rate: Annotated[float, _option(OPTIMISER, "The highest of the schedule.")] = 1e-3,
    weight_decay: Annotated[
        float,
        _option(
            OPTIMISER,
            "Of matrices, not of vectors; decoupled, and times the learning rate, as torch has "
            "it. The paper's code does not multiply by the base rate: divide its value by its "
            "rate (1e-5 at rate 0.001 is 0.01 here).",
        ),
    ] = 0.01,
    momentum: Annotated[float, _option(OPTIMISER, "Of SGD and Muon.")] = 0.9,
    layer_decay: Annotated[
        float, _option(OPTIMISER, "Factor of the learning rate from a layer to the one before.")
    ] = 1.0,
    schedule: Annotated[ScheduleName, _option(OPTIMISER, "After the warm-up.")] = (
        ScheduleName.cosine
    ),
    warmup: Annotated[float, _option(OPTIMISER, "Share of the steps.")] = 0.03,
    clip: Annotated[float, _option(OPTIMISER, "Greatest norm of the gradient.")] = 1.0,
    ema: Annotated[
        float | None,
        _option(OPTIMISER, "Average the weights with this decay; they are measured and kept."),
    ] = None,
    teacher: OptionalTeachers = None,
    teacher_weights: Annotated[
        Path | None, _option(TEACHER, "Weights: safetensors, or a PyTorch state_dict.")
    ] = None,
    write_through: Annotated[
        bool,
        _option(
            TEACHER,
            "With --teacher and --cache: views that the cache lacks are made before the student "
            "needs them, and stored for all who come later.",
            "--write-through",
        ),
    ] = False,
    views: Annotated[
        int | None,
        _option(TEACHER, "With --write-through and --recipe: make a cache of so many views."),
    ] = None,
    teacher_classes: TeacherClasses = None,
    teacher_precision: PrecisionOption = None,
    teacher_mean: Mean = None,
    teacher_std: Std = None,
    mean: Channels = None,
    std: Channels = None,
    eval_every: Annotated[int, _option(KEEPING, "Epochs between measurements.")] = 1,
    save_every: Annotated[int, _option(KEEPING, "Epochs between checkpoints.")] = 1,
    save_steps: Annotated[
        int | None, _option(KEEPING, "Steps between checkpoints within an epoch.")
    ] = None,
    keep: Annotated[int, _option(KEEPING, "Newest checkpoints kept.")] = 2,
    log_steps: Annotated[
        int | None, _option(KEEPING, "Steps between lines of metrics within an epoch.")
    ] = None,
    tensorboard: Annotated[
        bool,
        _option(
            KEEPING,
            "Write metrics for TensorBoard, too: pip install 'kdcache\\[tensorboard]'.",
            "--tensorboard",
        ),
    ] = False,
    num_workers: Annotated[
        int, _option(COMPUTING, "Processes that render, of each process.", "--workers")
    ] = 2,
    precision: Annotated[
        Precision, _option(COMPUTING, "Of the student's arithmetic; its weights are float32.")
    ] = Precision.float32,
    compiled: Annotated[
        bool, _option(COMPUTING, "Run the student through torch.compile.", "--compile")
    ] = False,
    device: Device = "auto",
    require_signature: RequireSignature = False,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Train a student.

    Under torchrun, several processes train it together, with the same samples in each step.

    Examples:

      kdcache train --data build/photos --cache build/cache --student torchvision:resnet18
      --epochs 300 --out build/run

      torchrun --no-python --nproc-per-node 8 kdcache train … --precision bfloat16 --compile
    """
    given = dict(locals())
    from kdcache.recipe.schema import load_recipe
    from kdcache.student.checkpoint import checkpoints
    from kdcache.student.config import TrainConfig, make_config
    from kdcache.student.setup import make_run, reuse_factor
    from kdcache.student.sources import Sources
    from kdcache.student.world import join_world
    from kdcache.targets.labels import load_labels

    given["compile"] = compiled
    given["mean"] = None if mean is None else triple(mean, "--mean")
    given["std"] = None if std is None else triple(std, "--std")
    values = {name: given[name] for name in TrainConfig.model_fields}
    config = make_config(**{n: v.value if isinstance(v, StrEnum) else v for n, v in values.items()})
    caches, val_caches = (
        cache_places(texts, require_signature=require_signature, trusted=trusted)
        for texts in (cache, val_cache)
    )
    spec = _teacher(given, caches)
    plan = None if recipe is None else load_recipe(recipe)
    sources = Sources(
        parse_place(data),
        cache=caches[0] if caches else None,
        recipe=plan,
        val_data=None if val_data is None else parse_place(val_data),
        val_cache=val_caches[0] if val_caches else None,
        init=init,
        teacher=spec,
        views=views,
        joined=tuple(caches[1:]),
        val_joined=tuple(val_caches[1:]),
        shares=None if shares is None else numbers(shares, "--weights"),
        average=average.value,
        labels=None if labels is None else load_labels(labels),
    )
    with join_world(device) as world:

        def tell(text: str) -> None:
            if world.is_first:
                say(text, as_json=as_json)

        run = make_run(config, sources, folder=out, world=world, max_reuse=max_reuse, tell=tell)
        tell(describe(run))
        if resume and (found := checkpoints(out)):
            tell(f"goes on from {found[-1]}")
        last = train_visibly(run, resume=resume, tell=tell, tensorboard=tensorboard)
        if world.is_first:
            value = {"run": str(out), "reuse": reuse_factor(config, run.stream), **last}
            give(value, as_json=as_json, lines={"student": out / "student.safetensors"})
        if world.is_first and not as_json:
            hint(next_steps(run, val_data=val_data, val_caches=val_cache or [], labels=labels))


def _teacher(given: dict[str, Any], caches: list[Place]) -> "TeacherSpec | None":
    """Return how the teacher is loaded; what is not said is as the cache's was.

    Raises:
        UsageError: options of a teacher are given without one.
    """
    from kdcache.cache.store import is_cache, open_cache
    from kdcache.errors import UsageError

    if not given["teacher"]:
        options = ("weights", "classes", "precision", "mean", "std")
        for name in (*(f"teacher_{option}" for option in options), "write_through"):
            if given[name]:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option}: there is no teacher; add --teacher")
        return None
    online = given["learn"] is Learn.online
    if online == given["write_through"]:
        raise UsageError(
            "--teacher: looks at views with --learn online, or makes those that a cache lacks with "
            "--write-through; add one of them"
        )
    place = next(iter(caches), None)
    own = {name: given[f"teacher_{name}"] for name in ("weights", "mean", "std", "precision")}
    like = open_cache(place) if place is not None and is_cache(place) else None
    return teacher_given({**given, **own, "compiled": False}, None, like=like)
