"""The student's stream: batches in an exact order, with a state to be saved after any of them.

Worker processes render whole blocks; this process shuffles finished views and cuts batches, so that
the order of samples does not depend on the number of workers. Workers run ahead across epochs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from kdcache.errors import KdcacheError, MismatchError, UsageError
from kdcache.identity import content_digest
from kdcache.recipe.draws import Stream, uniforms
from kdcache.recipe.schema import Recipe
from kdcache.replay.batch import Batch, TargetFormat
from kdcache.replay.blocks import BlockRenderer, Request, StreamedBlock, gather
from kdcache.replay.order import EpochOrder, Extent, sequential_order, shuffled_order

PREFETCH = 4


@dataclass(frozen=True)
class StreamOptions:
    """How samples are ordered and handed over.

    num_epochs: epochs that iteration ends after. shuffle: False hands over all samples in the order
    of the tars. window: blocks over which views are shuffled. first_view: view of epoch 0; epoch e
    has view first_view + e, modulo the stored views. witness_share: share of the blocks whose
    pixels are proven, the first block of each tile always. rank, world: which share of each epoch
    is handed over.
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
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                upper = "or more" if most is None else f"to {most}"
                raise UsageError(f"{name} is {value}, expected {least} {upper}")
        if self.world > 1 and not self.shuffle:
            raise UsageError(f"world is {self.world}, expected 1 for a stream that is not shuffled")


class ReplayStream(IterableDataset[Batch]):
    """Batches of replayed views; iterate it directly, it runs its own workers.

    Iteration goes on from the state, and the state moves with each batch.
    """

    def __init__(
        self,
        renderer: BlockRenderer,
        options: StreamOptions,
        *,
        num_views: int | None,
        extent: Extent,
    ) -> None:
        self.options = options
        self.num_views = num_views
        self._renderer = renderer
        self._extent = extent
        self._epoch, self._batch = 0, 0
        self._format = None
        if renderer.targets is not None:
            info = renderer.targets.info
            self._format = TargetFormat(info.encoding, info.num_classes)
        self.batches_per_epoch = self._order(0).num_batches
        if self.batches_per_epoch == 0:
            raise UsageError(
                f"batch size {options.batch_size}: an epoch has {int(extent.usable.sum())} usable "
                f"samples for {options.world} ranks, which fill no batch; use a smaller one "
                "(--batch-size)"
            )

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
        """Return the view that an epoch hands over."""
        view = self.options.first_view + epoch
        return view if self.num_views is None else view % self.num_views

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: epoch, batches of it handed over, and what it streams."""
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
            "cache": None if targets is None else targets.info.id,
            "views": self.num_views,
            "samples": f"{content_digest(samples.tobytes()):016x}",
            "seed": o.seed,
            "shuffle": o.shuffle,
            "window": o.window,
            "first view": o.first_view,
            "batch size": o.batch_size,
            "rank": o.rank,
            "world": o.world,
        }

    def _order(self, epoch: int) -> EpochOrder:
        o = self.options
        if not o.shuffle:
            return sequential_order(self._extent, batch_size=o.batch_size)
        return shuffled_order(
            self._extent,
            seed=o.seed,
            epoch=epoch,
            rank=o.rank,
            world=o.world,
            batch_size=o.batch_size,
            window=o.window,
        )

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise UsageError(
                "this stream runs its own workers: iterate it directly, or give DataLoader "
                "num_workers=0, and set StreamOptions.num_workers"
            )
        first, skip = self._epoch, self._batch
        loaded = iter(self._load(_Requests(self, first, skip)))
        for epoch in range(first, self.options.num_epochs):
            order = self._order(epoch)
            start = skip if epoch == first else 0
            cutter = _Cutter(order, self.options.batch_size, start=start, loaded=loaded)
            for number in range(start, order.num_batches):
                batch = self._finish(cutter.cut(number), order, epoch=epoch, number=number)
                done = number + 1 == order.num_batches
                self._epoch, self._batch = (epoch + 1, 0) if done else (epoch, number + 1)
                yield batch

    def _load(self, requests: "_Requests") -> DataLoader[StreamedBlock | KdcacheError]:
        workers = self.options.num_workers
        return DataLoader(
            self._renderer,
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            collate_fn=_keep,
            generator=torch.Generator(),  # else it draws from the trainer's random numbers
            prefetch_factor=PREFETCH if workers else None,
        )

    def requests(self, epoch: int, start: int) -> Iterator[Request]:
        """Yield the blocks that an epoch's batches from `start` on need, in the order of use."""
        order, share = self._order(epoch), self.options.witness_share
        for position in _positions(order, self.options.batch_size, start):
            block = order.blocks[position]
            name = np.array([block.tar << 32 | block.start], np.uint64)
            drawn = uniforms(self.options.seed, name, view=epoch, count=1, stream=Stream.WITNESS)
            prove = block.start == 0 or bool(drawn[0, 0] < share)
            yield Request(block, self.view(epoch), prove)

    def _finish(
        self, arrays: dict[str, Any], order: EpochOrder, *, epoch: int, number: int
    ) -> Batch:
        size = self.options.batch_size
        slots = slice(number * size, (number + 1) * size)
        blocks_N3 = np.array([order.blocks[p] for p in order.block_M[slots]])
        return Batch(
            **arrays,
            tars=torch.from_numpy(blocks_N3[:, 0]),
            rows=torch.from_numpy(blocks_N3[:, 1] + order.row_M[slots]),
            views=torch.full((len(blocks_N3),), self.view(epoch)),
            format=self._format,
        )


def _keep(block: Any) -> Any:
    return block


def _positions(order: EpochOrder, batch_size: int, start: int) -> NDArray[np.intp]:
    return np.unique(order.block_M[start * batch_size :])


class _Requests(Sampler[Request]):
    """All requests from one batch of one epoch to the end."""

    def __init__(self, stream: ReplayStream, epoch: int, batch: int) -> None:
        self._stream, self._epoch, self._batch = stream, epoch, batch

    def __iter__(self) -> Iterator[Request]:
        for epoch in range(self._epoch, self._stream.options.num_epochs):
            start = self._batch if epoch == self._epoch else 0
            yield from self._stream.requests(epoch, start)


class _Cutter:
    """Cuts the batches of an epoch out of loaded blocks, which it drops once they are used up."""

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        *,
        start: int,
        loaded: Iterator[StreamedBlock | KdcacheError],
    ) -> None:
        self._order, self._size, self._loaded = order, batch_size, loaded
        self._coming = iter(_positions(order, batch_size, start).tolist())
        self._left = np.bincount(order.block_M[start * batch_size :], minlength=len(order.blocks))
        self._blocks: dict[int, StreamedBlock] = {}

    def cut(self, number: int) -> dict[str, Any]:
        slots = slice(number * self._size, (number + 1) * self._size)
        block_N, row_N = self._order.block_M[slots], self._order.row_M[slots]
        parts = []
        for position in np.unique(block_N).tolist():
            while position not in self._blocks:
                block = self._next()
                if isinstance(block, KdcacheError):
                    try:
                        raise block
                    finally:
                        # An error that this frame holds holds this frame: only the garbage
                        # collector would end the workers then, in 5 seconds each.
                        del block
                self._blocks[next(self._coming)] = block
            places = np.flatnonzero(block_N == position)
            parts.append((self._blocks[position], row_N[places], places))
            self._left[position] -= len(places)
            if self._left[position] == 0:
                del self._blocks[position]
        return gather(parts, len(block_N))

    def _next(self) -> StreamedBlock | KdcacheError:
        try:
            return next(self._loaded)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UsageError(
                "a process that renders views died, perhaps for lack of memory; use fewer workers "
                "or a smaller window, and go on from the last checkpoint"
            ) from error
