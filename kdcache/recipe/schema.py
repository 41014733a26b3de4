"""The recipe: everything that decides a view's pixels. TOML in, canonical JSON out.

Invariant: two recipes with one id make the same pixels of the same images. Optional steps that are
off are left out of the canonical form, so that a step added to kdcache keeps the ids of older
recipes.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdcache.errors import UsageError
from kdcache.identity import digest

MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this many

Probability = Annotated[float, Field(gt=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InceptionCrop(_Part):
    """A box of random area and aspect ratio, as torchvision's RandomResizedCrop."""

    law: Literal["inception"]
    area: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if not 0.0 < self.area[0] <= self.area[1] <= 1.0:
            raise ValueError("area must be [low, high] with 0 < low <= high <= 1")
        if not 0.01 <= self.ratio[0] <= self.ratio[1] <= 100.0:
            raise ValueError("ratio must be [low, high] with 0.01 <= low <= high <= 100")
        return self


class MildCrop(_Part):
    """The shorter side to `resize`, then a random square: the paper's mild crop."""

    law: Literal["mild"]
    resize: Annotated[int, Field(ge=1)]


class CentreCrop(_Part):
    """The shorter side to `resize`, then the central square of the recipe's size."""

    law: Literal["centre"]
    resize: Annotated[int, Field(ge=1)]


class FullCrop(_Part):
    """The whole image, squeezed to a square."""

    law: Literal["full"]


class Flip(_Part):
    """Mirror left and right with a probability."""

    horizontal: Probability


class Mix(_Part):
    """Blend each row with a partner of its block, the weight uniform in 0/256 to 256/256."""

    law: Literal["mixup"]


class Decode(_Part):
    """How image files become pixels.

    guard: a JPEG is decoded at 1/2, 1/4 or 1/8 only where the box keeps guard x size pixels.
    exif: whether the orientation tag turns the image first.
    """

    guard: Annotated[float, Field(ge=1.0, le=16.0)] = 1.25
    exif: Literal["ignore", "apply"] = "ignore"
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = MAX_PIXELS


class Recipe(_Part):
    """What decides a view's pixels.

    pixels: version of the pixel function (docs/format.md).
    seed: 0 to 2**63 - 1. size: height and width of a view, in pixels.
    block: rows of a tar among which mixing partners are drawn.
    resize: the resize function; both are bilinear with antialiasing and differ by one level, in one
    value of ten million by two.
    """

    pixels: Literal[1] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    size: Annotated[int, Field(ge=1, le=4096)]
    block: Annotated[int, Field(ge=1, le=65536)] = 64
    resize: Literal["torch", "pillow"] = "torch"
    crop: Annotated[InceptionCrop | MildCrop | CentreCrop | FullCrop, Field(discriminator="law")]
    decode: Decode = Decode()
    flip: Flip | None = None
    mix: Mix | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if isinstance(self.crop, MildCrop | CentreCrop) and self.crop.resize < self.size:
            raise ValueError(f"crop.resize is {self.crop.resize}, below size {self.size}")
        if self.mix is not None and self.block < 2:
            raise ValueError("mix needs a block of at least 2")
        return self

    def canonical(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, steps that are off left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def id(self) -> str:
        """Return the sha256 of the canonical form, 64 hexadecimal digits."""
        return digest(self.canonical())


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        problem = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            problem = f"unknown field; allowed: {_allowed(item['loc'])}"
        elif item["type"] == "union_tag_not_found":
            problem = "law is missing; allowed: inception, mild, centre, full"
        elif not isinstance(item["input"], dict):
            problem += f", found {item['input']!r}"
        lines.append(f"{where}: {problem}")
    return "; ".join(lines)


def _allowed(location: tuple[int | str, ...]) -> str:
    """Return the field names allowed in the table that holds location."""
    laws: dict[str, type[_Part]] = {
        "inception": InceptionCrop, "mild": MildCrop, "centre": CentreCrop, "full": FullCrop,
        "flip": Flip, "mix": Mix, "decode": Decode,
    }  # fmt: skip
    table = laws.get(str(location[-2]), Recipe) if len(location) > 1 else Recipe
    return ", ".join(table.model_fields)


def parse_recipe(values: dict[str, Any], *, source: str) -> Recipe:
    """Return the recipe that a parsed TOML or JSON table holds; source names it in errors.

    Raises:
        UsageError: a field is unknown, missing, out of range or contradicts another.
    """
    try:
        # JSON has no tuples: lists are made into them before strict validation.
        return Recipe.model_validate(_tuples(values))
    except ValidationError as error:
        raise UsageError(f"{source}: {_describe(error)}") from None


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def load_recipe(path: Path) -> Recipe:
    """Return the recipe of a TOML file.

    Raises:
        UsageError: the file is missing, not TOML, or not a recipe.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    return parse_recipe(values, source=str(path))
