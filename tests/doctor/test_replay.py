"""Claims about the replay self-test: golden views are stable, cover all code, and name culprits."""

import numpy as np
import pytest

from kdcache.doctor import replay
from kdcache.doctor.replay import (
    Difference,
    differences,
    golden_images,
    golden_recipe,
    golden_record,
    make_witnesses,
)
from kdcache.errors import MismatchError
from kdcache.pixels import conformance, render
from kdcache.pixels.conformance import BACKENDS, available_backends, conforming
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.witness import Layer
from kdcache.recipe.ops import Op
from kdcache.recipe.schema import Recipe
from tests.pixels.altering import alter, one_off

PROVEN = golden_record()["versions"]


def test_golden_views_are_as_committed() -> None:
    assert differences() == []
    assert "each byte as stated" in replay.replay().text


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_decoder_that_conforms_makes_the_golden_views(
    fresh: None, monkeypatch: pytest.MonkeyPatch, backend: conformance.Backend
) -> None:
    if backend not in available_backends() or not conforming(backend):
        pytest.skip(f"no {backend} here")
    monkeypatch.setenv(conformance.BACKEND_VARIABLE, backend)
    assert conformance.chosen_backends()[0] == backend
    assert differences() == []


def test_golden_views_pass_through_every_step_scale_and_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scales, ops, plans = set(), set(), []
    jpeg_scale, planned = render.jpeg_scale, render.plan_drawn

    def scale(width: int, height: int, *, least: float) -> int:
        scales.add(jpeg_scale(width, height, least=least))
        return jpeg_scale(width, height, least=least)

    def plan(*args: object, **options: object) -> object:
        plans.append(planned(*args, **options))  # type: ignore[arg-type]
        return plans[-1]

    monkeypatch.setattr(render, "jpeg_scale", scale)
    monkeypatch.setattr(render, "plan_drawn", plan)
    recipe = golden_recipe("torch")
    make_witnesses(recipe, "student")
    ops = {int(op) for made in plans for op in made.steps_NK6[..., 0].ravel()}
    assert scales == {1, 2, 4, 8}
    assert set(map(int, Op)) - ops <= {Op.ERASE}  # a recipe erases by noise or by a colour
    assert any((made.weights_N < 256).any() for made in plans)
    assert any(made.cuts_N4.any() for made in plans)
    assert all(np.concatenate([made.flips_N2 for made in plans]).any(0))
    assert all(getattr(recipe, name) is not None for name in Recipe.model_fields)


@pytest.mark.parametrize("layer", Layer)
def test_a_layer_that_is_off_is_named_with_its_library(
    fresh: None, monkeypatch: pytest.MonkeyPatch, layer: Layer
) -> None:
    alter(monkeypatch, layer)
    found = differences()
    assert {difference.layer.split()[0] for difference in found} == {layer}
    if layer is Layer.RESIZE:
        assert found == [
            Difference(f"resize {name}", (name.removesuffix("-bicubic"),)) for name in RESIZE
        ]
    with pytest.raises(MismatchError, match=f"{layer}.* makes other pixels with .* proven, so"):
        replay.replay()


def test_one_resize_that_is_off_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RESIZE["torch"]
    monkeypatch.setitem(RESIZE, "torch", lambda pixels, size: one_off(plain(pixels, size)))
    assert differences() == [Difference("resize torch", ("torch",))]


def test_the_version_to_change_to_is_the_proven_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "pixel_versions", lambda: {**PROVEN, "torch": "1.0"})
    text = replay.describe([Difference("resize torch", ("torch",)), Difference("mix", ("numpy",))])
    assert text == (
        "caches made elsewhere do not replay bit for bit here: resize torch makes other pixels "
        f"with torch 1.0 (so does mix): change torch to {PROVEN['torch']}, which is proven"
    )


def test_an_image_that_cannot_be_decoded_is_a_difference_of_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = golden_images()
    monkeypatch.setattr(replay, "golden_images", lambda: [*images[:-1], b"no image"])
    assert [difference.layer for difference in differences()] == ["decode"]
