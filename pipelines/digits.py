"""Scikit-learn's handwritten digits as images, and the two networks that learn them.

Each of the 1,797 digits (8 x 8 pixels) is enlarged to a random size of 0.6 to 1.0 of a 32 x 32
frame and placed once at random in it. Which digits teach, train and test follows from the seed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

FRAME = 32
NUM_CLASSES = 10
NUM_TEACHER = 1000
NUM_STUDENT_PER_CLASS = 10


@dataclass(frozen=True, eq=False)
class Digits:
    """uint8 images (N, 32, 32) and labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[np.intp]) -> "Digits":
        """Return some of the digits."""
        return Digits(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Split:
    """teacher: 1,000 digits. student: 100 of them, 10 of each class. test: the 797 others."""

    teacher: Digits
    student: Digits
    test: Digits


def place(pixels: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an 8 x 8 digit of values 0 to 16, enlarged and placed at random in the frame."""
    side = round(FRAME * rng.uniform(0.6, 1.0))
    image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
    frame = np.zeros((FRAME, FRAME), np.uint8)
    left, top = rng.integers(0, FRAME - side + 1, 2)
    enlarged = image.resize((side, side), Image.Resampling.BICUBIC)
    frame[top : top + side, left : left + side] = np.asarray(enlarged)
    return frame


def load_split(seed: int) -> Split:
    """Return the digits of one seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(bunch.images))
    images = np.stack([place(pixels, rng) for pixels in bunch.images])
    digits = Digits(images, bunch.target.astype(np.int64))
    taught, tested = order[:NUM_TEACHER], order[NUM_TEACHER:]
    labels = digits.labels[taught]
    chosen = [taught[labels == c][:NUM_STUDENT_PER_CLASS] for c in range(NUM_CLASSES)]
    return Split(digits.take(taught), digits.take(np.concatenate(chosen)), digits.take(tested))


class DigitNet(nn.Module):
    """Convolutions of 3 x 3 with batch norm, max-pooled after some; a mean and a linear layer."""

    def __init__(self, widths: tuple[int, ...], *, pooled: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((1, *widths), widths, strict=False)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            if number in pooled:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(widths[-1], NUM_CLASSES)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Return logits (N, 10); the three channels of a grey image are equal, one is read."""
        features: Tensor = self.features(images_N3HW[:, :1])
        logits: Tensor = self.classify(features.mean((2, 3)))
        return logits


def teacher() -> nn.Module:
    """Return the teacher: 390,890 parameters."""
    return DigitNet((32, 64, 128, 256), pooled=(0, 1))


def student() -> nn.Module:
    """Return the student: 14,458 parameters."""
    return DigitNet((16, 32, 32), pooled=(1,))
