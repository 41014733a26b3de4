"""From paths and settings to a run: what a student learns from, and is measured on.

What `learn` names, after the paper (Beyer et al. 2022, arXiv:2106.05237, section 3.2):

    cache               the cached views, whatever their recipe
    function-matching   the cached views, which must be mixed
    consistent          the cached views, which must not be
    fixed               fresh views, each with the target of its image's first cached view
    independent         fresh views, each with the target of another cached view of its image
    online              fresh views, each looked at by the teacher itself
    labels              fresh views with their labels, no teacher
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from kdcache.cache.store import Cache
from kdcache.data.blocks import dataset_source
from kdcache.data.classes import check_labels, check_order
from kdcache.data.document import load_dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.identity import content_digest
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing
from kdcache.models.weights import load_matching
from kdcache.precompute.span import Job
from kdcache.processes import StopRequest
from kdcache.recipe.schema import Recipe
from kdcache.replay.formats import JoinedFormat
from kdcache.replay.open import (
    central_stream,
    fixed_stream,
    fresh_stream,
    independent_stream,
    label_stream,
    replay_stream,
)
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.student.config import TrainConfig, usual_lanes
from kdcache.student.folder import read_config
from kdcache.student.objective import Objective
from kdcache.student.run import Run
from kdcache.student.sources import Opened, Sources, open_sources, open_val_targets
from kdcache.student.supply import Supplier
from kdcache.student.world import World, alone_on

TEACHER_BATCH = 256  # as precompute's


def make_run(
    config: TrainConfig,
    sources: Sources,
    *,
    folder: Path,
    world: World | None = None,
    max_reuse: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Run:
    """Return the run of these settings over these data, opened and checked.

    world: the processes that train; None is this one on the CPU. max_reuse: greatest number of
    times that a stored view may be used; None allows any. tell: given lines for people, on first
    weights that do not fit and on views that are made.

    Raises:
        UsageError: settings and data contradict each other.
        MismatchError: data and caches do not belong together.
        IncompleteError: views that the epochs need are not computed.
    """
    world, stop = world or alone_on("cpu"), StopRequest()
    config = _settle(config, folder, world)
    opened = open_sources(config, sources, world)
    stream = _stream(config, sources, opened=opened, world=world, stop=stop, tell=tell)
    _check_reuse(config, stream, max_reuse=max_reuse)
    num_classes = _num_classes(config, opened, stream)
    classes = _classes(config, sources, opened=opened, num_classes=num_classes)
    measured = _validation(
        config,
        sources,
        classes=classes,
        like=str(sources.data) if classes == opened.dataset.classes else None,
        num_classes=num_classes,
        size=stream.recipe.size,
        world=world,
    )
    if measured.size not in (None, stream.recipe.size):
        tell(
            f"{sources.val_cache}: the student is measured at {measured.size} pixels and learns at "
            f"{stream.recipe.size}; if that is not meant, make one of a recipe of that size"
        )
    online = config.learn == "online"
    return Run(
        config=config,
        network=lambda: _first_network(config, sources, num_classes, tell),
        objective=Objective(config, opened.teacher if online else None),
        preprocessing=_preprocessing(config, opened),
        num_classes=num_classes,
        stream=stream,
        validation=measured.open_stream,
        class_names=measured.class_names,
        classes=classes,
        folder=folder,
        world=world,
        provenance=_provenance(config, sources, opened=opened, stream=stream) | dict(measured.ids),
        stop=stop,
    )


def reuse_factor(config: TrainConfig, stream: ReplayStream) -> float | None:
    """Return how often each stored view is used; None where views are fresh."""
    return None if stream.num_views is None else config.epochs / stream.num_views


def _settle(config: TrainConfig, folder: Path, world: World) -> TrainConfig:
    """Return the settings with lanes: those given, those of the run there, or the usual ones."""
    lanes = config.lanes
    if lanes is None:
        found = read_config(folder) or {}
        same = found.get("batch_size") == config.batch_size
        lanes = found.get("lanes") if same else usual_lanes(config.batch_size, world.size)
    share = config.batch_size // world.size
    if config.accumulate > share:
        raise UsageError(
            f"--accumulate {config.accumulate}: each of {world.size} processes has {share} samples "
            "of a step, which make no more parts"
        )
    return config.model_copy(update={"lanes": lanes})


def _check_reuse(config: TrainConfig, stream: ReplayStream, *, max_reuse: float | None) -> None:
    reuse = reuse_factor(config, stream)
    if max_reuse is not None and not max_reuse > 0:
        raise UsageError(f"--max-reuse {max_reuse:g}: expected a number above 0")
    if max_reuse is not None and reuse is not None and reuse > max_reuse:
        raise UsageError(
            f"{config.epochs} epochs over {stream.num_views} stored views use each {reuse:g} "
            f"times, more than --max-reuse {max_reuse:g}; precompute more views, or train less"
        )


def _num_classes(config: TrainConfig, opened: Opened, stream: ReplayStream) -> int:
    dataset, targets, teacher = opened.dataset, opened.targets, opened.teacher
    num_classes = dataset.num_classes
    if targets is not None:
        num_classes = targets.format.num_classes
    elif teacher is not None:
        num_classes = teacher.num_classes(stream.recipe.size)
    if num_classes is None:
        raise UsageError(f"{dataset.root}: has no classes to learn")
    if config.label_weight > 0:
        if config.learn == "labels":
            raise UsageError("--label-weight: the labels are all of the loss; leave this out")
        if dataset.num_classes != num_classes:
            raise UsageError(
                f"--label-weight: the dataset has {dataset.num_classes or 'no'} classes, the "
                f"teacher {num_classes}: its labels mean something else; leave this out"
            )
        if unlabelled := int((dataset.labels < 0).sum()):
            raise UsageError(f"--label-weight: {unlabelled} samples have no label; leave this out")
    return num_classes


def _classes(
    config: TrainConfig, sources: Sources, *, opened: Opened, num_classes: int
) -> tuple[str, ...] | None:
    """Return the names of the student's classes: of --labels, the cache, or the training data.

    What a student's outputs mean is what its targets mean; a cache may be of other classes than
    the labels of its images (--teacher-classes), or from before these were relabelled. That counts
    only where labels are learned beside targets.
    """
    dataset, targets = opened.dataset, opened.targets
    mapped = None if sources.labels is None else sources.labels.classes
    taught = None if targets is None else targets.first.info.classes
    if config.label_weight > 0 and targets is not None:
        check_order(
            dataset,
            mapped or taught,
            whose=str(targets.first.place) if mapped is None else "--labels",
            advice="leave --label-weight out, or give the labels these numbers",
        )
    names = mapped or (dataset.classes if targets is None else taught)
    return names if names is not None and len(names) == num_classes else None


def _first_network(
    config: TrainConfig, sources: Sources, num_classes: int, tell: Callable[[str], None]
) -> nn.Module:
    network = build_network(config.student, num_classes=num_classes)
    if sources.init is not None and (left := load_matching(network, sources.init)):
        tell(f"{sources.init}: {left}; the rest of the student starts from it")
    return network


# --- what is learned from ------------------------------------------------------------------


def _stream(
    config: TrainConfig,
    sources: Sources,
    *,
    opened: Opened,
    world: World,
    stop: StopRequest,
    tell: Callable[[str], None],
) -> ReplayStream:
    options = StreamOptions(
        batch_size=config.batch_size,
        num_epochs=config.epochs,
        seed=config.seed,
        window=config.window,
        num_workers=config.num_workers,
        first_view=config.first_view,
        views_per_load=config.views_per_load,
        rank=world.rank,
        world=world.size,
        lanes=config.lanes,
    )
    dataset, targets, recipe = opened.dataset, opened.targets, sources.recipe
    if config.learn in ("labels", "online"):
        if recipe is None or targets is not None:
            raise UsageError(f"to learn {_from(config)}, give a recipe of the views, and no cache")
        if config.learn == "online" and recipe.teacher is not None:
            raise UsageError(
                "to learn online, teacher and student see the same pixels; take a recipe without "
                "[teacher], or a cache (kdcache precompute, or --write-through)"
            )
        if config.learn == "online":
            return fresh_stream(dataset, options, recipe=recipe)
        return label_stream(dataset, options, recipe=recipe)
    if targets is None:
        raise UsageError(f"to learn {_from(config)}, give a cache")
    targets.format.check_temperature(config.temperature)
    if config.learn == "fixed":
        if recipe is None:
            raise UsageError("with a fixed teacher, give a recipe of the student's views")
        return fixed_stream(targets, dataset, options, recipe=recipe)
    if config.learn == "independent":
        return independent_stream(targets, dataset, options, recipe=recipe)
    cache, supply = targets.first, None
    _check_recipe(config, cache, recipe)
    if opened.teacher is not None:
        source = dataset_source(dataset, cache.info.recipe)
        batch = TEACHER_BATCH
        job = Job(source, opened.teacher, cache, batch, False, config.num_workers)
        supply = Supplier(job, world, stop, tell)
    return replay_stream(targets, dataset, options, supply=supply)


def _from(config: TrainConfig) -> str:
    return "online" if config.learn == "online" else f"from {config.learn}"


def _check_recipe(config: TrainConfig, cache: Cache, recipe: Recipe | None) -> None:
    own = cache.info.recipe
    if recipe is not None and recipe.id != own.id:
        raise MismatchError(
            f"{cache.place}: made with recipe {own.id[:12]}, this run has {recipe.id[:12]}; leave "
            "--recipe out, the cache holds its own"
        )
    if (config.learn == "function-matching") > (own.mix is not None):
        raise MismatchError(
            f"{cache.place}: its views are not mixed, as function matching asks for; learn "
            "consistent, or take a cache of a recipe with [mix]"
        )
    if (config.learn == "consistent") and own.mix is not None:
        raise MismatchError(
            f"{cache.place}: its views are mixed: learn function-matching, or take a cache of a "
            "recipe without [mix]"
        )


# --- what it is measured on ----------------------------------------------------------------


class _Measured(NamedTuple):
    """What a student is measured on, if on anything. size: of a cache's images, in pixels."""

    open_stream: Callable[[], ReplayStream] | None = None
    class_names: tuple[str, ...] | None = None
    ids: Mapping[str, Any] = MappingProxyType({})
    size: int | None = None


def _validation(
    config: TrainConfig,
    sources: Sources,
    *,
    classes: tuple[str, ...] | None,
    like: str | None,
    num_classes: int,
    size: int,
    world: World,
) -> _Measured:
    """Return what the student of these classes is measured on. like: data with their names."""
    if sources.val_data is None:
        if sources.val_cache is not None:
            raise UsageError("--val-cache: holds targets of images; name them, too (--val-data)")
        return _Measured()
    dataset = load_dataset(sources.val_data)
    check_labels(dataset, classes, whose="the student", like=like)
    options = StreamOptions(
        batch_size=config.batch_size,
        shuffle=False,
        num_workers=config.num_workers,
        rank=world.rank,
        world=world.size,
    )
    # Streams are opened here, too, so as to fail now, not after the first epoch.
    if sources.val_cache is None:
        opened = partial(central_stream, dataset, options, size=size, num_classes=num_classes)
        opened()
        return _Measured(opened, dataset.classes, {"val_data": dataset.id})
    targets = open_val_targets(sources, num_classes)
    if targets.format.num_classes != num_classes:
        raise MismatchError(
            f"{targets.first.place}: has targets of {targets.format.num_classes} classes, the "
            f"student has {num_classes}; precompute validation targets with the same teacher"
        )
    stream = replay_stream(targets, dataset, options)
    return _Measured(
        lambda: replay_stream(targets, dataset, options),
        dataset.classes if stream.labels_match else None,
        {"val_cache": targets.id},
        stream.recipe.size,
    )


# --- what goes with it ---------------------------------------------------------------------


def _preprocessing(config: TrainConfig, opened: Opened) -> Preprocessing:
    default = Preprocessing()
    if opened.targets is not None:
        teacher = opened.targets.first.info.teacher
        default = Preprocessing(tuple(teacher["mean"]), tuple(teacher["std"]))
    elif opened.teacher is not None:
        default = opened.teacher.preprocessing
    return Preprocessing(config.mean or default.mean, config.std or default.std)


def _provenance(
    config: TrainConfig, sources: Sources, *, opened: Opened, stream: ReplayStream
) -> dict[str, Any]:
    """Return the ids of what the run learns from."""
    targets, dataset, taught = opened.targets, opened.dataset, None
    joined: dict[str, Any] = {}
    if targets is not None:
        teachers = [cache.info.teacher for cache in targets.caches]
        taught = {name: teachers[0][name] for name in ("id", "spec")}
        if isinstance(targets.format, JoinedFormat):
            mapping = targets.format.mapping
            joined = {
                "caches": [cache.info.id for cache in targets.caches],
                "teachers": [{name: t[name] for name in ("id", "spec")} for t in teachers],
                "shares": list(targets.format.shares),
                "average": targets.format.average,
                "classes": None if mapping is None else list(mapping.classes),
                "mapping": None if mapping is None else mapping.id,
            }
    elif opened.teacher is not None:
        taught = {name: opened.teacher.description[name] for name in ("id", "spec")}
    with_labels = config.learn == "labels" or config.label_weight > 0
    return {
        "dataset": dataset.id,
        "recipe": stream.recipe.canonical(),
        "cache": None if targets is None else targets.id,
        "teacher": taught,
        **({"joined": joined} if joined else {}),
        "labels": content_digest(dataset.labels.tobytes()) if with_labels else None,
        "init": None if sources.init is None else _file_digest(sources.init),
    }


def _file_digest(path: Path) -> str:
    try:
        return f"{content_digest(path.read_bytes()):016x}"
    except OSError as error:
        raise UsageError(
            f"{path}: no weights to start from: {error.strerror}; save a network's state_dict "
            "there, or leave --init out"
        ) from error
