"""What targets are read from: a cache, or several whose students see the same views.

Teachers are averaged when read, so that one can be added later without the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.store import Cache, Tile
from kdcache.errors import MismatchError, UsageError
from kdcache.identity import digest
from kdcache.replay.formats import JoinedFormat, TargetFormat, field_name
from kdcache.targets.combine import Average, check_shares
from kdcache.targets.labels import LabelMap, Mapping, resolve

TILES_KEPT = 64  # more than lanes and views of a load at once need


@dataclass(frozen=True, eq=False)
class Targets:
    """Caches of equal images, views and classes, and how their targets become one."""

    caches: tuple[Cache, ...]
    format: TargetFormat | JoinedFormat

    @property
    def first(self) -> Cache:
        """Return the cache whose recipe and teacher's normalisation are the student's."""
        return self.caches[0]

    @property
    def id(self) -> str:
        """Return the cache's id or, of several or mapped ones, what they and their use make."""
        if isinstance(self.format, TargetFormat):
            return self.first.info.id
        mapping = self.format.mapping
        parts = {
            "caches": [cache.info.id for cache in self.caches],
            "shares": self.format.shares,
            "average": self.format.average,
            "labels": None if mapping is None else mapping.id,
        }
        return digest(parts)

    @property
    def num_views(self) -> int:
        """Return the views that all of them have."""
        return min(cache.grid.num_views for cache in self.caches)

    def read(self, tar: int, view: int) -> Tile:
        """Return the targets of a tar in a view; a row is usable if it is in all caches.

        Raises:
            IncompleteError: a tile is not computed.
            CorruptError: its bytes are damaged.
        """
        return _read(self, tar, view)

    def unusable(self) -> dict[int, frozenset[int]]:
        """Return the rows without targets in some view of some cache, by tar."""
        found: dict[int, frozenset[int]] = {}
        for cache in self.caches:
            for tar, rows in cache.totals().unusable.items():
                found[tar] = found.get(tar, frozenset()).union(rows)
        return found


@lru_cache(maxsize=TILES_KEPT)
def _read(targets: Targets, tar: int, view: int) -> Tile:
    tiles = [cache.read_tile(tar, view) for cache in targets.caches]
    if isinstance(targets.format, TargetFormat):
        return tiles[0]
    fields = {
        field_name(number, name): field
        for number, tile in enumerate(tiles)
        for name, field in tile.fields.items()
    }
    usable: NDArray[np.bool_] = np.logical_and.reduce([tile.usable for tile in tiles])
    return Tile(fields, usable)


def join_targets(
    caches: Sequence[Cache],
    *,
    shares: Sequence[float] | None = None,
    average: Average = "logits",
    labels: LabelMap | None = None,
) -> Targets:
    """Return the targets of one cache, or of several averaged, in the student's classes.

    shares: of each cache in the mean; None gives each the same. average: what the mean is of;
    that of logits is that of log-probabilities. labels: of the teachers' classes to the student's.

    Raises:
        MismatchError: the caches are of other images, views or classes than the first.
        UsageError: shares or labels do not serve.
    """
    first, *others = caches
    for other in others:
        _check_alike(first, other)
    if shares is not None and not others:
        raise UsageError("--weights: are of several caches, found one; leave them out")
    weights = check_shares(shares, len(caches))
    mapping = None if labels is None else _resolve(labels, first)
    parts = tuple(TargetFormat(c.info.encoding, c.info.num_classes) for c in caches)
    if mapping is None and not others:
        return Targets((first,), parts[0])
    return Targets(tuple(caches), JoinedFormat(parts, weights, average, mapping))


def _resolve(labels: LabelMap, cache: Cache) -> Mapping:
    info, source = cache.info, f"{labels.file}, for {cache.place}"
    if info.teacher.get("labels") == labels.id:
        raise UsageError(f"{source}: its targets are mapped by it already; leave --labels out")
    return resolve(labels, num_classes=info.num_classes, names=info.classes, source=source)


def _check_alike(first: Cache, other: Cache) -> None:
    """Check that students of two caches see the same views of the same images, and classes."""
    ours, theirs = first.info, other.info
    pairs = {
        "dataset": (ours.dataset["id"], theirs.dataset["id"]),
        "recipe of the student's views": (ours.recipe.student_id, theirs.recipe.student_id),
        "number of classes": (str(ours.num_classes), str(theirs.num_classes)),
    }
    if ours.classes is not None and theirs.classes is not None:
        pairs["names of classes"] = (digest(ours.classes), digest(theirs.classes))
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise MismatchError(
                f"{other.place}: its {name} is {expected[:12]}, that of {first.place} is "
                f"{found[:12]}; only caches of the same images, views and classes are averaged"
            )
