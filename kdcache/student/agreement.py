"""Whether an exported file gives its student's logits: seeded images, and a bound in float32."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError

# Of the logits' range: rounding took at most a hundredth of this on ResNet-18, MobileNetV3,
# ConvNeXt and ViT-B; and of a range of 30, it moves no probability by more than 0.6%.
TOLERANCE = 1e-4
BATCHES = (1, 2, 5)
_CELLS = 8  # a side: noise of single pixels looks the same in every image


@dataclass(frozen=True)
class Agreement:
    """How near logits are to those expected.

    max_difference: the greatest between two logits. relative: the same, as a share of the range of
    those expected, and of a hundredth of the greatest: float32 holds no more of them. top1: share
    of the images on which both name the same class first.
    """

    images: int
    max_difference: float
    relative: float
    top1: float


def compare(found_NC: Tensor, expected_NC: Tensor) -> Agreement:
    """Return how near logits are to finite ones of the same shape.

    Raises:
        UsageError: not within the tolerance.
    """
    difference = float((found_NC - expected_NC).abs().max())
    scale = float(expected_NC.max() - expected_NC.min() + expected_NC.abs().max() / 100)
    if not difference <= TOLERANCE * scale:  # NaN is neither
        raise UsageError(
            f"logits differ by up to {difference:.3g}, more than {TOLERANCE:g} of their range"
        )
    top1 = (found_NC.argmax(1) == expected_NC.argmax(1)).double().mean()
    return Agreement(
        len(found_NC), difference, difference / scale if difference else 0.0, float(top1)
    )


def seeded_batches(size: int) -> list[Tensor]:
    """Return batches of 1, 2 and 5 images of random colours, uint8 (N, 3, size, size)."""
    draws = torch.Generator().manual_seed(0)
    cells = (torch.rand(count, 3, _CELLS, _CELLS, generator=draws) for count in BATCHES)
    return [nn.functional.interpolate(255 * c, size=(size, size)).to(torch.uint8) for c in cells]
