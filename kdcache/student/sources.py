"""Where a run's data lie, and what is there: images, targets, and a teacher if it is needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.cache.store import Cache, is_cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.errors import UsageError
from kdcache.models.ensemble import TeacherSpec
from kdcache.models.teacher import Teacher
from kdcache.precompute.prepare import describe_cache, prepare_cache
from kdcache.recipe.schema import Recipe
from kdcache.replay.targets import Targets, join_targets
from kdcache.stores.location import Location, Place
from kdcache.student.config import TrainConfig
from kdcache.student.world import World
from kdcache.targets.combine import Average
from kdcache.targets.labels import LabelMap

REPLAYED = frozenset({"cache", "function-matching", "consistent"})


@dataclass(frozen=True)
class Sources:
    """Where a run's data lie.

    data: folder or dataset.json of the images. cache: targets; None where none are stored. Both may
    be in a store, and are then read in place. joined: caches of other teachers over the same views,
    averaged with it. recipe: of the views, where they are not the cache's. val_data, val_cache,
    val_joined: of validation; val_cache holds one view of each image, which the student is measured
    on; without it, labels are all that it is measured by. shares, average: of the joined caches, as
    join_targets takes them. labels: of the teachers' classes to the student's. init: first weights
    of the student, as far as they fit. teacher: looks at views online, or makes those that the
    cache lacks. views: of the cache that it is to make, where there is none.
    """

    data: Place
    cache: Place | None = None
    recipe: Recipe | None = None
    val_data: Place | None = None
    val_cache: Place | None = None
    init: Path | None = None
    teacher: TeacherSpec | None = None
    views: int | None = None
    joined: tuple[Place, ...] = ()
    val_joined: tuple[Place, ...] = ()
    shares: tuple[float, ...] | None = None
    average: Average = "logits"
    labels: LabelMap | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """What the sources hold. teacher: loaded, if the run needs it."""

    dataset: Dataset
    targets: Targets | None
    teacher: Teacher | None


def open_sources(config: TrainConfig, sources: Sources, world: World) -> Opened:
    """Return what a run of these settings learns from.

    Raises:
        UsageError: settings and data contradict each other.
        MismatchError: data and caches do not belong together.
    """
    dataset = load_dataset(sources.data)
    online, replayed = config.learn == "online", config.learn in REPLAYED
    teacher = None
    if sources.teacher is not None:
        if not online and not (replayed and sources.cache is not None):
            raise UsageError(
                f"--teacher: makes what a cache of views lacks, but there is no --cache, or its "
                f"views are not replayed ({config.learn}); leave it out"
            )
        spec = sources.teacher
        num_classes = spec.num_classes or (dataset.num_classes if spec.labels is None else None)
        teacher = replace(spec, num_classes=num_classes).load(str(world.device))
    elif online:
        raise UsageError("to learn online, give a teacher (--teacher)")
    if sources.cache is None:
        for option, value in (("--labels", sources.labels), ("--weights", sources.shares)):
            if value is not None and teacher is None:
                raise UsageError(f"{option}: is of teachers, and there is none; leave it out")
        return Opened(dataset, None, teacher)
    if online:
        raise UsageError("to learn online, give a recipe of the views, and no cache")
    if teacher is None:
        if sources.views is not None:
            raise UsageError("--views: is of the cache that a --teacher makes; leave it out")
        return Opened(dataset, _join(sources, [sources.cache, *sources.joined]), None)
    if sources.joined:
        raise UsageError(
            "--write-through: fills one cache, found several; fill each with kdcache precompute"
        )
    cache = _written_cache(dataset, teacher, sources)
    return Opened(dataset, join_targets([cache]), teacher)


def _join(sources: Sources, places: Sequence[Place]) -> Targets:
    """Return what caches teach, averaged and mapped as the sources say."""
    return join_targets(
        [open_cache(place) for place in places],
        shares=sources.shares,
        average=sources.average,
        labels=sources.labels,
    )


def _written_cache(dataset: Dataset, teacher: Teacher, sources: Sources) -> Cache:
    """Return the cache that the teacher writes to: the one there, or a new one."""
    assert sources.cache is not None
    path, recipe, views = sources.cache, sources.recipe, sources.views
    if isinstance(path, Location):
        raise UsageError(
            f"{path}: --write-through writes to a cache on this disk; fetch it first with "
            "kdcache fetch"
        )
    encoding = None
    if is_cache(path):
        cache = open_cache(path)
        recipe, encoding = recipe or cache.info.recipe, str(cache.info.encoding)
        views = views or cache.grid.num_views
    if recipe is None or views is None:
        raise UsageError(
            f"{path}: no cache here; to make one while training, give --recipe and --views, too"
        )
    info = describe_cache(
        dataset,
        recipe,
        teacher=teacher,
        encoding=encoding,
        other_classes=sources.teacher is not None and sources.teacher.num_classes is not None,
    )
    return prepare_cache(path, info, dataset=dataset, num_views=views)


def open_val_targets(sources: Sources, num_classes: int) -> Targets:
    """Return the targets of validation: one cache's, or averaged as those of training are."""
    assert sources.val_cache is not None
    caches = [open_cache(place) for place in (sources.val_cache, *sources.val_joined)]
    alike = len(caches) == 1 + len(sources.joined)
    if len(caches) > 1 and not alike:
        raise UsageError(
            f"--val-cache: {len(caches)} of them, --cache: {1 + len(sources.joined)}; give one for "
            "each, in the same order, or one alone"
        )
    info = caches[0].info
    mapped = info.num_classes == num_classes and "labels" in info.teacher
    return join_targets(
        caches,
        shares=sources.shares if alike else None,
        average=sources.average,
        labels=None if mapped else sources.labels,
    )
