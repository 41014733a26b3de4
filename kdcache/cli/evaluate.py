"""kdcache eval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.keys import RequireSignature, Trusted
from kdcache.cli.output import give, say
from kdcache.cli.places import CACHE_HELP, PLACE, cache_places
from kdcache.cli.teachers import Average, Device, Labels, numbers, triple
from kdcache.cli.train import STUDENT_HELP, Channels, Data
from kdcache.stores.location import parse_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdcache.student.classes import ClassTable

SHOWN = 5  # classes at each end


def evaluate(
    weights: Annotated[
        Path, typer.Argument(help="The student's weights, or the folder of its run.")
    ],
    data: Data,
    cache: Annotated[
        list[str],
        typer.Option(
            metavar=PLACE,
            help=f"Targets of one centre view of the images, {CACHE_HELP}; several are averaged.",
        ),
    ],
    shares: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "--shares",
            help="Of each --cache in the mean, as 0.7,0.3; default: as the run's, or equal.",
        ),
    ] = None,
    average: Annotated[
        Average | None, typer.Option(help="What their mean is of; default: as the run was taught.")
    ] = None,
    labels: Labels = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"{STUDENT_HELP} Default: the torchvision or timm model named in the weights "
            "file.",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the measures of each class.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one call of the student.")] = 256,
    num_workers: Annotated[int, typer.Option("--workers", help="Processes that render.")] = 2,
    device: Device = "auto",
    mean: Channels = None,
    std: Channels = None,
    require_signature: RequireSignature = False,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Measure a student: top-1, top-5, calibration, KL to the teacher and agreement with it.

    Examples:

      kdcache eval build/run --data build/val --cache build/val-cache --classes classes.csv

      kdcache eval build/run/student.safetensors --student package.module:factory
      --data build/val --cache build/val-cache
    """
    from kdcache.cache.store import open_cache
    from kdcache.data.classes import check_labels
    from kdcache.data.document import load_dataset
    from kdcache.errors import MismatchError
    from kdcache.models.running import open_device
    from kdcache.replay.open import replay_stream
    from kdcache.replay.stream import StreamOptions
    from kdcache.replay.targets import join_targets
    from kdcache.student.classes import write_classes
    from kdcache.student.metrics import evaluate as measure
    from kdcache.student.trained import load_trained, make_facts
    from kdcache.targets.labels import load_labels

    places = cache_places(cache, require_signature=require_signature, trusted=trusted)
    taught = _joined(weights, num_caches=len(cache))
    targets = join_targets(
        [open_cache(place) for place in places],
        shares=taught.get("shares") if shares is None else numbers(shares, "--weights"),
        average=taught.get("average", "logits") if average is None else average.value,
        labels=None if labels is None else load_labels(labels),
    )
    dataset, info = load_dataset(parse_place(data)), targets.first.info
    num_classes = targets.format.num_classes
    given = make_facts(
        student=student,
        size=info.recipe.size,
        mean=None if mean is None else triple(mean, "--mean"),
        std=None if std is None else triple(std, "--std"),
    )
    teacher = {"mean": tuple(info.teacher["mean"]), "std": tuple(info.teacher["std"])}
    trained = load_trained(weights, given, fallback=make_facts(num_classes=num_classes, **teacher))
    if trained.num_classes != num_classes:
        raise MismatchError(
            f"{targets.first.place}: has targets of {num_classes} classes, the student has "
            f"{trained.num_classes}; precompute validation targets with its teacher, or give the "
            "--labels that it was trained with"
        )
    check_labels(dataset, trained.classes, whose=str(weights))
    options = StreamOptions(batch_size=batch_size, shuffle=False, num_workers=num_workers)
    stream = replay_stream(targets, dataset, options)
    place = open_device(device)
    network = trained.network.to(place)
    score = measure(network, stream, preprocessing=trained.preprocessing, device=place)
    table, names = score.classes, dataset.classes if stream.labels_match else None
    assert table is not None  # a cache has targets
    shown = {name: value for name, value in score.to_dict().items() if value is not None}
    lines = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in shown.items()}
    give(score.to_dict(), as_json=as_json, lines=lines | extremes(table, names))
    if not stream.labels_match:
        say(
            f"top-1 is not measured: the labels are of {dataset.num_classes or 'no'} classes, the "
            f"targets of {num_classes}",
            as_json=as_json,
        )
    if classes is not None:
        write_classes(table, classes, names=names)


def _joined(run: Path, *, num_caches: int) -> dict[str, Any]:
    """Return how a run's caches were joined, if they were as many."""
    from kdcache.student.folder import read_config

    found = (read_config(run) or {}).get("joined", {}) if run.is_dir() else {}
    return found if num_caches > 1 and len(found.get("caches", [])) == num_caches else {}


def extremes(table: "ClassTable", names: "Sequence[str] | None") -> dict[str, str]:
    """Return lines on the worst and the best classes; none where there are few."""
    if len(table.classes) <= 2 * SHOWN:
        return {}
    measure, values = table.quality
    texts = [
        f"{table.classes[row] if names is None else names[table.classes[row]]} {values[row]:.2f}"
        for row in table.worst_first()
    ]
    return {
        f"worst {measure}": ", ".join(texts[:SHOWN]),
        f"best {measure}": ", ".join(texts[: -SHOWN - 1 : -1]),
    }
