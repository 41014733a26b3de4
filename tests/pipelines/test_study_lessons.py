import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.recipe.plan import draw_view, plan_drawn
from kdcache.recipe.schema import Recipe
from pipelines.study.data import Source, Table, teacher_accuracy
from pipelines.study.design import ARMS, Arm, Fault
from pipelines.study.faults import altered, wrong_pixels
from pipelines.study.lessons import RECIPES, make_lesson
from pipelines.study.work import Views

NUM_VIEWS = 4
REPLAYED: tuple[Arm, ...] = ("consistent, mild crops", "consistent", "function matching")


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    """Four views of each recipe, of a teacher that learned for an epoch."""
    threads = torch.get_num_threads()
    counts = {"consistent": NUM_VIEWS, "funmatch": NUM_VIEWS, "mild": NUM_VIEWS}
    folder = tmp_path_factory.mktemp("seed") / "large"
    made = Views(Source(folder, 200, counts, "student", teacher_epochs=1, measured="test"))
    for recipe in counts:
        made.views(recipe)
    torch.set_num_threads(threads)
    return made


def _taught(views: Views, pixels_VRHW: Tensor, temperature: float = 1.0) -> Tensor:
    """Return what the teacher itself says of pixels: log-probabilities (V, R, C)."""
    colour = pixels_VRHW.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    logits = views.source.teacher(colour).view(*pixels_VRHW.shape[:2], -1)
    return (logits / temperature).log_softmax(2)


def _assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # stored in half precision


@pytest.mark.parametrize("arm", REPLAYED)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_arms_that_replay_learn_what_the_teacher_says_of_those_very_pixels(
    views: Views, arm: Arm, temperature: float
) -> None:
    lesson = make_lesson(arm, views, temperature=temperature)
    _assert_close(lesson.target.log_probs_NK, _taught(views, lesson.pixels_VRHW, temperature))
    assert lesson.shift == 0


def test_independent_learns_what_the_teacher_says_of_another_view(views: Views) -> None:
    lesson = make_lesson("independent", views, temperature=1.0)
    own = _taught(views, lesson.pixels_VRHW)
    for epoch in range(NUM_VIEWS):
        _, target = lesson.batch(epoch, torch.arange(100))
        other = (epoch + NUM_VIEWS // 2) % NUM_VIEWS
        _assert_close(target.log_probs_NK, own[other])
        assert other != epoch


def test_fixed_learns_what_the_teacher_says_of_the_whole_image(views: Views) -> None:
    lesson = make_lesson("fixed", views, temperature=2.0)
    _assert_close(lesson.target.log_probs_NK, _taught(views, views.centre().pixels_VRHW, 2.0))


def test_the_mean_of_crops_is_that_of_the_teachers_probabilities(views: Views) -> None:
    lesson = make_lesson("fixed, mean of crops", views, temperature=1.0)
    probs = _taught(views, lesson.pixels_VRHW).exp().mean(0, keepdim=True)
    _assert_close(lesson.target.log_probs_NK, probs.log())


def test_fixed_and_mixup_mixes_the_two_predictions_as_the_pixels_are(views: Views) -> None:
    table = views.views("funmatch")
    lesson = make_lesson("fixed + mixup", views, temperature=1.0)
    own = _taught(views, views.centre().pixels_VRHW)[0].exp()
    share = table.weights_VR[..., None]
    mixed = share * own + (1 - share) * own[table.partners_VR]
    _assert_close(lesson.target.log_probs_NK, mixed.log())


def test_label_arms_learn_labels_mixed_as_the_pixels_are(views: Views) -> None:
    table = views.views("funmatch")
    labels = table.labels_R
    assert labels.bincount().tolist() == [10] * 10
    plain = make_lesson("labels", views, temperature=None).target.log_probs_NK.exp()
    assert plain.shape == (1, 100, 10)
    assert torch.equal(plain[0].argmax(1), labels)
    assert torch.equal(plain.sum(2), torch.ones(1, 100))
    mixed = make_lesson("labels + mixup", views, temperature=None).target.log_probs_NK.exp()
    rows = torch.arange(100)
    for view in range(NUM_VIEWS):
        partners = table.partners_VR[view]
        expected = table.weights_VR[view] + (1 - table.weights_VR[view]) * (
            labels[partners] == labels
        )
        torch.testing.assert_close(mixed[view, rows, labels], expected)
        assert not (partners == rows).any()


def test_each_arm_sees_its_own_recipe_and_no_more_views_than_it_is_given(views: Views) -> None:
    for arm in ARMS:
        temperature = None if arm.startswith("labels") else 1.0
        lesson = make_lesson(arm, views, temperature=temperature, num_views=3)
        assert torch.equal(lesson.pixels_VRHW, views.views(RECIPES[arm]).pixels_VRHW[:3])
        assert len(lesson.target.log_probs_NK) in (1, 3)


def test_the_teachers_accuracy_is_measured_on_all_test_digits(views: Views) -> None:
    table = views.measured
    assert table.labels_R.shape == (497,)
    best = _taught(views, table.pixels_VRHW)[0].argmax(1)
    assert teacher_accuracy(table) == pytest.approx(
        float((best == table.labels_R).double().mean()), abs=0.005
    )


# --- wrong replays -------------------------------------------------------------------------


def _of(views: Views, name: str) -> tuple[Dataset, Recipe, Table]:
    demo = views.source.demo
    return load_dataset(demo.data("student")), demo.recipe(name), views.views(name)


@pytest.mark.parametrize("name", ["consistent", "funmatch"])
def test_without_a_fault_the_pixels_are_those_of_the_stream(views: Views, name: str) -> None:
    dataset, recipe, table = _of(views, name)
    pixels = wrong_pixels(dataset, recipe, fault="none", num_views=NUM_VIEWS)
    assert torch.equal(pixels, table.pixels_VRHW)


@pytest.mark.parametrize(
    ("fault", "least"),
    [("seed shifted by one", 0.99), ("crop moved by one pixel", 0.8), ("partner swapped", 0.9)],
)
def test_a_fault_changes_nearly_every_mixed_view(views: Views, fault: Fault, least: float) -> None:
    dataset, recipe, table = _of(views, "funmatch")
    pixels = wrong_pixels(dataset, recipe, fault=fault, num_views=NUM_VIEWS)
    changed_VR = (pixels != table.pixels_VRHW).flatten(2).any(2)
    assert changed_VR.double().mean() >= least


def test_a_moved_crop_stands_one_pixel_beside_and_is_else_the_same(views: Views) -> None:
    dataset, recipe, _ = _of(views, "funmatch")
    sizes = np.full((100, 2), 32)
    for view in range(NUM_VIEWS):
        drawn = draw_view(recipe, dataset.uids, view=view)
        moved = altered(recipe, dataset.uids, view=view, fault="crop moved by one pixel")
        before, after = (plan_drawn(recipe, d, sizes_N2=sizes) for d in (drawn, moved))
        left, right = before.boxes_N4[:, 0], after.boxes_N4[:, 0]
        movable = before.boxes_N4[:, 2] < 32
        assert movable.mean() > 0.9
        assert (np.abs(right - left) == movable).all()
        assert np.array_equal(before.boxes_N4[:, 1:], after.boxes_N4[:, 1:])
        assert np.array_equal(before.partners_N, after.partners_N)
        assert np.array_equal(before.weights_N, after.weights_N)


def test_swapped_partners_are_those_of_the_next_view_under_the_same_weights(views: Views) -> None:
    dataset, recipe, _ = _of(views, "funmatch")
    drawn = draw_view(recipe, dataset.uids, view=1)
    swapped = altered(recipe, dataset.uids, view=1, fault="partner swapped")
    following = draw_view(recipe, dataset.uids, view=2)
    assert np.array_equal(swapped.partners_N, following.partners_N)
    assert not np.array_equal(swapped.partners_N, drawn.partners_N)
    assert np.array_equal(swapped.weights_N, drawn.weights_N)
    assert np.array_equal(swapped.numbers_NB, drawn.numbers_NB)


def test_a_shifted_seed_draws_what_the_next_seed_does(views: Views) -> None:
    dataset, recipe, _ = _of(views, "consistent")
    following = recipe.model_copy(update={"seed": recipe.seed + 1})
    shifted, right = (
        wrong_pixels(dataset, r, fault=fault, num_views=1)
        for r, fault in ((recipe, "seed shifted by one"), (following, "none"))
    )
    assert torch.equal(shifted, right)
