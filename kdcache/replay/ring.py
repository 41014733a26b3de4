"""Memory for rendered blocks, shared with worker processes and used again.

Workers write pixels where the trainer reads them, so that no pixel is copied between processes and
no fresh page is asked for. The memory is anonymous: it has no name, and the system takes it back
when the last process ends, however that ends.
"""

import math
import mmap
import sys

import numpy as np
from numpy.typing import NDArray


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
