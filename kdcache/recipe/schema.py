"""The recipe: everything that decides a view's pixels. TOML in, canonical JSON out.

Invariant: two recipes with one id make the same pixels of the same images. Optional steps that are
off are left out of the canonical form, so that a step added to kdcache keeps the ids of older
recipes.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from kdcache.errors import UsageError
from kdcache.files import parse_toml, read_small
from kdcache.identity import digest
from kdcache.recipe.parts import (
    MAX_SIGMA,
    Blur,
    CentreCrop,
    Chance,
    Crop,
    Cutmix,
    Decode,
    Erase,
    Flip,
    FullCrop,
    InceptionCrop,
    Jitter,
    MildCrop,
    Mixup,
    Part,
    Posterize,
    RandAugment,
    Resize,
    Role,
    Solarize,
    Switch,
    TeacherView,
    TrivialAugment,
)

MAX_FILE_BYTES = 1 << 20
CENTRAL_SHARE = 0.875  # of the shorter side, as most networks are evaluated
_PRESETS = "kdcache.recipe.presets"
_CHANCES = ("probability", "horizontal", "vertical")
_CROPS: dict[str, type[Part]] = {
    "inception": InceptionCrop, "mild": MildCrop, "centre": CentreCrop, "full": FullCrop,
}  # fmt: skip
_AUGMENTS: dict[str, type[Part]] = {"randaugment": RandAugment, "trivial": TrivialAugment}
_MIXES: dict[str, type[Part]] = {"mixup": Mixup, "cutmix": Cutmix, "switch": Switch}
_LAWS = {"crop": _CROPS, "augment": _AUGMENTS, "mix": _MIXES}
_TABLES: dict[str, type[Part]] = {
    "decode": Decode, "flip": Flip, "jitter": Jitter, "grey": Chance, "blur": Blur,
    "solarize": Solarize, "posterize": Posterize, "equalize": Chance, "autocontrast": Chance,
    "erase": Erase, "teacher": TeacherView,
}  # fmt: skip


class Recipe(Part):
    """What decides a view's pixels; optional steps are applied in the order of their fields.

    A view may be rendered twice: the student's has `size` and `resize`, and so has the teacher's
    unless `teacher` says otherwise.

    pixels: version of the pixel function (docs/format.md).
    seed: 0 to 2**63 - 1. size: height and width of a view, in pixels.
    block: rows of a tar among which mixing partners are drawn.
    resize: the resize function, with antialiasing: torch and pillow are bilinear and differ by one
    level, in one value of ten million by two; so do the bicubic ones.
    """

    pixels: Literal[1] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    size: Annotated[int, Field(ge=1, le=4096)]
    block: Annotated[int, Field(ge=1, le=65536)] = 64
    resize: Resize = "torch"
    crop: Annotated[Crop, Field(discriminator="law")]
    decode: Decode = Decode()
    flip: Flip | None = None
    jitter: Jitter | None = None
    grey: Chance | None = None
    blur: Blur | None = None
    solarize: Solarize | None = None
    posterize: Posterize | None = None
    equalize: Chance | None = None
    autocontrast: Chance | None = None
    augment: Annotated[RandAugment | TrivialAugment, Field(discriminator="law")] | None = None
    erase: Erase | None = None
    mix: Annotated[Mixup | Cutmix | Switch, Field(discriminator="law")] | None = None
    teacher: TeacherView | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if isinstance(self.crop, MildCrop | CentreCrop) and self.crop.resize < self.size:
            raise ValueError(f"crop.resize is {self.crop.resize}, below size {self.size}")
        if self.mix is not None and self.block < 2:
            raise ValueError(f"mix needs a block of at least 2, found {self.block}")
        same = (self.size, self.resize) == (self.size_for("teacher"), self.resize_for("teacher"))
        if self.teacher is not None and same:
            raise ValueError("teacher sees what the student sees; leave [teacher] out")
        if self.teacher is not None and self.blur is not None:
            sigma = self.blur.sigma[1] * self.teacher.size / self.size
            if sigma > MAX_SIGMA:
                raise ValueError(
                    f"blur.sigma is {self.blur.sigma[1]:g} at size {self.size}, which is "
                    f"{sigma:.3g} at teacher.size {self.teacher.size}, above {MAX_SIGMA:g}"
                )
        return self

    @property
    def roles(self) -> tuple[Role, ...]:
        """Return whose renderings of a view there are; the first one's is the student's."""
        return ("student",) if self.teacher is None else ("student", "teacher")

    def size_for(self, role: Role) -> int:
        """Return the side of a view as a role sees it, in pixels."""
        return self.size if role == "student" or self.teacher is None else self.teacher.size

    def resize_for(self, role: Role) -> Resize:
        """Return the resize function that makes what a role sees."""
        own = None if role == "student" or self.teacher is None else self.teacher.resize
        return own or self.resize

    def canonical(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, steps that are off left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def id(self) -> str:
        """Return the sha256 of the canonical form, 64 hexadecimal digits."""
        return digest(self.canonical())

    @property
    def student_id(self) -> str:
        """Return the id of the same recipe without [teacher]: equal ids, equal student's views."""
        return self.model_copy(update={"teacher": None}).id


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        # Where laws are told apart, pydantic puts the law between the table and its field.
        location = [str(part) for part in item["loc"]]
        shown = location[:1] + location[2:] if location and location[0] in _LAWS else location
        where = ".".join(shown) or "recipe"
        problem = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            problem = f"unknown field; allowed: {', '.join(_fields(location))}"
        elif item["type"] in ("union_tag_not_found", "union_tag_invalid"):
            tag = item.get("ctx", {}).get("tag")
            found = "law is missing" if tag is None else f"law {tag!r} is unknown"
            problem = f"{found}; allowed: {', '.join(_LAWS[location[0]])}"
        elif not isinstance(item["input"], dict):
            if item["type"] in ("model_type", "model_attributes_type"):
                problem = f"expected a table ({_kind(location[0])})"
            elif shown[-1] in _CHANCES and "type" not in item["type"]:
                problem = "expected a probability above 0 and at most 1"
            elif item["type"] == "tuple_type":
                problem = "expected [low, high]"
            # People write lists, which are tuples only here.
            problem = problem.replace("tuple", "list").replace("Tuple", "List")
            value = item["input"]
            problem += f", found {list(value) if isinstance(value, tuple) else value!r}"
        lines.append(f"{where}: {problem}")
    return "; ".join(lines)


def _kind(table: str) -> str:
    """Return what a table of this name holds."""
    if table in _LAWS:
        return f"law: {', '.join(_LAWS[table])}"
    return ", ".join(_TABLES[table].model_fields)


def _fields(location: list[str]) -> list[str]:
    """Return the field names allowed in the table that holds location."""
    table: type[Part] = Recipe
    if len(location) > 1:
        laws = _LAWS.get(location[0])
        table = laws[location[1]] if laws else _TABLES[location[0]]
    return list(table.model_fields)


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


def presets() -> tuple[str, ...]:
    """Return the names of the recipes that come with kdcache."""
    files = resources.files(_PRESETS).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """Return the TOML of a preset.

    Raises:
        UsageError: there is no preset of this name.
    """
    if name not in presets():
        raise UsageError(f"{name}: no preset; presets: {', '.join(presets())}")
    return (resources.files(_PRESETS) / f"{name}.toml").read_text(encoding="utf-8")


def central_recipe(size: int, *, share: float = CENTRAL_SHARE, resize: Resize = "torch") -> Recipe:
    """Return the central view at a size; by default what the preset "centre" is at 224 pixels.

    share: of an image's shorter side that is seen.
    """
    crop = {"law": "centre", "resize": max(round(size / share), size)}
    values = {"seed": 0, "size": size, "resize": resize, "crop": crop}
    return parse_recipe(values, source="central view")


def load_recipe(source: Path | str) -> Recipe:
    """Return the recipe of a TOML file, or the preset of this name if there is no such file.

    Raises:
        UsageError: there is neither, or it is not TOML, or not a recipe.
    """
    path = Path(source)
    try:
        preset = str(source) in presets() and not path.exists()
        own = None if preset else read_small(path, most_bytes=MAX_FILE_BYTES)
        data = preset_text(str(source)).encode() if own is None else own
    except FileNotFoundError:
        names = ", ".join(presets())
        raise UsageError(f"{path}: neither a file nor a preset; presets: {names}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    return parse_recipe(parse_toml(data, path), source=str(path))
