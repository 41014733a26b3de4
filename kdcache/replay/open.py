"""Streams by what the student learns from: replayed views, one target per image, or labels."""

from collections.abc import Sequence

import numpy as np

from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource, dataset_source, matched_source
from kdcache.data.dataset import Dataset
from kdcache.errors import IncompleteError, UsageError
from kdcache.recipe.schema import Recipe
from kdcache.replay.blocks import BlockRenderer
from kdcache.replay.order import Extent
from kdcache.replay.stream import ReplayStream, StreamOptions


def replay_stream(cache: Cache, dataset: Dataset, options: StreamOptions) -> ReplayStream:
    """Return the views that a cache's teacher saw, with their targets.

    dataset: the samples of the cache, in the same tars or others.

    Raises:
        MismatchError: the dataset lacks samples of the cache, or holds other images.
        IncompleteError: views that the epochs need are not computed.
    """
    source = cache_source(cache, dataset, cache.info.recipe)
    num_views = cache.grid.num_views
    epochs = range(min(options.num_epochs, num_views))
    wanted = {(options.first_view + epoch) % num_views for epoch in epochs}
    _check_views(cache, wanted)
    return _stream(source, options, num_views=num_views, targets=cache)


def fixed_stream(
    cache: Cache, dataset: Dataset, options: StreamOptions, *, recipe: Recipe
) -> ReplayStream:
    """Return fresh views of a recipe, each with its sample's one target: view 0 of the cache.

    Raises:
        UsageError: the recipe mixes images, for which one target per image says nothing.
        MismatchError, IncompleteError: as replay_stream.
    """
    if recipe.mix is not None:
        raise UsageError(
            "a fixed teacher has no targets for mixed images; leave [mix] out of the recipe"
        )
    _check_views(cache, {0})
    source = cache_source(cache, dataset, recipe)
    return _stream(source, options, num_views=None, targets=cache, fixed=True)


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


def _check_views(cache: Cache, views: set[int]) -> None:
    runs = {view // cache.grid.span_views for view in views}
    absent = [span for span in cache.missing() if span.run in runs]
    if absent:
        named = sorted({v for s in absent for v in cache.grid.views(s)} & views)
        raise IncompleteError(
            f"{cache.path}: views {_ranges(named)} are not computed for all tars ({len(absent)} "
            f"spans, the first is {absent[0]}); run kdcache precompute again"
        )


def _ranges(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _stream(
    source: BlockSource,
    options: StreamOptions,
    *,
    num_views: int | None,
    targets: Cache | None,
    fixed: bool = False,
    known_bad: dict[int, frozenset[int]] | None = None,
) -> ReplayStream:
    bad = known_bad or {}
    if targets is not None:
        bad = {tar: frozenset(rows) for tar, rows in targets.totals().unusable.items()}
    usable = np.ones(len(source.uids), bool)
    for tar, rows in bad.items():
        usable[source.starts[tar] + np.array(sorted(rows), np.int64)] = False
    extent = Extent(source.starts, source.uids, usable, source.recipe.block)
    renderer = BlockRenderer(source, targets, fixed, bad)
    return ReplayStream(renderer, options, num_views=num_views, extent=extent)
