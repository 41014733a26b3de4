"""What is read of a cache to show it: a bounded sample of its tiles and commit records.

What is damaged is named and left out, so that the rest can be seen.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.errors import CorruptError, IncompleteError
from kdcache.models.shown import other_names
from kdcache.recipe.plan import draw_view
from kdcache.report.said import NONE, Said, main_labels, what_was_said
from kdcache.targets.fidelity import NO_ROWS, Fidelity

MOST_TILES = 64
MOST_ROWS = 200_000
MOST_RECORDS = 512


@dataclass(frozen=True)
class Totals:
    """What the targets of a cache take and lose. records: of how many spans this is measured.

    size_bytes, views: of these spans. unusable: images without targets in some of them.
    """

    records: int
    size_bytes: int
    views: int
    unusable: int
    fidelity: Fidelity


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample of what is there of a cache. said: None where nothing can be read.

    done: spans that are there. tiles, of_tiles: how many were read, of how many. damage: what
    cannot be read, with the place of each.
    """

    done: frozenset[Span]
    said: Said | None
    tiles: int
    of_tiles: int
    totals: Totals
    damage: tuple[str, ...]


def sample_cache(cache: Cache, source: BlockSource | None, *, seed: int) -> Sample:
    """Return a sample of a cache, drawn by a seed. source: where labels are known, if anywhere."""
    of_grid = set(cache.grid.spans())
    done = frozenset(committed(cache.objects) & of_grid)
    damage = [*cache.problems().values()]
    tiles = _draw_tiles(cache, sorted(done), seed=seed)
    totals = _totals(cache, sorted(done), seed=seed, damage=damage)
    cache.objects.expect({cache.grid.span_of(*tile).commit_name for tile in tiles})
    parts = list(_read(cache, source, tiles, damage))
    return Sample(
        done=done,
        said=Said.joined(parts) if parts else None,
        tiles=len(parts),
        of_tiles=len(done) * cache.grid.span_views,
        totals=totals,
        damage=tuple(dict.fromkeys(damage)),
    )


def _draw_tiles(cache: Cache, done: Sequence[Span], *, seed: int) -> list[tuple[int, int]]:
    """Return tiles as (tar, view), in order: as many as bounds let, one or more of any."""
    if not done:
        return []
    generator, views = np.random.default_rng(seed), cache.grid.span_views
    count = min(len(done) * views, MOST_TILES)
    drawn = generator.choice(len(done) * views, count, replace=False).tolist()
    tiles = [(done[n // views].tar, cache.grid.views(done[n // views])[n % views]) for n in drawn]
    rows = np.cumsum([int(cache.rows[tar]) for tar, _ in tiles])
    return sorted(tiles[: max(int((rows <= MOST_ROWS).sum()), 1)])


def _totals(cache: Cache, done: Sequence[Span], *, seed: int, damage: list[str]) -> Totals:
    """Return the totals of the seal or, without one, of some commit records."""
    try:
        if (seal := cache.valid_seal()) is not None:
            views = int(cache.rows.sum()) * cache.grid.num_views
            unusable = sum(map(len, seal.unusable.values()))
            return Totals(len(done), seal.size_bytes, views, unusable, seal.fidelity)
    except CorruptError as error:
        damage.append(str(error))
    count = min(len(done), MOST_RECORDS)
    drawn = np.random.default_rng(seed).permutation(len(done))[:count]
    spans = [done[n] for n in sorted(drawn.tolist())]
    cache.objects.expect(span.commit_name for span in spans)
    records = size_bytes = views = 0
    fidelity, rows = NO_ROWS, set[tuple[int, int]]()
    for span in spans:
        try:
            commit = cache.commit(span)
        except CorruptError as error:
            damage.append(f"span {span}: {error}")
            continue
        records, size_bytes = records + 1, size_bytes + commit.size_bytes
        views += commit.rows * len(commit.views)
        fidelity += commit.fidelity
        rows.update((span.tar, row) for row in commit.unusable)
    return Totals(records, size_bytes, views, len(rows), fidelity)


def _read(
    cache: Cache,
    source: BlockSource | None,
    tiles: Collection[tuple[int, int]],
    damage: list[str],
) -> Iterator[Said]:
    encoding, num_classes = cache.info.encoding, cache.info.num_classes
    for tar, view in tiles:
        try:
            tile = cache.read_tile(tar, view)
        except (CorruptError, IncompleteError) as error:  # incomplete: withdrawn meanwhile
            damage.append(f"tar {tar}, view {view}: {error}")
            continue
        if not encoding.in_range({n: f.numpy() for n, f in tile.fields.items()}, num_classes):
            damage.append(f"tar {tar}, view {view}: names classes that the teacher has not")
            continue
        rows = np.flatnonzero(tile.usable)
        labels = np.full(len(tile.usable), NONE, np.int64)
        if source is not None and labels_known(cache, source):
            labels = _labels(source, tar, view, usable=tile.usable)
        fields = {name: field[rows] for name, field in tile.fields.items()}
        yield what_was_said(
            encoding.decode(fields, num_classes=num_classes, temperature=1.0),
            tar=tar,
            view=view,
            rows=rows,
            labels=labels[rows],
            num_classes=num_classes,
        )


def labels_known(cache: Cache, source: BlockSource) -> bool:
    """Return whether the labels of images are classes of the teacher."""
    same = source.dataset.num_classes == cache.info.num_classes
    return same and not named_otherwise(cache, source)


def named_otherwise(cache: Cache, source: BlockSource) -> str:
    """Return which of a cache's classes have other names in the dataset; nothing where none has."""
    return other_names(source.dataset.classes, cache.info.classes)


def _labels(
    source: BlockSource, tar: int, view: int, *, usable: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the label of the larger part of each row of a tar in a view, int64."""
    uids = source.uids[source.starts[tar] : source.starts[tar + 1]]
    drawn = draw_view(source.recipe, uids, view=view)
    rows, block = np.arange(len(uids)), source.recipe.block
    partners = rows // block * block + drawn.partners_N
    shares = np.where(usable[partners], drawn.shares(source.recipe.size), 1.0)
    return main_labels(source.labels(tar, slice(0, len(uids))), partners, shares)
