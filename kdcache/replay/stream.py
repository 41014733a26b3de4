"""The student's stream: batches in an exact order, with a state to be saved after any of them.

Worker processes render whole blocks; this process shuffles finished views and cuts batches, so that
the order of samples does not depend on the number of workers. Workers run ahead across epochs.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from kdcache.data.ring import Pool, Ring, can_share
from kdcache.data.workers import PREFETCH, load, load_brought, one_ahead
from kdcache.errors import KdcacheError, MismatchError, UsageError
from kdcache.identity import content_digest
from kdcache.recipe.draws import Stream, uniforms
from kdcache.recipe.schema import Recipe
from kdcache.replay.batch import Batch
from kdcache.replay.blocks import BlockRenderer, Request, StreamedBlock
from kdcache.replay.cutter import Cutter
from kdcache.replay.order import Block, EpochOrder, Extent, sequential_order, shuffled_order
from kdcache.stores.ahead import ahead


@dataclass(frozen=True)
class StreamOptions:
    """How samples are ordered and handed over.

    batch_size: samples of a step, over all ranks. num_epochs: epochs that iteration ends after.
    shuffle: False hands over all samples in the order of the tars. window: blocks over which views
    are shuffled. first_view: view of epoch 0; epoch e has view first_view + e, modulo the stored
    views. witness_share: share of the blocks whose pixels are proven, the first block of each tile
    always. rank, world: which process this is, of how many; each hands over its equal share of
    every step. lanes: parts of an epoch that processes share, a divisor of the batch size and a
    multiple of world, by default world; the samples of each step depend on it, and not on world.
    views_per_load: views that are made of an image each time it is read and decoded, for as many
    epochs, whose samples are shuffled together.
    """

    batch_size: int
    num_epochs: int = 1
    seed: int = 0
    shuffle: bool = True
    window: int = 16
    num_workers: int = 0
    first_view: int = 0
    witness_share: float = 1.0
    rank: int = 0
    world: int = 1
    lanes: int | None = None
    views_per_load: int = 1

    def __post_init__(self) -> None:
        for name, least, most in (
            ("batch_size", 1, None),
            ("num_epochs", 0, None),
            ("seed", 0, 2**64 - 1),
            ("window", 0, None),
            ("num_workers", 0, None),
            ("first_view", 0, None),
            ("witness_share", 0, 1),
            ("world", 1, None),
            ("rank", 0, self.world - 1),
            ("views_per_load", 1, None),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                upper = "or more" if most is None else f"to {most}"
                raise UsageError(f"{name} is {value}, expected {least} {upper}")
        if self.views_per_load > 1 and not self.shuffle:
            raise UsageError(
                f"views_per_load is {self.views_per_load}, expected 1 for a stream not shuffled"
            )
        if self.shuffle:
            self._check_shares()
        if self.num_epochs % self.views_per_load:
            raise UsageError(
                f"views_per_load is {self.views_per_load}, expected a divisor of the "
                f"{self.num_epochs} epochs"
            )

    def _check_shares(self) -> None:
        lanes = self.num_lanes
        if lanes < 1 or lanes % self.world:
            raise UsageError(
                f"lanes is {lanes}, expected a multiple of the {self.world} processes, "
                "which share them"
            )
        if self.batch_size % lanes:
            raise UsageError(
                f"batch_size is {self.batch_size}, expected a multiple of the {lanes} lanes of a "
                "step"
            )

    @property
    def num_lanes(self) -> int:
        """Return the parts that an epoch has."""
        return self.world if self.lanes is None else self.lanes

    @property
    def rank_batch_size(self) -> int:
        """Return the samples of a step that this process hands over, at most."""
        return -(-self.batch_size // self.world)


class ReplayStream(IterableDataset[Batch]):
    """Batches of replayed views; iterate it directly, it runs its own workers.

    Iteration goes on from the state, and the state moves with each batch. Beside workers, a thread
    cuts the next batch while one is used.
    """

    def __init__(
        self,
        renderer: BlockRenderer,
        options: StreamOptions,
        *,
        num_views: int | None,
        extent: Extent,
        before: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        """before: is given the views of each load before any of them is read."""
        self.options = options
        self._before = before
        self.num_views = num_views
        self._renderer = renderer
        self._extent = extent
        self._epoch, self._batch = 0, 0
        self._format = None if renderer.targets is None else renderer.targets.format
        self.batches_per_epoch = self._order(0).num_batches // options.views_per_load
        if self.batches_per_epoch == 0 and (options.shuffle or not extent.usable.any()):
            raise UsageError(
                f"batch size {options.batch_size}: an epoch has {self.num_samples} usable samples "
                f"for {options.num_lanes} lanes, which fill no batch; {self._fitting()}"
            )

    def _fitting(self) -> str:
        """Return which options would fill a batch."""
        o, count = self.options, self.num_samples
        lanes = o.num_lanes if count >= o.num_lanes else o.world
        if count < lanes:
            return "give more samples, or fewer processes"
        also = "" if lanes == o.num_lanes else f" --lanes {lanes}"
        less = f", or a smaller multiple of {lanes}" if lanes > 1 else " or less"
        return f"give --batch-size {count // lanes * lanes}{also}{less}"

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the views."""
        return self._renderer.source.recipe

    @property
    def num_samples(self) -> int:
        """Return the usable samples of an epoch, over all ranks."""
        return int(self._extent.usable.sum())

    @property
    def labels_match(self) -> bool:
        """Return whether the dataset's labels are the classes of the targets."""
        classes = self._renderer.source.dataset.num_classes
        return self._format is None or classes == self._format.num_classes

    def view(self, epoch: int) -> int:
        """Return the view that an epoch hands over, or where an epoch of this number begins.

        With several views a load, each of as many epochs hands over some of all their views.
        """
        view = self.options.first_view + epoch
        return view if self.num_views is None else view % self.num_views

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: epoch, batches of it handed over, and what it streams.

        All ranks stand at the same place, and go on from it whatever their number is by then.
        """
        return {"epoch": self._epoch, "batch": self._batch, "stream": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            MismatchError: the state is of a stream with other samples, views or order.
        """
        ours, theirs = self._identity(), state.get("stream", {})
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing:
            raise MismatchError(
                f"the saved state is of a stream with other {', '.join(differing)}; resume with "
                "the same data, cache and options"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]

    def _identity(self) -> dict[str, Any]:
        o, targets, source = self.options, self._renderer.targets, self._renderer.source
        samples = np.stack((source.uids, source.dataset.contents[source.places]))
        samples = samples[:, self._extent.usable]
        return {
            "recipe": self.recipe.id,
            "cache": None if targets is None else targets.id,
            "views": self.num_views,
            "samples": f"{content_digest(samples.tobytes()):016x}",
            "seed": o.seed,
            "shuffle": o.shuffle,
            "window": o.window,
            "first view": o.first_view,
            "batch size": o.batch_size,
            "lanes": o.num_lanes,
            "views per load": o.views_per_load,
        }

    def _order(self, load: int) -> EpochOrder:
        o = self.options
        if not o.shuffle:
            return sequential_order(
                self._extent, batch_size=o.rank_batch_size, rank=o.rank, world=o.world
            )
        return shuffled_order(
            self._extent,
            seed=o.seed,
            epoch=load,
            batch_size=o.batch_size,
            window=o.window,
            views=o.views_per_load,
            lanes=o.num_lanes,
            rank=o.rank,
            world=o.world,
        )

    def _views(self, load: int) -> tuple[int, ...]:
        """Return the views of a load: one for each of its epochs."""
        count = self.options.views_per_load
        return tuple(self.view(epoch) for epoch in range(load * count, (load + 1) * count))

    def _place(self) -> tuple[int, int]:
        """Return the load that the state is in, and the batches of it handed over."""
        load, epoch = divmod(self._epoch, self.options.views_per_load)
        return load, epoch * self.batches_per_epoch + self._batch

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise UsageError(
                "this stream runs its own workers: iterate it directly, or give DataLoader "
                "num_workers=0, and set StreamOptions.num_workers"
            )
        process = os.getpid()
        batches = self._batches()
        if self.options.num_workers and self._before is None:
            batches = one_ahead(batches)
        for done, batch in batches:
            self._epoch, self._batch = divmod(done, self.batches_per_epoch)
            yield batch
            if os.getpid() != process:
                raise UsageError(
                    "this stream was begun by another process, which its workers serve; "
                    "iterate it anew after forking"
                )

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield the batches from the state on, each with the number of those handed over by it."""
        first, skip = self._place()
        shares, pool = can_share() or not self.options.num_workers, Pool()
        ring = Ring(self._ring_shape()) if shares else None
        loaded = self._load(self._all_requests(first, skip), ring)
        for number_of_load in range(first, self.options.num_epochs // self.options.views_per_load):
            order = self._order(number_of_load)
            start = skip if number_of_load == first else 0
            size = self.options.rank_batch_size
            cutter = Cutter(order, size, start=start, loaded=loaded, ring=ring, pool=pool)
            for number in range(start, order.num_batches):
                arrays = cutter.cut(number)
                batch = self._finish(arrays, order, load=number_of_load, number=number)
                yield number_of_load * order.num_batches + number + 1, batch

    def _load(
        self, requests: Iterator[Request], ring: Ring | None
    ) -> Iterator[StreamedBlock | KdcacheError]:
        """Return the blocks of requests, each with a slot of the ring if one is free then."""
        renderer, o = replace(self._renderer, ring=ring), self.options

        def slotted(request: Request) -> Request:
            return request._replace(slot=None if ring is None else ring.take())

        if not renderer.stages:
            asked = map(slotted, requests)
            return load(renderer, asked, num_workers=o.num_workers, forked=ring is not None)
        brought = ((slotted(r), error) for r, error in ahead(requests, renderer.stages))
        return load_brought(renderer, brought, num_workers=o.num_workers, forked=ring is not None)

    @property
    def memory_bytes(self) -> int:
        """Return the most memory that rendered blocks take, of this process and its workers."""
        return math.prod(self._ring_shape())

    def _ring_shape(self) -> tuple[int, ...]:
        """Return slots for all blocks held, and a slot's shape.

        Held are, of each lane, those of its window and of its part of a batch, and one that it has
        in common with the next lane; beside them, those on the way.
        """
        o, recipe = self.options, self.recipe
        lanes = o.num_lanes // o.world if o.shuffle else 1
        window = math.ceil(o.window / o.num_lanes) if o.shuffle else 0
        held = window + -(-o.rank_batch_size // lanes // recipe.block) + (1 if lanes == 1 else 2)
        slots = lanes * held + max(PREFETCH * o.num_workers, 1)
        return slots, o.views_per_load, recipe.block, recipe.size, recipe.size, 3

    def _all_requests(self, load: int, batch: int) -> Iterator[Request]:
        """Yield the requests from one batch of one load on."""
        for number in range(load, self.options.num_epochs // self.options.views_per_load):
            if self._before is not None:
                self._before(self._views(number))
            yield from self.requests(number, batch if number == load else 0)

    def requests(self, load: int, start: int) -> Iterator[Request]:
        """Yield the blocks that a load's batches from `start` on need, in the order of use."""
        order, share, views = self._order(load), self.options.witness_share, self._views(load)
        for position in order.positions(start * self.options.rank_batch_size):
            block = order.blocks[position]
            prove = block.start == 0 or share == 1 or self._is_drawn(block, load)
            yield Request(block, views, prove)

    def _is_drawn(self, block: Block, load: int) -> bool:
        """Return whether a block is among those whose pixels are proven."""
        name = np.array([block.tar << 32 | block.start], np.uint64)
        drawn = uniforms(self.options.seed, name, view=load, count=1, stream=Stream.WITNESS)
        return bool(drawn[0, 0] < self.options.witness_share)

    def _finish(
        self, arrays: dict[str, Any], order: EpochOrder, *, load: int, number: int
    ) -> Batch:
        size = self.options.rank_batch_size
        slots = slice(number * size, (number + 1) * size)
        blocks_N3 = np.array([order.blocks[p] for p in order.block_M[slots]])
        return Batch(
            **arrays,
            tars=torch.from_numpy(blocks_N3[:, 0]),
            rows=torch.from_numpy(blocks_N3[:, 1] + order.row_M[slots]),
            views=torch.from_numpy(np.array(self._views(load))[order.view_M[slots]]),
            format=self._format,
        )
