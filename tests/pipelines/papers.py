"""The released code of Beyer et al. 2022 in its own convention, and table 3 of the paper."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """What the paper's code has: batch size, rate, decay a step, temperature, warm-up steps."""

    epochs: int
    learning_rate: float
    decay: float
    temperature: float
    top1: float | None = None
    batch_size: int = 512
    warmup_steps: int = 1500


def _imagenet(epochs: int, top1: float) -> Paper:
    return Paper(epochs, 0.03, 3e-4, 1, top1, batch_size=4096, warmup_steps=5000)


SIZES = {  # training images, classes
    "cifar100": (50_000, 100),
    "flowers102": (1020, 102),
    "food101": (75_750, 101),
    "imagenet1k": (1_281_167, 1000),
    "pets": (3680, 37),
    "sun397": (76_128, 397),
}
FOOD = {
    "fast": Paper(100, 0.01, 1e-3, 10),
    "medium": Paper(1000, 0.001, 3e-4, 10),
    "long": Paper(3000, 0.01, 1e-4, 5),
}
PAPER = {
    "cifar100": FOOD,
    "flowers102": {
        "fast": Paper(10_000, 0.003, 3e-4, 10),
        "medium": Paper(100_000, 0.001, 1e-4, 1),
        "long": Paper(1_000_000, 3e-4, 1e-5, 1),
    },
    "food101": FOOD,
    "imagenet1k": {
        "300": _imagenet(300, 80.30),
        "1200": _imagenet(1200, 81.54),
        "9600": _imagenet(9600, 82.31),
    },
    "pets": {
        "fast": Paper(1000, 0.01, 1e-3, 5),
        "medium": Paper(3000, 0.003, 3e-4, 10),
        "long": Paper(30_000, 0.003, 1e-5, 2),
    },
    "sun397": {
        "fast": Paper(100, 0.01, 1e-3, 10),
        "medium": Paper(1000, 0.001, 1e-4, 10),
        "long": Paper(3000, 0.01, 3e-5, 10),
    },
}
