"""Streams by what the student learns from: replayed views, others' targets, or none."""

from collections.abc import Callable, Sequence

import numpy as np

from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource, dataset_source, matched_source
from kdcache.data.dataset import Dataset
from kdcache.errors import IncompleteError, MismatchError, UsageError
from kdcache.identity import content_digest
from kdcache.recipe.schema import Recipe, central_recipe
from kdcache.replay.blocks import BlockRenderer, Pairing
from kdcache.replay.order import Extent
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.replay.targets import Targets, join_targets


def replay_stream(
    cache: Cache | Targets,
    dataset: Dataset,
    options: StreamOptions,
    *,
    supply: Callable[[tuple[int, ...]], None] | None = None,
) -> ReplayStream:
    """Return the views that a cache's teacher saw, with their targets.

    cache: one, or several whose targets are joined (join_targets).
    dataset: the samples of the cache, in the same tars or others. supply: computes views that are
    missing, and is given the views of each load before they are read; None asks for all of them.

    Raises:
        MismatchError: the dataset lacks samples of the cache, or holds other images.
        IncompleteError: views that the epochs need are not computed.
    """
    targets = _joined(cache)
    source = cache_source(targets.first, dataset, targets.first.info.recipe)
    if supply is None:
        _check_views(targets, _wanted(targets, options))
    num_views = targets.num_views
    return _stream(source, options, num_views=num_views, targets=targets, before=supply)


def fixed_stream(
    cache: Cache | Targets, dataset: Dataset, options: StreamOptions, *, recipe: Recipe
) -> ReplayStream:
    """Return fresh views of a recipe, each with its sample's one target: view 0 of the cache.

    Raises:
        UsageError: the cache or the recipe mixes images; one target per image says nothing of them.
        MismatchError, IncompleteError: as replay_stream.
    """
    targets = _joined(cache)
    for mixing in (targets.first.info.recipe, recipe):
        _check_unmixed(mixing, "a fixed teacher")
    _check_views(targets, {0})
    source = cache_source(targets.first, dataset, recipe)
    return _stream(source, options, num_views=None, targets=targets, pairing="fixed")


def independent_stream(
    cache: Cache | Targets,
    dataset: Dataset,
    options: StreamOptions,
    *,
    recipe: Recipe | None = None,
) -> ReplayStream:
    """Return fresh views, each with the target of another view of its sample.

    The paper's "independent noise": teacher and student see the same image, but each its own crop.
    recipe: of the student's views; None takes the cache's. Where its seed is the cache's, another
    is derived from it, since equal seeds are equal views.

    Raises:
        UsageError: the cache or the recipe mixes images.
        MismatchError, IncompleteError: as replay_stream.

    Source: Beyer et al. 2022, section 3.2, arXiv:2106.05237.
    """
    targets = _joined(cache)
    stored = targets.first.info.recipe
    own = stored if recipe is None else recipe
    for mixing in (stored, own):
        _check_unmixed(mixing, "independent noise")
    if own.seed == stored.seed:
        own = own.model_copy(
            update={"seed": content_digest(f"independent {own.seed}".encode()) >> 1}
        )
    _check_views(targets, _wanted(targets, options))
    source = cache_source(targets.first, dataset, own)
    return _stream(source, options, num_views=None, targets=targets, pairing="independent")


def fresh_stream(dataset: Dataset, options: StreamOptions, *, recipe: Recipe) -> ReplayStream:
    """Return fresh views of a recipe without targets, for a teacher who looks at them himself."""
    return _stream(dataset_source(dataset, recipe), options, num_views=None, targets=None)


def label_stream(
    dataset: Dataset,
    options: StreamOptions,
    *,
    recipe: Recipe,
    known_bad: dict[int, frozenset[int]] | None = None,
) -> ReplayStream:
    """Return fresh views of a recipe with labels alone. known_bad: rows to leave out, by tar.

    Raises:
        UsageError: samples have no label.
    """
    unlabelled = int((dataset.labels < 0).sum())
    if unlabelled:
        raise UsageError(
            f"{dataset.root}: {unlabelled} of {dataset.num_samples} samples have no label, so "
            "labels alone cannot teach; learn from a cache"
        )
    source = dataset_source(dataset, recipe)
    return _stream(source, options, num_views=None, targets=None, known_bad=known_bad)


def central_stream(
    dataset: Dataset, options: StreamOptions, *, size: int, num_classes: int
) -> ReplayStream:
    """Return the central view of each image with its label, which a student is measured on.

    num_classes: the student's.

    Raises:
        MismatchError: there are no labels, or they are of other classes.
    """
    if dataset.num_classes != num_classes or not (dataset.labels >= 0).any():
        raise MismatchError(
            f"{dataset.root}: has labels of {dataset.num_classes or 'no'} classes, the student has "
            f"{num_classes}, and there is no other measure without a cache of its teacher's "
            "targets for these images; add one"
        )
    return fresh_stream(dataset, options, recipe=central_recipe(size))


def cache_source(cache: Cache, dataset: Dataset, recipe: Recipe) -> BlockSource:
    """Return the blocks of a cache's tars, wherever the dataset holds their samples.

    Raises:
        MismatchError: the dataset lacks samples of the cache, or holds other images.
    """
    if cache.info.dataset["id"] == dataset.id:
        return dataset_source(dataset, recipe)
    tars = range(cache.grid.num_tars)
    return matched_source(
        dataset,
        recipe,
        uids=[cache.uids(tar) for tar in tars],
        contents=[cache.contents(tar) for tar in tars],
    )


def _joined(cache: Cache | Targets) -> Targets:
    return cache if isinstance(cache, Targets) else join_targets([cache])


def _check_unmixed(recipe: Recipe, what: str) -> None:
    if recipe.mix is not None:
        raise UsageError(
            f"{what} has no targets for mixed images; take a recipe without [mix], for the cache "
            "and for the student"
        )


def _wanted(targets: Targets, options: StreamOptions) -> set[int]:
    num_views = targets.num_views
    epochs = range(min(options.num_epochs, num_views))
    return {(options.first_view + epoch) % num_views for epoch in epochs}


def _check_views(targets: Targets, views: set[int]) -> None:
    for cache in targets.caches:
        runs = {view // cache.grid.span_views for view in views}
        absent = [span for span in cache.missing() if span.run in runs]
        if absent:
            named = sorted({v for s in absent for v in cache.grid.views(s)} & views)
            raise IncompleteError(
                f"{cache.place}: views {_ranges(named)} are not computed for all tars "
                f"({len(absent)} spans, the first is {absent[0]}); run kdcache precompute again"
            )


def _ranges(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _stream(
    source: BlockSource,
    options: StreamOptions,
    *,
    num_views: int | None,
    targets: Targets | None,
    pairing: Pairing = "replayed",
    known_bad: dict[int, frozenset[int]] | None = None,
    before: Callable[[tuple[int, ...]], None] | None = None,
) -> ReplayStream:
    bad = known_bad or {}
    if targets is not None:
        bad = targets.unusable()
    usable = np.ones(len(source.uids), bool)
    for tar, rows in bad.items():
        usable[source.starts[tar] + np.array(sorted(rows), np.int64)] = False
    extent = Extent(source.starts, source.uids, usable, source.recipe.block)
    renderer = BlockRenderer(source, targets, pairing, bad)
    return ReplayStream(renderer, options, num_views=num_views, extent=extent, before=before)
