"""Claims about a view's two renderings: one set of draws, each at its own size."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import UsageError
from kdcache.recipe.ops import Op
from kdcache.recipe.plan import ViewParams, draw_view, plan_drawn
from kdcache.recipe.schema import Recipe, parse_recipe
from tests.tiny import make_recipe

CROPS: list[dict[str, Any]] = [
    {"law": "inception"},
    {"law": "mild", "resize": 256},
    {"law": "centre", "resize": 250},
    {"law": "full"},
]
NAMES = np.arange(64, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
SIZES = np.stack((np.arange(64) * 37 % 500 + 5, np.arange(64) * 91 % 400 + 5), axis=1)


def two_sizes(student: int = 224, teacher: int = 384, **changes: Any) -> Recipe:
    return make_recipe(size=student, block=64, teacher={"size": teacher}, **changes)


def planned(recipe: Recipe, *, view: int = 0) -> tuple[ViewParams, ViewParams]:
    """Return the parameters of the student's and of the teacher's renderings."""
    student, teacher = (
        plan_drawn(recipe, draw_view(recipe, NAMES, view=view, role=role), sizes_N2=SIZES)
        for role in recipe.roles
    )
    return student, teacher


@pytest.mark.parametrize("crop", CROPS, ids=lambda crop: crop["law"])
@pytest.mark.parametrize("teacher", [96, 299, 384])
def test_both_are_of_one_box_flip_partner_and_weight(crop: dict[str, Any], teacher: int) -> None:
    flips = {"horizontal": 0.5, "vertical": 0.5}
    ours, theirs = planned(two_sizes(teacher=teacher, crop=crop, flip=flips), view=3)
    for name in ("boxes_N4", "flips_N2", "partners_N", "weights_N"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert len({*map(tuple, ours.boxes_N4.tolist())}) > 30


def test_the_student_sees_what_it_sees_without_a_teacher_of_another_size() -> None:
    table: dict[str, Any] = {"augment": {"law": "trivial"}, "mix": {"law": "switch"}}
    alone = make_recipe(size=224, block=64, **table)
    ours, _ = planned(two_sizes(**table))
    same = plan_drawn(alone, draw_view(alone, NAMES, view=0), sizes_N2=SIZES)
    for name in ("boxes_N4", "steps_NK6", "cuts_N4", "weights_N"):
        assert np.array_equal(getattr(ours, name), getattr(same, name)), name


@given(view=st.integers(0, 2**32), teacher=st.integers(24, 900).filter(lambda side: side != 224))
def test_rectangles_of_cutmix_cover_the_same_share(view: int, teacher: int) -> None:
    ours, theirs = planned(two_sizes(teacher=teacher, mix={"law": "cutmix"}), view=view)
    difference = np.abs(ours.cuts_N4 / 224 - theirs.cuts_N4 / teacher).max()
    assert difference <= 2 * max(1 / 224, 1 / teacher)


@given(view=st.integers(0, 2**32), teacher=st.integers(225, 900))
def test_lengths_of_steps_scale_with_the_size(view: int, teacher: int) -> None:
    recipe = two_sizes(
        teacher=teacher,
        blur={"probability": 0.5, "sigma": [0.5, 2.0]},
        augment={"law": "trivial"},
        erase={"probability": 0.7},
    )
    ours, theirs = (params.steps_NK6 for params in planned(recipe, view=view))
    assert np.array_equal(ours[..., 0], theirs[..., 0]), "the same operations"
    scale = teacher / 224
    moved = np.isin(ours[..., 0], [Op.BLUR, Op.TRANSLATE_X, Op.TRANSLATE_Y])
    assert np.abs(ours[moved][:, 1] * scale - theirs[moved][:, 1]).max() <= 1 + scale
    erased = ours[..., 0] == Op.ERASE
    assert np.abs(ours[erased][:, 1:5] * scale - theirs[erased][:, 1:5]).max() <= 2 + 2 * scale
    others = ~moved & ~erased
    assert np.array_equal(ours[others], theirs[others])


def test_a_teachers_table_makes_another_recipe_and_the_same_student() -> None:
    plain, other = make_recipe(size=16), make_recipe(size=16, teacher={"size": 24})
    assert plain.id == plain.student_id
    assert plain.id == other.student_id
    assert plain.id != other.id
    assert other.roles == ("student", "teacher")
    assert (other.size_for("student"), other.size_for("teacher")) == (16, 24)
    assert parse_recipe(other.canonical(), source="again") == other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"size": 12}}, "sees what the student sees"),
        ({"teacher": {"size": 12, "resize": "torch"}}, "sees what the student sees"),
        ({"teacher": {"size": 0}}, "teacher.size"),
        ({"teacher": {"resize": "pillow"}}, "teacher.size"),
        ({"teacher": {"size": 24, "crop": 3}}, "teacher.crop: unknown field"),
        ({"teacher": {"size": 24, "resize": "lanczos"}}, "teacher.resize"),
        ({"teacher": 24}, "expected a table"),
        (
            {"teacher": {"size": 48}, "blur": {"probability": 1.0, "sigma": [1.0, 3.0]}},
            "which is 12 at teacher.size 48",
        ),
    ],
)
def test_a_teachers_table_that_says_nothing_or_too_much_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_recipe(**changes)
