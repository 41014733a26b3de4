"""From paths and settings to a run: which stream a student learns from, and is measured on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.identity import content_digest
from kdcache.models.specs import open_device
from kdcache.models.teacher import Preprocessing
from kdcache.recipe.schema import Recipe
from kdcache.replay.open import fixed_stream, label_stream, replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.student.config import TrainConfig
from kdcache.student.loop import Run


@dataclass(frozen=True)
class Sources:
    """Where a run's data lie.

    data: folder or dataset.json of the images. cache: targets; None when labels teach. recipe: of
    the views, where they are not the cache's. val_data, val_cache: of validation; val_cache holds
    one view of each image, which the student is measured on.
    """

    data: Path
    cache: Path | None = None
    recipe: Recipe | None = None
    val_data: Path | None = None
    val_cache: Path | None = None


def make_run(
    config: TrainConfig,
    sources: Sources,
    *,
    folder: Path,
    device: str = "cpu",
    max_reuse: float | None = None,
) -> Run:
    """Return the run of these settings over these data, opened and checked.

    max_reuse: greatest number of times that a stored view may be used; None allows any.

    Raises:
        UsageError: settings and data contradict each other.
        MismatchError: data and caches do not belong together.
        IncompleteError: views that the epochs need are not computed.
    """
    dataset = load_dataset(sources.data)
    cache = None if sources.cache is None else open_cache(sources.cache)
    stream = _stream(config, dataset, cache=cache, recipe=sources.recipe)
    reuse = reuse_factor(config, stream)
    if max_reuse is not None and not max_reuse > 0:
        raise UsageError(f"--max-reuse {max_reuse:g}: expected a number above 0")
    if max_reuse is not None and reuse is not None and reuse > max_reuse:
        raise UsageError(
            f"{config.epochs} epochs over {stream.num_views} stored views use each {reuse:g} "
            f"times, more than --max-reuse {max_reuse:g}; precompute more views, or train less"
        )
    num_classes = dataset.num_classes if cache is None else cache.info.num_classes
    if num_classes is None:
        raise UsageError(f"{dataset.root}: has no classes to learn")
    validation, val_ids = _validation(config, sources, num_classes=num_classes)
    return Run(
        config=config,
        preprocessing=_preprocessing(config, cache),
        num_classes=num_classes,
        stream=stream,
        validation=validation,
        folder=folder,
        device=open_device(device),
        provenance={
            "dataset": dataset.id,
            "recipe": stream.recipe.canonical(),
            "cache": None if cache is None else cache.info.id,
            "labels": content_digest(dataset.labels.tobytes())
            if config.learn == "labels"
            else None,
            **val_ids,
        },
    )


def reuse_factor(config: TrainConfig, stream: ReplayStream) -> float | None:
    """Return how often each stored view is used; None where views are fresh."""
    return None if stream.num_views is None else config.epochs / stream.num_views


def _stream(
    config: TrainConfig, dataset: Dataset, *, cache: Cache | None, recipe: Recipe | None
) -> ReplayStream:
    options = StreamOptions(
        batch_size=config.batch_size,
        num_epochs=config.epochs,
        seed=config.seed,
        window=config.window,
        num_workers=config.num_workers,
        first_view=config.first_view,
        views_per_load=config.views_per_load,
    )
    if config.learn == "labels":
        if recipe is None or cache is not None:
            raise UsageError("to learn from labels, give a recipe of the views, and no cache")
        return label_stream(dataset, options, recipe=recipe)
    if cache is None:
        raise UsageError(f"to learn from {config.learn}, give a cache")
    cache.info.encoding.check_temperature(config.temperature)
    if config.learn == "fixed":
        if recipe is None:
            raise UsageError("with a fixed teacher, give a recipe of the student's views")
        return fixed_stream(cache, dataset, options, recipe=recipe)
    if recipe is not None and recipe.id != cache.info.recipe.id:
        raise MismatchError(
            f"{cache.path}: made with recipe {cache.info.recipe.id[:12]}, this run has "
            f"{recipe.id[:12]}; leave --recipe out, the cache holds its own"
        )
    return replay_stream(cache, dataset, options)


def _validation(
    config: TrainConfig, sources: Sources, *, num_classes: int
) -> tuple[Callable[[], ReplayStream] | None, dict[str, Any]]:
    if (sources.val_data is None) != (sources.val_cache is None):
        raise UsageError("validation needs both --val-data and --val-cache")
    if sources.val_data is None or sources.val_cache is None:
        return None, {}
    dataset, cache = load_dataset(sources.val_data), open_cache(sources.val_cache)
    if cache.info.num_classes != num_classes:
        raise MismatchError(
            f"{cache.path}: has targets of {cache.info.num_classes} classes, the student has "
            f"{num_classes}; precompute validation targets with the same teacher"
        )
    options = StreamOptions(
        batch_size=config.batch_size, shuffle=False, num_workers=config.num_workers
    )
    replay_stream(cache, dataset, options)  # fail now, not after the first epoch
    return lambda: replay_stream(cache, dataset, options), {"val_cache": cache.info.id}


def _preprocessing(config: TrainConfig, cache: Cache | None) -> Preprocessing:
    default = Preprocessing()
    if cache is not None:
        teacher = cache.info.teacher
        default = Preprocessing(tuple(teacher["mean"]), tuple(teacher["std"]))
    return Preprocessing(config.mean or default.mean, config.std or default.std)
