"""Claims about what a recipe shows a teacher beside what it was made for."""

from dataclasses import replace
from typing import Any

import pytest

from kdcache.data.dataset import Dataset
from kdcache.models.shown import class_warnings, disagreements
from kdcache.models.source import Inputs
from kdcache.models.teacher import Teacher
from kdcache.recipe.schema import parse_recipe
from kdcache.report.teachers import CheckOptions, own_view, report_teacher
from tests import tiny

FULL = Inputs(size=384, crop=1.0, interpolation="bicubic")


def teacher(**inputs: Any) -> Teacher:
    return replace(tiny.make_teacher(), inputs=Inputs(**inputs))


def warnings_of(known: Teacher, **recipe: Any) -> str:
    return "; ".join(disagreements(known, tiny.make_recipe(**recipe)))


def test_a_recipe_that_shows_what_a_teacher_knows_is_not_warned_of() -> None:
    known = teacher(size=384, crop=0.875, interpolation="bicubic")
    shown = {"size": 384, "resize": "torch-bicubic"}
    assert warnings_of(known, size=224, teacher=shown) == ""
    assert warnings_of(known, **shown, crop={"law": "centre", "resize": 439}) == ""
    bilinear = teacher(size=12, interpolation="bilinear")
    assert warnings_of(bilinear, resize="torch") == warnings_of(bilinear, resize="pillow") == ""
    assert warnings_of(teacher()) == "", "who knows nothing disagrees with nothing"


def test_sizes_resizes_and_crops_that_differ_are_named_with_the_remedy() -> None:
    known = teacher(size=384, crop=1.0, interpolation="bicubic")
    assert "made for 384 pixels, the recipe shows it 224; [teacher] size = 384" in warnings_of(
        known, size=224
    )
    found = warnings_of(known, size=384)
    assert "evaluated with bicubic resizes, the recipe's is torch; [teacher] size = 384" in found
    assert 'resize = "torch-bicubic"' in found
    crop = {"law": "centre", "resize": 256}
    assert "crops 0.875; crop.resize = 224" in warnings_of(known, size=224, crop=crop)
    assert "which recipes do not have" in warnings_of(teacher(interpolation="lanczos"))


def test_the_remedies_are_recipes() -> None:
    table = {"size": 384, "resize": "torch-bicubic"}
    recipe = tiny.make_recipe(size=384, teacher=table)
    assert recipe.resize_for("teacher") == "torch-bicubic"


@pytest.mark.parametrize(
    ("inputs", "size", "resize", "crop"),
    [(FULL, 384, "torch-bicubic", 384), (Inputs(), 224, "torch", 256)],
)
def test_a_teacher_is_evaluated_as_its_source_does(
    inputs: Inputs, size: int, resize: str, crop: int
) -> None:
    view = own_view(replace(tiny.make_teacher(), inputs=inputs))
    expected = {"seed": 0, "size": size, "resize": resize}
    law = {"law": "centre", "resize": crop}
    assert view == parse_recipe({**expected, "crop": law}, source="expected")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.make_dataset(tmp_path_factory.mktemp("teachers"), 24)


def test_names_of_classes_are_compared_by_letters_and_digits(dataset: Dataset) -> None:
    assert dataset.classes == tuple(f"class{n}" for n in range(5))
    same = replace(tiny.make_teacher(), classes=tuple(f"Class {n}" for n in range(5)))
    assert list(class_warnings(same, dataset, 5)) == []
    other = replace(same, classes=("Class 1", "Class 0", *same.classes[2:]))  # type: ignore[index]
    (found,) = class_warnings(other, dataset, 5)
    assert "2 of 5 classes have other names" in found
    assert "class 0 is 'Class 1' there, 'class0' here" in found
    (found,) = class_warnings(same, dataset, 7)
    assert "has 7 classes, the dataset 5" in found


def test_a_report_measures_what_the_source_and_the_recipe_show(dataset: Dataset) -> None:
    known = replace(tiny.make_teacher(), inputs=Inputs(size=16, crop=1.0))
    recipe = tiny.make_recipe(size=12)
    report = report_teacher(known, dataset, recipe, CheckOptions(batch_size=10))
    assert report.num_classes == 5
    assert report.shown is not None
    assert (report.own.size, report.shown.size) == (16, 12)
    assert (report.own.score.samples, report.shown.score.samples) == (24, 24)
    assert report.own.score.top1 is not None
    assert report.images_per_s > 0
    assert any("made for 16 pixels" in sentence for sentence in report.warnings)
    same = report_teacher(known, dataset, None, CheckOptions())
    assert same.shown is None
    assert same.own.score == report.own.score
