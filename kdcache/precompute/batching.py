"""The batch size at which a teacher is fastest."""

import time

import torch

from kdcache.models.running import NoMemoryError
from kdcache.models.teacher import Teacher

LEAST, MOST = 16, 4096
WORTH = 1.03  # a batch twice as large must be this much faster to be taken
ROUNDS = 3


def fit_batch_size(teacher: Teacher, size: int, *, most: int = MOST) -> int:
    """Return a batch size, a power of two: the smallest that is within 3% of twice as many.

    size: side of the images, pixels. Larger ones are tried until memory runs out or nothing is
    gained; it depends on this machine's speed, so that two runs may find two.

    Raises:
        UsageError: the teacher fails, or memory does not hold LEAST images.
    """
    best, rate = LEAST, _views_per_s(teacher, size, count=LEAST)
    while best < most:
        try:
            larger = _views_per_s(teacher, size, count=2 * best)
        except NoMemoryError:
            break
        if larger < WORTH * rate:
            break
        best, rate = 2 * best, larger
    if teacher.device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _views_per_s(teacher: Teacher, size: int, *, count: int) -> float:
    pixels = torch.zeros(count, 3, size, size, dtype=torch.uint8, device=teacher.device)
    seconds = []
    for _ in range(1 + ROUNDS):  # the first one prepares
        started = time.perf_counter()
        teacher(pixels).sum().item()
        seconds.append(time.perf_counter() - started)
    return count / min(seconds[1:])
