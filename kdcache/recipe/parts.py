"""The tables of a recipe: decoding, crops, flips, augmentations, mixing; as people write them."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this many
MAX_SIGMA = 10.0
MAX_OPS = 8

Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0, le=10.0)]
Range = tuple[float, float]
Resize = Literal["torch", "pillow", "torch-bicubic", "pillow-bicubic"]
Role = Literal["student", "teacher"]


class Part(BaseModel):
    """A table: immutable, strictly typed, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _check_area(area: Range) -> None:
    if not 0.0 < area[0] <= area[1] <= 1.0:
        raise ValueError(f"area must be [low, high] with 0 < low <= high <= 1, found {list(area)}")


def _check_ratio(ratio: Range) -> None:
    if not 0.01 <= ratio[0] <= ratio[1] <= 100.0:
        raise ValueError(
            f"ratio must be [low, high] with 0.01 <= low <= high <= 100, found {list(ratio)}"
        )


class Decode(Part):
    """How image files become pixels.

    guard: a JPEG is decoded at 1/2, 1/4 or 1/8 only where the box keeps guard x size pixels.
    exif: whether the orientation tag turns the image first.
    """

    guard: Annotated[float, Field(ge=1.0, le=16.0)] = 1.25
    exif: Literal["ignore", "apply"] = "ignore"
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = MAX_PIXELS


# --- crops -----------------------------------------------------------------------------------


class InceptionCrop(Part):
    """A box of random area and aspect ratio, as torchvision's RandomResizedCrop."""

    law: Literal["inception"]
    area: Range = (0.05, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_area(self.area)
        _check_ratio(self.ratio)
        return self


class MildCrop(Part):
    """The shorter side to `resize`, then a random square: the paper's mild crop."""

    law: Literal["mild"]
    resize: Annotated[int, Field(ge=1)]


class CentreCrop(Part):
    """The shorter side to `resize`, then the central square of the recipe's size."""

    law: Literal["centre"]
    resize: Annotated[int, Field(ge=1)]


class FullCrop(Part):
    """The whole image, squeezed to a square."""

    law: Literal["full"]


Crop = InceptionCrop | MildCrop | CentreCrop | FullCrop


# --- augmentations, in the order in which they are applied ------------------------------------


class Flip(Part):
    """Mirror left and right, and top and bottom, each with a probability."""

    horizontal: Probability | None = None
    vertical: Probability | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if self.horizontal is None and self.vertical is None:
            raise ValueError("give horizontal, vertical or both")
        return self


class Jitter(Part):
    """Brightness, contrast, saturation and hue by random amounts in random order, as ColorJitter.

    A factor is uniform in max(0, 1 - x) to 1 + x, the hue in -x to x turns of the colour wheel.
    """

    probability: Probability = 1.0
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("give brightness, contrast, saturation or hue")
        return self


class Chance(Part):
    """A step without settings, done with a probability."""

    probability: Probability


class Blur(Part):
    """A Gaussian blur of random sigma, in pixels of the view."""

    probability: Probability
    sigma: Range = (0.1, 2.0)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if not 0.1 <= self.sigma[0] <= self.sigma[1] <= MAX_SIGMA:
            raise ValueError(
                f"sigma must be [low, high] with 0.1 <= low <= high <= {MAX_SIGMA}, "
                f"found {list(self.sigma)}"
            )
        return self


class Solarize(Part):
    """Invert the values from a threshold on."""

    probability: Probability
    threshold: Annotated[int, Field(ge=0, le=256)] = 128


class Posterize(Part):
    """Keep the upper bits of each value."""

    probability: Probability
    bits: Annotated[int, Field(ge=1, le=8)] = 4


class RandAugment(Part):
    """`num_ops` of 14 operations at one magnitude of 0 to 30, as torchvision's RandAugment.

    Source: Cubuk et al. 2020, arXiv:1909.13719.
    """

    law: Literal["randaugment"]
    num_ops: Annotated[int, Field(ge=1, le=MAX_OPS)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class TrivialAugment(Part):
    """One of 14 operations at a random magnitude, as torchvision's TrivialAugmentWide.

    Source: Müller and Hutter 2021, arXiv:2103.10158.
    """

    law: Literal["trivial"]


class Erase(Part):
    """Fill a random rectangle, as torchvision's RandomErasing.

    fill: red, green, blue, the default ImageNet's mean; or noise, a random value each.
    Source: Zhong et al. 2020, arXiv:1708.04896.
    """

    probability: Probability
    area: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    fill: tuple[int, int, int] | Literal["noise"] = (124, 116, 104)

    @field_validator("fill", mode="before")
    @classmethod
    def _colour(cls, value: object) -> object:
        levels = value if isinstance(value, tuple) else ()
        colour = len(levels) == 3 and all(type(v) is int and 0 <= v < 256 for v in levels)
        if value != "noise" and not colour:
            raise ValueError('fill must be "noise" or [red, green, blue], each from 0 to 255')
        return value

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_area(self.area)
        _check_ratio(self.ratio)
        return self


# --- what the teacher sees ----------------------------------------------------------------------


class TeacherView(Part):
    """The teacher's rendering of a view: the same box, flips, steps and mixing at its own size.

    resize: None takes the recipe's. Lengths in pixels (shifts, blurs, rectangles) scale with size.
    """

    size: Annotated[int, Field(ge=1, le=4096)]
    resize: Resize | None = None


# --- mixing with a partner of the block -------------------------------------------------------


class Mixup(Part):
    """Blend each row with its partner, the weight uniform in 0/256 to 256/256."""

    law: Literal["mixup"]


class Cutmix(Part):
    """Paste a random rectangle of its partner into each row, the kept share uniform in 0 to 1.

    Source: Yun et al. 2019, arXiv:1905.04899.
    """

    law: Literal["cutmix"]


class Switch(Part):
    """Mixup, cutmix or neither, each row for itself, with these probabilities."""

    law: Literal["switch"]
    mixup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    cutmix: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if not 0.0 < self.mixup + self.cutmix <= 1.0:
            raise ValueError(
                f"mixup + cutmix must be above 0 and at most 1, found {self.mixup} + {self.cutmix}"
            )
        return self
