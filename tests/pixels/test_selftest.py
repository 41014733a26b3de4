"""Claims about the self-test: it passes here, and names a layer that is one level off."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kdcache.errors import MismatchError
from kdcache.pixels import conformance, pillow, selftest
from kdcache.pixels.render import render_block
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.selftest import check_pixels, found_digest
from kdcache.pixels.witness import Layer, pixel_versions
from kdcache.recipe.ops import Op
from kdcache.recipe.schema import parse_recipe
from tests.photos import pattern_png
from tests.pixels.altering import alter, one_off

# Decoding, proven in conformance.py, has a test of its own.
LAYERS = (Layer.DRAW, Layer.RESIZE, Layer.STEPS, Layer.MIX)
LIBRARY = {Layer.DRAW: "numpy", Layer.STEPS: "numpy", Layer.MIX: "numpy"}


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has not made pixels yet; after it, one that has to prove itself again."""
    check_pixels.cache_clear()
    yield
    check_pixels.cache_clear()


def _check_again(resize: Any) -> None:
    check_pixels.__wrapped__(resize)


@pytest.mark.parametrize("resize", RESIZE)
def test_this_environment_makes_the_pixels_of_pixel_function_1(resize: str) -> None:
    _check_again(resize)


@pytest.mark.parametrize("resize", RESIZE)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_one_level_off_is_named_with_its_library(
    monkeypatch: pytest.MonkeyPatch, layer: Layer, resize: str
) -> None:
    alter(monkeypatch, layer)
    with pytest.raises(MismatchError) as caught:
        _check_again(resize)
    library = LIBRARY.get(layer, resize.removesuffix("-bicubic"))
    assert f"the layer {layer}" in str(caught.value)
    assert f"it rests on {library} {pixel_versions()[library]}: install other versions" in str(
        caught.value
    )
    assert not any(f"layer {other}" in str(caught.value) for other in LAYERS if other != layer)


def test_a_decoder_one_level_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's: other backends are left out instead, where they differ from it."""
    plain = pillow.decode_pillow
    monkeypatch.setattr(pillow, "decode_pillow", lambda *a, **o: one_off(plain(*a, **o)))
    conformance.check_decode.cache_clear()
    try:
        with pytest.raises(MismatchError, match=r"layer decode makes other pixels .* on pillow"):
            _check_again("torch")
    finally:
        conformance.check_decode.cache_clear()


def test_only_the_resize_of_the_recipe_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESIZE, "pillow", lambda pixels, size: one_off(pixels))
    _check_again("torch")
    with pytest.raises(MismatchError, match=r"resize pillow .* rests on pillow"):
        _check_again("pillow")


@pytest.mark.parametrize("size", [(61, 47), (24, 24), (9, 80), (1, 1), (301, 203)])
@pytest.mark.parametrize("resize", RESIZE)
def test_each_resized_image_counts(
    monkeypatch: pytest.MonkeyPatch, resize: str, size: tuple[int, int]
) -> None:
    """A resize that is off for some sizes only: larger, smaller, equal, of one pixel."""
    plain = RESIZE[resize]

    def off_for_one(pixels: np.ndarray, side: int) -> np.ndarray:
        made = plain(pixels, side)
        return one_off(made) if pixels.shape[1::-1] == size else made

    monkeypatch.setitem(RESIZE, resize, off_for_one)
    with pytest.raises(MismatchError, match=f"resize {resize}"):
        _check_again(resize)


def test_every_operation_is_tried_and_each_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tried, expected = selftest.apply_steps, [], found_digest("steps")
    for off in sorted(set(Op) - {Op.NOTHING}):

        def steps(pixels: np.ndarray, steps_K6: np.ndarray, off: Op = off) -> np.ndarray:
            made = plain(pixels, steps_K6)
            tried.append(int(steps_K6[0, 0]))
            return one_off(made) if steps_K6[0, 0] == off else made

        monkeypatch.setattr(selftest, "apply_steps", steps)
        assert found_digest("steps") != expected, off.name
    assert set(tried) == set(Op) - {Op.NOTHING}


def test_every_operation_of_the_test_changes_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an operation that does nothing would pass."""
    plain, unchanged = selftest.apply_steps, []

    def steps(pixels: np.ndarray, steps_K6: np.ndarray) -> np.ndarray:
        made = plain(pixels, steps_K6)
        if np.array_equal(made, pixels):
            unchanged.append(Op(int(steps_K6[0, 0])).name)
        return made

    monkeypatch.setattr(selftest, "apply_steps", steps)
    found_digest("steps")
    assert unchanged == []


FIELDS = ("boxes_N4", "flips_N2", "steps_NK6", "partners_N", "weights_N", "cuts_N4")


@pytest.mark.parametrize("field", FIELDS)
def test_each_number_drawn_counts(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    plain = selftest.plan_block

    def drawn(*args: Any, **options: Any) -> Any:
        params = plain(*args, **options)
        array = getattr(params, field)
        changed = ~array if array.dtype == bool else one_off(array)
        return type(params)(**{**vars(params), field: changed})

    monkeypatch.setattr(selftest, "plan_block", drawn)
    with pytest.raises(MismatchError, match="the layer draw makes other pixels"):
        _check_again("torch")


def _render() -> None:
    recipe = parse_recipe({"seed": 1, "size": 8, "crop": {"law": "full"}}, source="test")
    render_block(recipe, [pattern_png(9, 9)], uids_N=np.array([1], np.uint64), views=[0])


def test_no_pixel_is_made_where_the_test_fails(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(monkeypatch, Layer.RESIZE)
    check_pixels.cache_clear()
    for _ in range(2):  # a failure is not remembered as passed
        with pytest.raises(MismatchError, match="the layer resize torch"):
            _render()


def test_a_process_is_tested_once_for_each_resize(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests: list[str] = []

    def counted(test: str) -> str:
        tests.append(test)
        return found_digest(test)

    monkeypatch.setattr(selftest, "found_digest", counted)
    _render()
    first = list(tests)
    assert "draw" in first
    assert "resize torch" in first
    _render()
    assert tests == first
