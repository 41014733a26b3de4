"""A network as its source gives it: with weights, and what the source knows of it."""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Triple = tuple[float, float, float]
Takes = Literal["images", "pixels"]
MAX_SIZE = 2**14
MOST, LEAST = 1e30, 1e-6  # of a number that somebody's file states


@dataclass(frozen=True)
class Inputs:
    """What images a network was made for; None where its source does not say.

    size: side, in pixels. crop: share of an image's shorter side that the central crop keeps when
    the network is evaluated (timm calls it crop_pct; 224 of 256 is 0.875); above 1, to 2, where the
    image is framed instead. interpolation: of the resize before: "bilinear", "bicubic", or another
    word of its source. mean, std: of the pixels in 0 to 1, by channel.

    Raises:
        ValueError: one of them is none of this.
    """

    size: int | None = None
    crop: float | None = None
    interpolation: str | None = None
    mean: Triple | None = None
    std: Triple | None = None

    def __post_init__(self) -> None:
        size: object = self.size
        if size is not None and not (isinstance(size, int) and _within(size, 1, MAX_SIZE)):
            raise ValueError(f"size {self.size!r:.40}, expected 1 to {MAX_SIZE} pixels")
        if self.crop is not None and not _within(self.crop, LEAST, 2):
            raise ValueError(f"crop {self.crop!r:.40}, expected a share above 0, to 2")
        word: object = self.interpolation  # a file's, whatever its type
        if word is not None and not (isinstance(word, str) and word.isprintable()):
            raise ValueError(f"interpolation {word!r:.40}, expected a word")
        for name, values, least in (("mean", self.mean, -MOST), ("std", self.std, LEAST)):
            if values is not None and not all(_within(value, least, MOST) for value in values):
                raise ValueError(f"{name} {values!r:.60}, expected three finite numbers")

    def other_size(self, size: int) -> str | None:
        """Return that images of a size are not what the network was made for, and the remedy."""
        if self.size in (None, size):
            return None
        return (
            f"made for {self.size} pixels, the recipe shows it {size}; [teacher] size = "
            f"{self.size} in the recipe leaves the student's size as it is"
        )


def _within(value: object, least: float, most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= most  # type: ignore[operator] # a number


UNKNOWN = Inputs()


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its weights, and what is known of both.

    network: maps (N, 3, H, W) to logits (N, C), or to something that holds them. takes: normalised
    float "images", or uint8 "pixels", which it normalises itself. name: its spec without the place
    of files, which is what a cache keeps. trained: whether weights were loaded. graph: digest of
    what weights and name do not say, 64 hexadecimal digits; None if they say all. classes: names,
    in order. licence: of the weights, an SPDX expression or an address.
    """

    network: nn.Module
    name: str
    trained: bool
    inputs: Inputs = field(default_factory=Inputs)
    takes: Takes = "images"
    graph: str | None = None
    classes: tuple[str, ...] | None = None
    licence: str | None = None
