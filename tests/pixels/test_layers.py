"""Claims about the digests of layers: each differs where its layer's result does, only there."""

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.pixels import render as render_module
from kdcache.pixels.decode import Decoded
from kdcache.pixels.render import render_drawn
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.witness import Layer, LayerDigests, libraries, witness
from kdcache.recipe import plan as plan_module
from kdcache.recipe.plan import draw_view
from kdcache.recipe.schema import Recipe
from tests.photos import encoded, pattern_png, smooth_photo
from tests.pixels import reference
from tests.pixels.altering import alter, one_off
from tests.recipe.tables import recipe_of

TABLE: dict[str, Any] = {
    "seed": 2,
    "size": 12,
    "block": 4,
    "crop": {"law": "inception"},
    "flip": {"horizontal": 0.5},
    "posterize": {"probability": 0.8},
    "erase": {"probability": 0.8, "fill": "noise"},
    "mix": {"law": "switch"},
}
IMAGES = [
    pattern_png(61, 47, kind=2),
    encoded(smooth_photo(200, 170, seed=1), quality=85),
    pattern_png(30, 80, kind=1),
    encoded(smooth_photo(90, 33, seed=2), subsampling=0),
    pattern_png(12, 12, kind=2),
    encoded(smooth_photo(33, 77, seed=5), "WEBP"),
]
UIDS = np.arange(5, 11, dtype=np.uint64)
KEPT = {"draw", "decode", "resize", "steps"}


def digests(
    recipe: Recipe,
    *,
    views: Sequence[int] = (3,),
    slices: Sequence[slice] = (slice(0, 4), slice(4, 6)),
    skip: Sequence[int] = (),
    images: Sequence[bytes | None] = IMAGES,
    whole: bool = True,
) -> tuple[dict[str, int], list[int]]:
    """Return the digests of all rows, block after block, and the witnesses of the first view."""
    layers, witnesses = LayerDigests(), []
    for rows in slices:
        files = [None if row in skip else images[row] for row in range(6)][rows]
        one = recipe.model_copy(update={"block": rows.stop - rows.start})
        drawn = [draw_view(one, UIDS[rows], view=view) for view in views]
        block = render_drawn(one, files, drawn, whole=whole, layers=layers)
        witnesses.append(int(block.witnesses()[0]))
    return layers.values(), witnesses


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    assert before.keys() == after.keys() == KEPT
    return {name for name, digest in before.items() if after[name] != digest}


ALL = recipe_of(TABLE)
PLAIN = recipe_of({"seed": 2, "size": 12, "crop": {"law": "full"}})


@pytest.mark.parametrize(
    ("layer", "differing"),
    [
        (Layer.DRAW, KEPT),
        (Layer.DECODE, {"decode", "resize", "steps"}),
        (Layer.RESIZE, {"resize", "steps"}),
        (Layer.STEPS, {"steps"}),
        (Layer.MIX, set()),
    ],
)
def test_the_first_digest_that_differs_is_that_of_the_layer_altered(
    monkeypatch: pytest.MonkeyPatch, layer: Layer, differing: set[str]
) -> None:
    before, seen = digests(ALL)
    alter(monkeypatch, layer)
    after, other = digests(ALL)
    assert changed(before, after) == differing
    assert seen != other


def test_a_difference_that_the_next_layer_takes_back_is_that_layers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One pixel of 61 x 47 is lost in a view of 12 x 12; what is not cropped is not seen."""
    plain, (before, seen) = render_module.decode_image, digests(PLAIN)

    def off(*args: Any, **options: Any) -> Decoded:
        made = plain(*args, **options)
        return (
            made._replace(pixels=one_off(made.pixels)) if made.pixels.size == 61 * 47 * 3 else made
        )

    monkeypatch.setattr(render_module, "decode_image", off)
    after, same = digests(PLAIN)
    assert changed(before, after) == {"decode"}
    assert same == seen
    narrow = recipe_of({**TABLE, "crop": {"law": "inception", "area": [0.001, 0.001]}})
    with monkeypatch.context() as patch:
        patch.setattr(render_module, "decode_image", plain)
        before, seen = digests(narrow)
    after, same = digests(narrow)
    assert changed(before, after) == set()
    assert same == seen


def test_steps_that_come_to_the_same_pixels_differ_in_the_draw_alone() -> None:
    """Keeping all eight bits is a step that does nothing."""
    eight = {"probability": 1.0, "bits": 8}
    base = {"seed": 2, "size": 12, "crop": {"law": "full"}}
    (before, seen), (after, same) = (
        digests(recipe_of(base)),
        digests(recipe_of({**base, "posterize": eight})),
    )
    assert changed(before, after) == {"draw"}
    assert seen == same


def test_flips_are_seen_in_the_draw_and_after_the_resize() -> None:
    base = {"seed": 2, "size": 12, "crop": {"law": "inception"}}
    for flips in ({"horizontal": 1.0}, {"vertical": 1.0}):
        before, after = digests(recipe_of(base)), digests(recipe_of({**base, "flip": flips}))
        assert changed(before[0], after[0]) == {"draw", "steps"}


def other_words(word: int) -> Callable[..., Any]:
    """Return a source of numbers in which one word is another."""
    plain = plan_module.uniforms

    def drawn(*args: Any, **options: Any) -> NDArray[np.float64]:
        numbers = plain(*args, **options)
        if "first" not in options:
            numbers[:, word] = (numbers[:, word] + 0.5) % 1
        return numbers

    return drawn


def test_numbers_of_mixing_are_in_no_digest_so_that_mixing_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Partner, weight, law, rectangle: they decide what the layer mix does, and nothing before."""
    before, seen = digests(ALL)
    for word in (5, 25, 26):
        with monkeypatch.context() as patch:
            patch.setattr(plan_module, "uniforms", other_words(word))
            after, other = digests(ALL)
        assert seen != other
        assert after == before
    plain = plan_module.mixing_partners
    monkeypatch.setattr(plan_module, "mixing_partners", lambda *a, **o: np.roll(plain(*a, **o), 1))
    after, other = digests(ALL)
    assert seen != other
    assert after == before


@pytest.mark.parametrize("word", [2, 4, 38, 42])
def test_other_numbers_of_a_row_are_seen_in_the_draw(
    monkeypatch: pytest.MonkeyPatch, word: int
) -> None:
    before, _ = digests(ALL)
    monkeypatch.setattr(plan_module, "uniforms", other_words(word))
    after, _ = digests(ALL)
    assert "draw" in changed(before, after)


def test_the_digests_are_of_what_the_format_states() -> None:
    """Row after row: box, flips and steps as int64; then the pixels of each layer."""
    made: dict[str, list[bytes]] = {name: [] for name in KEPT}
    for rows in (slice(0, 4), slice(4, 6)):
        images, names = IMAGES[rows], UIDS[rows]
        plan = reference.plan_of(ALL, images, 3, uids_N=names)
        crops = [
            reference.crop(ALL, *pair) for pair in zip(images, plan.boxes_N4.tolist(), strict=True)
        ]
        resized = [RESIZE["torch"](pixels, ALL.size) for pixels in crops]
        for row in range(len(images)):
            numbers = [*plan.boxes_N4[row], *plan.flips_N2[row], *plan.steps_NK6[row].ravel()]
            made["draw"].append(struct.pack(f"<{len(numbers)}q", *map(int, numbers)))
        made["decode"] += [pixels.tobytes() for pixels in crops]
        made["resize"] += [pixels.tobytes() for pixels in resized]
        made["steps"] += [pixels.tobytes() for pixels in reference.stepped(resized, plan)]
    expected = {k: xxhash.xxh3_64_intdigest(b"".join(parts)) for k, parts in made.items()}
    assert digests(ALL)[0] == expected


# --- whatever they are taken with --------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(views=st.lists(st.integers(0, 9), max_size=3), whole=st.booleans())
def test_the_digests_are_those_of_the_first_view_whatever_is_rendered_with_it(
    views: list[int], whole: bool
) -> None:
    assert digests(ALL, views=[3, *views], whole=whole) == digests(ALL)
    assert digests(ALL, views=[3]) != digests(ALL, views=[4])


@settings(deadline=None, max_examples=30)
@given(cuts=st.sets(st.integers(1, 5)))
def test_without_mixing_the_split_into_calls_does_not_count(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 6]
    slices = [slice(a, b) for a, b in pairwise(edges)]
    alone = recipe_of({k: v for k, v in TABLE.items() if k != "mix"})
    assert digests(alone, slices=slices)[0] == digests(alone)[0]


@pytest.mark.parametrize("skip", [(0,), (2, 3), (0, 1, 2, 3, 4, 5)])
def test_rows_that_cannot_be_used_leave_no_trace(skip: tuple[int, ...]) -> None:
    """Known to be bad, or found to be: by their header, or only when they are decoded."""
    known = digests(PLAIN, skip=skip)
    cut_off = IMAGES[1][: len(IMAGES[1]) // 2]
    for bad in (b"no image", cut_off):
        images = [bad if row in skip else data for row, data in enumerate(IMAGES)]
        assert digests(PLAIN, images=images) == known
    others = [row for row in range(6) if row not in skip]
    alone = digests(PLAIN, slices=[slice(row, row + 1) for row in others])
    assert known[0] == alone[0]


def test_the_order_of_rows_counts() -> None:
    turned = [slice(4, 6), slice(0, 4)]
    assert changed(digests(PLAIN)[0], digests(PLAIN, slices=turned)[0]) >= {"decode", "resize"}


def test_taking_digests_changes_no_pixel() -> None:
    _, seen = digests(ALL)
    drawn = draw_view(ALL, UIDS[:4], view=3)
    block = render_drawn(ALL, IMAGES[:4], [drawn])
    assert witness(block.pixels_GNHW3[0]) == seen[0]


# --- names -------------------------------------------------------------------------------------


def test_each_layer_names_what_it_rests_on() -> None:
    found = {layer: libraries(layer, resize="pillow") for layer in Layer}
    assert found == {
        Layer.DRAW: ("numpy",),
        Layer.DECODE: ("simplejpeg", "pillow"),
        Layer.RESIZE: ("pillow",),
        Layer.STEPS: ("numpy",),
        Layer.MIX: ("numpy",),
    }
    assert libraries(Layer.RESIZE, resize="torch") == ("torch",)
    assert [layer.value for layer in Layer] == ["draw", "decode", "resize", "steps", "mix"]
    assert set(LayerDigests().values()) == KEPT
    assert libraries(Layer.RESIZE, resize="pillow-bicubic") == ("pillow",)
    assert libraries(Layer.RESIZE, resize="torch-bicubic") == ("torch",)
    assert set(RESIZE) == {"torch", "pillow", "torch-bicubic", "pillow-bicubic"}


def test_the_digest_of_nothing_is_xxh3s_and_the_layout_in_memory_does_not_count() -> None:
    """The known answer of xxHash's own sanity check for no bytes."""
    assert set(LayerDigests().values().values()) == {0x2D06800538D394C2}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    found = []
    for array in (pixels, np.asfortranarray(pixels), np.repeat(pixels, 2, axis=1)[:, ::2]):
        layers = LayerDigests()
        layers.add(Layer.RESIZE, array)
        found.append(layers.values()["resize"])
    assert found == [witness(pixels)] * 3
