"""What a teacher is, how good and fast it is here, and where a recipe shows it other images.

Accuracy is of the central crop, once as the teacher's source evaluates it and, where they differ,
once as the recipe shows views to it: what lies between is what the disagreement costs.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.models.shown import CROP_TOLERANCE, RESIZES, class_warnings, disagreements
from kdcache.models.steadiness import Steadiness, measure_steadiness
from kdcache.models.teacher import Teacher
from kdcache.recipe.parts import CentreCrop, MildCrop, Resize
from kdcache.recipe.schema import CENTRAL_SHARE, Recipe, central_recipe
from kdcache.replay.open import fresh_stream
from kdcache.replay.stream import StreamOptions
from kdcache.student.metrics import Score, evaluate

USUAL_SIZE = 224
MEASURED_S, MEASURED_CALLS = 1.0, 3


@dataclass(frozen=True)
class Measure:
    """How good a teacher is on central crops. size, resize, crop: as these were made."""

    size: int
    resize: Resize
    crop: float
    score: Score


@dataclass(frozen=True)
class TeacherReport:
    """What was found. shown: None where the recipe shows what the source says, or nothing to it.

    refused: why the teacher does not take what the recipe shows, if so. images_per_s: of the
    teacher alone, on images of size pixels, in batches of batch_size.
    """

    num_classes: int
    steadiness: Steadiness
    batch_size: int
    size: int
    refused: str | None
    images_per_s: float
    own: Measure
    shown: Measure | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CheckOptions:
    """samples: images to measure on, at most. num_workers: processes that render."""

    batch_size: int = 64
    samples: int = 1000
    num_workers: int = 0


def report_teacher(
    teacher: Teacher, dataset: Dataset, recipe: Recipe | None, options: CheckOptions
) -> TeacherReport:
    """Return what a teacher is and does on a dataset, and where the recipe disagrees with it.

    Raises:
        UsageError: the teacher fails, or gives logits that are not finite.
    """
    shown = None if recipe is None else _central(recipe)
    own = own_view(teacher, shown)
    refused = None
    if shown is not None and shown.size != own.size:
        try:
            teacher.num_classes(shown.size)
        except UsageError as error:
            refused, shown = str(error), None
    seen = own if shown is None else shown
    num_classes = teacher.num_classes(seen.size)
    batch_size = min(options.batch_size, dataset.num_samples)
    labelled = dataset.num_classes in (None, num_classes)
    return TeacherReport(
        num_classes=num_classes,
        steadiness=measure_steadiness(teacher, seen.size),
        batch_size=batch_size,
        size=seen.size,
        refused=refused,
        images_per_s=_images_per_s(teacher, seen.size, count=batch_size),
        own=_measure(teacher, dataset, own, options, labelled=labelled),
        shown=None
        if shown is None or _same(shown, own)
        else _measure(teacher, dataset, shown, options, labelled=labelled),
        warnings=(
            *teacher.warnings,
            *([] if refused is None else [refused]),
            *([] if recipe is None else disagreements(teacher, recipe)),
            *class_warnings(teacher, dataset, num_classes),
        ),
    )


def own_view(teacher: Teacher, shown: Recipe | None = None) -> Recipe:
    """Return the central view that a teacher's source evaluates it on.

    shown: has what the source does not say; without it, 224 pixels of 256, bilinear.
    """
    inputs, usual = teacher.inputs, shown or central_recipe(USUAL_SIZE)
    resize = RESIZES.get(inputs.interpolation or "", usual.resize)
    share = inputs.crop or _share(usual)
    return central_recipe(inputs.size or usual.size, share=share, resize=resize)


def _central(recipe: Recipe) -> Recipe:
    """Return the central view at the size and by the resize that a recipe shows the teacher."""
    share = CENTRAL_SHARE
    if isinstance(recipe.crop, CentreCrop | MildCrop):
        share = recipe.size / recipe.crop.resize
    size, resize = recipe.size_for("teacher"), recipe.resize_for("teacher")
    return central_recipe(size, share=share, resize=resize)


def _share(view: Recipe) -> float:
    assert isinstance(view.crop, CentreCrop)
    return view.size / view.crop.resize


def _same(ours: Recipe, theirs: Recipe) -> bool:
    alike = (ours.size, ours.resize) == (theirs.size, theirs.resize)
    return alike and abs(_share(ours) - _share(theirs)) <= CROP_TOLERANCE


def _images_per_s(teacher: Teacher, size: int, *, count: int) -> float:
    pixels = torch.zeros(count, 3, size, size, dtype=torch.uint8, device=teacher.device)
    teacher(pixels).sum().item()  # the first one prepares
    calls, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < MEASURED_S or calls < MEASURED_CALLS:
        teacher(pixels).sum().item()
        calls += 1
    return count * calls / seconds


class _Pixels(nn.Module):
    """A teacher as what evaluate measures: of uint8 pixels."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        return self.teacher(pixels_N3HW)


def _measure(
    teacher: Teacher, dataset: Dataset, view: Recipe, options: CheckOptions, *, labelled: bool
) -> Measure:
    few = dataset.num_samples <= options.samples
    batch_size = min(options.batch_size, dataset.num_samples, options.samples)
    stream = fresh_stream(
        dataset,
        StreamOptions(batch_size=batch_size, shuffle=not few, num_workers=options.num_workers),
        recipe=view,
    )
    score = evaluate(
        _Pixels(teacher),
        stream,
        preprocessing=lambda pixels: pixels,
        device=teacher.device,
        num_batches=None if few else options.samples // batch_size,
        name=f"teacher {teacher.spec}",
        labelled=labelled,
    )
    return Measure(view.size, view.resize, _share(view), score)
