"""Memory for rendered blocks, shared with worker processes, and for batches; all used again.

Workers write pixels where the trainer reads them, so that no pixel is copied between processes and
no fresh page is asked for. The memory is anonymous: it has no name, and the system takes it back
when the last process ends, however that ends.
"""

import math
import mmap
import sys
import weakref

import numpy as np
from numpy.typing import NDArray

MAX_POOLED = 4


def can_share() -> bool:
    """Return whether worker processes can inherit a ring's memory."""
    return sys.platform == "linux"  # elsewhere, forking after threads have started is unsafe


class Ring:
    """Slots, each for the pixels of one block in all views of a load.

    Only the process that made the ring takes and frees slots; others read and write them.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        memory = mmap.mmap(-1, math.prod(shape))
        self._slots = np.frombuffer(memory, np.uint8).reshape(shape)
        self._free = list(reversed(range(shape[0])))

    def take(self) -> int | None:
        """Return a free slot, one used before if there is any, or None if all are taken."""
        return self._free.pop() if self._free else None

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def __getitem__(self, slot: int) -> NDArray[np.uint8]:
        """Return the memory of a slot."""
        pixels: NDArray[np.uint8] = self._slots[slot]
        return pixels


class Pool:
    """Memory for batches, each piece given out again once nobody else holds any of it."""

    def __init__(self) -> None:
        self._pieces: list[tuple[bytearray, weakref.ref[NDArray[np.uint8]]]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array of memory that no tensor or view refers to any more, if there is some."""
        size = math.prod(shape)
        free = (
            n for n, (m, holder) in enumerate(self._pieces) if len(m) == size and holder() is None
        )
        place = next(free, len(self._pieces))
        memory = self._pieces[place][0] if place < len(self._pieces) else bytearray(size)
        # All views keep this very array, since what it lies in is no array: it dies with the last.
        root = np.frombuffer(memory, np.uint8)
        if place < MAX_POOLED:
            self._pieces[place : place + 1] = [(memory, weakref.ref(root))]
        return root.reshape(shape)
