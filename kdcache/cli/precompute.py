"""kdcache precompute."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give, human_bytes, progress_bar, say
from kdcache.cli.recipe import RECIPE_HELP
from kdcache.errors import UsageError

if TYPE_CHECKING:
    from kdcache.models.teacher import Teacher, Triple


class Precision(StrEnum):
    """How the teacher computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Spec = Annotated[str, typer.Option(help="torchvision:NAME or package.module:factory.")]
Weights = Annotated[
    Path | None, typer.Option(help="Weights: safetensors, or a PyTorch state_dict.")
]
Mean = Annotated[str, typer.Option(help="Mean of the pixels in 0 to 1, by channel.")]
Std = Annotated[str, typer.Option(help="Standard deviation of the pixels, by channel.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]

IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"


def precompute(
    data: Annotated[Path, typer.Option(help="Folder or dataset.json of the images.")],
    teacher: Spec,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP)],
    views: Annotated[int, typer.Option(min=1, max=1_000_000, help="Views of each image.")],
    cache: Annotated[Path, typer.Option(help="Where the cache is, or will be.")],
    weights: Weights = None,
    mean: Mean = IMAGENET_MEAN,
    std: Std = IMAGENET_STD,
    precision: Annotated[Precision, typer.Option()] = Precision.float32,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Views in one call of the teacher.")] = 256,
    encoding: Annotated[
        str | None, typer.Option(help="topk:K, dense:f2 or dense:u1; default: by the classes.")
    ] = None,
    span_views: Annotated[
        int | None, typer.Option(help="Views computed from one decoding; default: up to 8.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")
    ] = False,
    teacher_classes: Annotated[
        int | None,
        typer.Option(min=2, help="Classes of the teacher, if they are not the dataset's labels."),
    ] = None,
    data_licence: Annotated[str | None, typer.Option(help="SPDX expression.")] = None,
    weights_licence: Annotated[str | None, typer.Option(help="SPDX expression.")] = None,
    output_licence: Annotated[str | None, typer.Option(help="SPDX expression.")] = None,
    as_json: Json = False,
) -> None:
    """Run the teacher over all views and store its targets; goes on where it stopped.

    Example:

      kdcache precompute --data build/photos --teacher torchvision:resnet50 --weights resnet50.pth
      --recipe funmatch --views 16 --cache build/cache
    """
    from kdcache.data.blocks import dataset_source
    from kdcache.data.document import load_dataset
    from kdcache.precompute.engines import run_inline
    from kdcache.precompute.prepare import describe_cache, prepare_cache
    from kdcache.precompute.span import Job
    from kdcache.recipe.schema import load_recipe

    dataset, plan = load_dataset(data), load_recipe(recipe)
    network = build_teacher(
        teacher,
        weights,
        num_classes=teacher_classes or dataset.num_classes,
        mean=mean,
        std=std,
        precision=precision,
        device=device,
    )
    info = describe_cache(
        dataset,
        plan,
        teacher=network,
        encoding=encoding,
        licences={"data": data_licence, "weights": weights_licence, "output": output_licence},
        other_classes=teacher_classes is not None,
    )
    store = prepare_cache(cache, info, dataset=dataset, num_views=views, span_views=span_views)
    todo = store.missing()
    say(
        f"cache {store.info.id[:12]}: {len(todo)} spans of {store.grid.span_views} views to do "
        f"on {network.device}",
        as_json=as_json,
    )
    job = Job(dataset_source(dataset, plan), network, store, batch_size, skip_bad)
    images = sum(job.source.num_rows(span.tar) for span in todo)
    written = 0

    def rates(done: int, seconds: float) -> str:
        rate, span = done / seconds, store.grid.span_views
        return f"images, {rate:.1f} images/s, {rate * span:.0f} views/s, {human_bytes(written)}"

    with progress_bar("precompute", images, rates=rates) as advance:

        def count(size_bytes: int) -> None:
            nonlocal written
            written += size_bytes

        try:
            seal = run_inline(job, progress=advance, committed=lambda c: count(c.size_bytes))
        except KeyboardInterrupt:
            say(
                f"stopped; {len(todo) - len(store.missing())} spans more are stored: the same "
                "command goes on from there",
                as_json=as_json,
            )
            raise typer.Exit(130) from None
    unusable = sum(len(rows) for rows in seal.unusable.values())
    value = {
        "id": store.info.id,
        "path": str(cache),
        "spans_computed": len(todo),
        "views": seal.views,
        "size_bytes": seal.size_bytes,
        "rows_unusable": unusable,
        "fidelity": seal.fidelity.summary(),
    }
    lines = {
        "cache": f"{cache} ({store.info.id[:12]})",
        "computed": f"{len(todo)} spans; {seal.views} views of {dataset.num_samples} images stored",
        "size": human_bytes(seal.size_bytes),
    }
    if unusable:
        lines["unusable"] = f"{unusable} images, left out"
    give(value, as_json=as_json, lines=lines)


def triple(text: str, option: str) -> "Triple":
    """Return three comma-separated numbers.

    Raises:
        UsageError: the text holds something else.
    """
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected three numbers, as {IMAGENET_MEAN}") from None
    return first, second, third


def build_teacher(
    spec: str,
    weights: Path | None,
    *,
    num_classes: int | None,
    mean: str,
    std: str,
    precision: Precision,
    device: str,
) -> "Teacher":
    """Return the teacher that the options name."""
    from kdcache.models.teacher import Preprocessing, load_teacher

    preprocessing = Preprocessing(triple(mean, "--mean"), triple(std, "--std"))
    return load_teacher(
        spec,
        weights,
        num_classes=num_classes,
        preprocessing=preprocessing,
        precision=precision.value,
        device=device,
    )
