"""Where a recipe shows a teacher other images than it was made for, and a dataset other classes."""

from collections.abc import Iterator, Sequence

from kdcache.data.dataset import Dataset
from kdcache.models.teacher import Teacher
from kdcache.recipe.parts import CentreCrop, Resize
from kdcache.recipe.schema import Recipe

RESIZES: dict[str, Resize] = {"bilinear": "torch", "bicubic": "torch-bicubic"}
BILINEAR = ("torch", "pillow")
CROP_TOLERANCE = 0.01


def disagreements(teacher: Teacher, recipe: Recipe) -> Iterator[str]:
    """Yield where a recipe shows a teacher other images than it was made for, and the remedy."""
    inputs, name = teacher.inputs, f"teacher {teacher.spec}"
    size, resize = recipe.size_for("teacher"), recipe.resize_for("teacher")
    if (other := inputs.other_size(size)) is not None:
        yield f"{name}: {other}"
    wanted = RESIZES.get(inputs.interpolation or "")
    if inputs.interpolation is not None and wanted is None:
        yield (
            f"{name}: evaluated with {inputs.interpolation} resizes, which recipes do not have; "
            f"this one's is {resize}"
        )
    elif wanted is not None and (wanted in BILINEAR) != (resize in BILINEAR):
        yield (
            f"{name}: evaluated with {inputs.interpolation} resizes, the recipe's is {resize}; "
            f'[teacher] size = {size}, resize = "{wanted}" is what it knows'
        )
    if inputs.crop is not None and isinstance(recipe.crop, CentreCrop):
        share, own = recipe.size / recipe.crop.resize, min(inputs.crop, 1.0)
        if abs(share - own) > CROP_TOLERANCE:
            yield (
                f"{name}: evaluated on the central {own:.3g} of the shorter side, the recipe crops "
                f"{share:.3g}; crop.resize = {round(recipe.size / own)} is its own"
            )


def class_warnings(teacher: Teacher, dataset: Dataset, num_classes: int) -> Iterator[str]:
    """Yield what is odd about a teacher's classes beside a dataset's."""
    name, ours = f"teacher {teacher.spec}", dataset.classes
    if dataset.num_classes not in (None, num_classes):
        yield (
            f"{name}: has {num_classes} classes, the dataset {dataset.num_classes}; its accuracy "
            "is not measured; map its classes to the dataset's with --labels"
        )
    elif found := other_names(ours, teacher.classes):
        yield f"{name}: {found}; where the order differs, map it with --labels"


def other_names(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> str:
    """Return which classes have other names in a dataset than there; nothing where none is seen."""
    if ours is None or theirs is None or len(ours) != len(theirs):
        return ""
    other = [n for n, pair in enumerate(zip(ours, theirs, strict=True)) if _differ(*pair)]
    if not other:
        return ""
    number = other[0]
    return (
        f"{len(other)} of {len(ours)} classes have other names in the dataset; "
        f"class {number} is {theirs[number]!r} there, {ours[number]!r} here"
    )


def _differ(ours: str, theirs: str) -> bool:
    """Return whether two names differ in letters and digits."""
    plain = ("".join(c for c in name.casefold() if c.isalnum()) for name in (ours, theirs))
    return len(set(plain)) > 1
