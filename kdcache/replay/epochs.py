"""A stream an epoch at a time, for loops that iterate once an epoch: Lightning's, accelerate's."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from kdcache.replay.batch import Batch
from kdcache.replay.stream import ReplayStream


class EpochStream(IterableDataset[Batch]):
    """Each iteration hands over what is left of the stream's epoch, then ends.

    The workers of the stream run on from epoch to epoch. A DataLoader around it needs
    batch_size=None and num_workers=0, since batches come whole, from the stream's own workers.
    """

    def __init__(self, stream: ReplayStream) -> None:
        self._stream = stream
        self._batches: Iterator[Batch] | None = None

    def __len__(self) -> int:
        return self._stream.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is None:
            self._batches = iter(self._stream)
        done: int = self.state_dict()["batch"]
        for _ in range(done, len(self)):
            batch = next(self._batches, None)
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the stream's state."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; raises what the stream raises."""
        self._stream.load_state_dict(state)
        self._batches = None
