"""kdcache eval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.keys import RequireSignature, Trusted
from kdcache.cli.output import give, say
from kdcache.cli.places import CACHE_HELP, PLACE, cache_places
from kdcache.cli.teachers import Average, Device, Labels, numbers, triple
from kdcache.cli.train import RUN_HELP, STUDENT_HELP, Channels, Data
from kdcache.cli.training import TAUGHT, teacher_words
from kdcache.stores.location import parse_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdcache.replay.targets import Targets
    from kdcache.student.classes import ClassTable

SHOWN = 5  # classes at each end


def evaluate(
    weights: Annotated[Path, typer.Argument(help=RUN_HELP)],
    data: Data,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar=PLACE,
            help=f"Targets of one centre view of the images, {CACHE_HELP}; several are averaged. "
            "Without it, labels alone measure, on the central view.",
        ),
    ] = None,
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
    size: Annotated[
        int | None,
        typer.Option(help="Side of the images without --cache; default: as in the weights file."),
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
    """Measure a student: top-1, top-5, calibration; by a cache, KL to the teacher and agreement.

    The teacher's own top-1 and top-5, by its targets of the same images, stand beside.

    Examples:

      kdcache eval build/run --data build/val

      kdcache eval build/run --data build/val --cache build/val-cache --classes classes.csv

      kdcache eval build/run/best.safetensors --student package.module:factory
      --data build/val --cache build/val-cache
    """
    given = dict(locals())
    from kdcache.data.classes import check_labels
    from kdcache.data.document import load_dataset
    from kdcache.errors import MismatchError
    from kdcache.models.running import open_device
    from kdcache.replay.open import central_stream, replay_stream
    from kdcache.replay.stream import StreamOptions
    from kdcache.student.classes import write_classes
    from kdcache.student.metrics import evaluate as measure
    from kdcache.student.trained import load_trained, make_facts

    targets = _targets(given)
    dataset = load_dataset(parse_place(data))
    facts = make_facts(
        student=student,
        size=size if targets is None else targets.first.info.recipe.size,
        mean=None if mean is None else triple(mean, "--mean"),
        std=None if std is None else triple(std, "--std"),
    )
    fallback: dict[str, Any] = {"num_classes": dataset.num_classes}
    if targets is not None:
        taught = targets.first.info.teacher
        fallback = {name: tuple(taught[name]) for name in ("mean", "std")}
        fallback["num_classes"] = targets.format.num_classes
    trained = load_trained(weights, facts, fallback=make_facts(**fallback))
    num_classes = trained.num_classes
    check_labels(dataset, trained.classes, whose=str(weights))
    options = StreamOptions(batch_size=batch_size, shuffle=False, num_workers=num_workers)
    if targets is None:
        stream = central_stream(dataset, options, size=trained.size, num_classes=num_classes)
    elif targets.format.num_classes == num_classes:
        stream = replay_stream(targets, dataset, options)
    else:
        raise MismatchError(
            f"{targets.first.place}: has targets of {targets.format.num_classes} classes, the "
            f"student has {num_classes}; precompute validation targets with its teacher, or give "
            "the --labels that it was trained with"
        )
    place = open_device(device)
    network = trained.network.to(place)
    score = measure(network, stream, preprocessing=trained.preprocessing, device=place)
    table, names = score.classes, dataset.classes if stream.labels_match else None
    assert table is not None  # there are targets, or labels
    found = score.to_dict()
    own = {name: v for name, v in found.items() if v is not None and name not in TAUGHT}
    lines = {k: f"{v:z.4f}" if isinstance(v, float) else v for k, v in own.items()}
    if (words := teacher_words(found)) is not None:
        lines["teacher"] = words
    give(found, as_json=as_json, lines=lines | extremes(table, names))
    if not stream.labels_match:
        say(
            f"top-1 is not measured: the labels are of {dataset.num_classes or 'no'} classes, the "
            f"targets of {num_classes}",
            as_json=as_json,
        )
    if classes is not None:
        write_classes(table, classes, names=names)


def _targets(given: dict[str, Any]) -> "Targets | None":
    """Return the targets that options name, averaged and mapped as they say; None without a cache.

    Raises:
        UsageError: options contradict each other.
    """
    from kdcache.cache.store import open_cache
    from kdcache.errors import UsageError
    from kdcache.replay.targets import join_targets
    from kdcache.targets.labels import load_labels

    cache, shares, average, labels = (
        given[name] for name in ("cache", "shares", "average", "labels")
    )
    if not cache:
        for option, value in (("weights", shares), ("average", average), ("labels", labels)):
            if value is not None:
                raise UsageError(f"--{option}: is of a cache's targets, and there is no --cache")
        return None
    if given["size"] is not None:
        raise UsageError("--size: is that of the cache's views; leave it out")
    places = cache_places(
        cache, require_signature=given["require_signature"], trusted=given["trusted"]
    )
    taught = _joined(given["weights"], num_caches=len(cache))
    return join_targets(
        [open_cache(place) for place in places],
        shares=taught.get("shares") if shares is None else numbers(shares, "--weights"),
        average=taught.get("average", "logits") if average is None else average.value,
        labels=None if labels is None else load_labels(labels),
    )


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
