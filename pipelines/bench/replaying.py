"""What targets cost the student's stream: the same views with them, with their proof, and without.

All decode what the views need of an image and no more; a stream without a cache would decode images
whole, which is told beside them. No workers, so that all work is this process' own.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.pixels.render import RenderedBlock
from kdcache.replay.blocks import BlockRenderer, Pairing
from kdcache.replay.open import label_stream, replay_stream
from kdcache.replay.order import Extent
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.replay.targets import join_targets
from pipelines.bench.material import Material
from pipelines.bench.stream import batch_sizes
from pipelines.bench.timing import Work, timed


@dataclass(frozen=True)
class _Windowed:
    """Blocks of which as much is decoded as if a teacher had seen them, though none has."""

    source: BlockSource

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def render(
        self,
        tar: int,
        rows: slice,
        *,
        views: Sequence[int],
        skip: Collection[int],
        whole: bool,
        out_GNHW3: NDArray[np.uint8],
    ) -> RenderedBlock:
        del whole
        return self.source.render(
            tar, rows, views=views, skip=skip, whole=False, out_GNHW3=out_GNHW3
        )


def stream_works(material: Material, *, batch: int, passes: int) -> dict[str, Work]:
    """Return streams of the same views in the same order, each opened afresh for its round."""
    dataset = material.dataset()
    options = StreamOptions(batch_size=batch, num_epochs=passes)

    def stream(targets: Cache | None, pairing: Pairing) -> ReplayStream:
        source = dataset_source(dataset, material.open_cache().info.recipe)
        usable = np.ones(dataset.num_samples, bool)
        extent = Extent(source.starts, source.uids, usable, source.recipe.block)
        if targets is None:
            source = cast(BlockSource, _Windowed(source))
        joined = None if targets is None else join_targets([targets])
        renderer = BlockRenderer(source, joined, pairing)
        return ReplayStream(renderer, options, num_views=None, extent=extent)

    # Independent targets have no proof; these are the same, since both go by a view's number.
    streams: dict[str, Callable[[], ReplayStream]] = {
        "views": lambda: stream(None, "replayed"),
        "views and targets": lambda: stream(material.open_cache(), "independent"),
        "views and targets, proven": lambda: replay_stream(material.open_cache(), dataset, options),
        "views of whole images": lambda: label_stream(
            dataset, options, recipe=material.open_cache().info.recipe
        ),
    }

    def passing(opened: Callable[[], ReplayStream]) -> Work:
        return timed(lambda _: sum(batch_sizes(opened())))

    return {name: passing(opened) for name, opened in streams.items()}
