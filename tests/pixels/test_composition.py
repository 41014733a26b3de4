"""Claims about the whole of rendering: steps in their order, any memory, any company."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdcache.data import blocks as blocks_module
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.pixels import render as render_module
from kdcache.pixels.render import render_block, render_drawn
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.steps import apply_steps
from kdcache.pixels.witness import witness
from kdcache.recipe.plan import ViewParams, draw_view
from kdcache.recipe.schema import Recipe
from tests.photos import Pixels, encoded, pattern_png, smooth_photo
from tests.pixels.reference import MAX, flip, mix, reference, uids
from tests.recipe.tables import OPTIONAL, recipe_of

IMAGES = [
    encoded(smooth_photo(200, 170, seed=1), quality=85),
    pattern_png(61, 47),
    encoded(smooth_photo(90, 133, seed=2), subsampling=0, progressive=True),
    encoded(smooth_photo(1, 1, seed=3)),
    encoded(smooth_photo(140, 150, seed=4).convert("CMYK")),
    encoded(smooth_photo(33, 77, seed=5), "WEBP"),
    encoded(smooth_photo(120, 90, seed=6).convert("L"), restart_marker_rows=1),
]
BROKEN = (b"", b"not an image\n", IMAGES[0][:2000], IMAGES[1][:100])


crops = st.one_of(
    st.sampled_from(({"law": "full"}, {"law": "inception"})),
    st.fixed_dictionaries(
        {"law": st.sampled_from(("mild", "centre")), "resize": st.integers(16, 20)}
    ),
)
recipes = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**63 - 1), "size": st.integers(1, 16), "crop": crops},
    optional={"resize": st.sampled_from(("torch", "pillow")), **OPTIONAL},
).map(recipe_of)
views = st.integers(0, 5) | st.sampled_from((2**63, MAX))

# --- steps in their order ----------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "seed": 3,
    "size": 16,
    "crop": {"law": "inception"},
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grey": {"probability": 0.3},
    "blur": {"probability": 0.5},
    "solarize": {"probability": 0.5},
    "posterize": {"probability": 0.5},
    "equalize": {"probability": 0.5},
    "autocontrast": {"probability": 0.5},
    "augment": {"law": "randaugment"},
    "erase": {"probability": 0.5, "fill": "noise"},
    "mix": {"law": "switch"},
}


@settings(deadline=None, max_examples=150)
@given(
    recipe=recipes,
    view=views,
    rows=st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=5),
)
@example(recipe=recipe_of(EVERYTHING), view=0, rows=[0, 1, 2, 3, 4, 5, 6])
@example(recipe=recipe_of({**EVERYTHING, "size": 1}), view=1, rows=[0, 1, 2, 3])
@example(recipe=recipe_of({**EVERYTHING, "size": 1}), view=1, rows=[0])
def test_a_view_is_its_plan_carried_out_step_by_step_for_any_tables(
    recipe: Recipe, view: int, rows: list[int]
) -> None:
    images = [IMAGES[row] for row in rows]
    found = render_block(recipe, images, uids_N=uids(len(rows)), views=[view])
    assert found.usable_N.all()
    assert np.array_equal(found.pixels_GNHW3[0], reference(recipe, images, view))


def step_flip_mix(resized: list[Pixels], plan: ViewParams) -> list[Pixels]:
    stepped = [apply_steps(*pair) for pair in zip(resized, plan.steps_NK6, strict=True)]
    flipped = [flip(*pair) for pair in zip(stepped, plan.flips_N2.tolist(), strict=True)]
    return mix(flipped, plan)


def flip_mix_step(resized: list[Pixels], plan: ViewParams) -> list[Pixels]:
    flipped = [flip(*pair) for pair in zip(resized, plan.flips_N2.tolist(), strict=True)]
    mixed = mix(flipped, plan)
    return [apply_steps(*pair) for pair in zip(mixed, plan.steps_NK6, strict=True)]


ERASE_AND_FLIP = {
    "seed": 3,
    "size": 16,
    "crop": {"law": "full"},
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "erase": {"probability": 1.0},
}


@pytest.mark.parametrize("law", ["mixup", "cutmix"])
def test_flips_come_before_steps_and_steps_before_mixing(law: str) -> None:
    """Erased rectangles are not turned over, and show through in the partners of their rows."""
    recipe = recipe_of({**ERASE_AND_FLIP, "mix": {"law": law}})
    found = render_block(recipe, IMAGES, uids_N=uids(7), views=[4]).pixels_GNHW3[0]
    assert np.array_equal(found, reference(recipe, IMAGES, 4))
    for order in (step_flip_mix, flip_mix_step):
        assert not np.array_equal(found, reference(recipe, IMAGES, 4, order=order))


@pytest.mark.parametrize("resize", RESIZE)
@pytest.mark.parametrize(
    "flips", [{"horizontal": 1.0}, {"vertical": 1.0}, {"horizontal": 1.0, "vertical": 1.0}], ids=str
)
def test_flips_turn_the_view_over_pixel_by_pixel(flips: dict[str, float], resize: str) -> None:
    table = {"seed": 3, "size": 13, "crop": {"law": "inception"}, "resize": resize}
    upright, turned = (
        render_block(recipe_of({**table, **more}), IMAGES, uids_N=uids(7), views=[0, 1])
        for more in ({}, {"flip": flips})
    )
    across = -1 if "horizontal" in flips else 1
    down = -1 if "vertical" in flips else 1
    expected = upright.pixels_GNHW3[:, :, ::down, ::across]
    assert np.array_equal(turned.pixels_GNHW3, expected)
    assert not np.array_equal(turned.pixels_GNHW3, upright.pixels_GNHW3)


# --- several views, in part or in whole --------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(recipe=recipes, asked=st.lists(views, min_size=1, max_size=5), whole=st.booleans())
def test_views_of_one_decode_are_each_view_alone(
    recipe: Recipe, asked: list[int], whole: bool
) -> None:
    names = uids(len(IMAGES))
    together = render_block(recipe, IMAGES, uids_N=names, views=asked, whole=whole)
    witnesses = together.witnesses().tolist()
    for place, view in enumerate(asked):
        alone = render_block(recipe, IMAGES, uids_N=names, views=[view])
        assert np.array_equal(together.pixels_GNHW3[place], alone.pixels_GNHW3[0])
        assert witnesses[place] == int(alone.witnesses()[0]) == witness(alone.pixels_GNHW3[0])
        for name, array in vars(alone.params[0]).items():
            assert np.array_equal(getattr(together.params[place], name), array)


@settings(deadline=None, max_examples=100)
@given(
    recipe=recipes,
    asked=st.lists(views, min_size=1, max_size=4),
    bad=st.dictionaries(st.integers(0, 6), st.sampled_from(BROKEN[:2]), max_size=2),
)
def test_what_the_views_need_is_what_they_take_of_the_whole(
    recipe: Recipe, asked: list[int], bad: dict[int, bytes]
) -> None:
    images = [bad.get(row, data) for row, data in enumerate(IMAGES)]
    parts, whole = (
        render_block(recipe, images, uids_N=uids(7), views=asked, whole=flag)
        for flag in (False, True)
    )
    assert np.array_equal(parts.pixels_GNHW3, whole.pixels_GNHW3)
    assert parts.problems == whole.problems
    assert parts.usable_N.tolist() == whole.usable_N.tolist()


@pytest.mark.parametrize("group_rows", [1, 8, 1024])
@pytest.mark.parametrize("block", [2, 3, 7])
def test_the_blocks_of_a_tar_are_those_rendered_by_their_names(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, block: int, group_rows: int
) -> None:
    """However many rows are drawn at once; the last block of a tar is shorter."""
    monkeypatch.setattr(blocks_module, "GROUP_ROWS", group_rows)
    recipe = recipe_of({**EVERYTHING, "block": block})
    source = dataset_source(dataset, recipe)
    for tar in range(source.num_tars):
        for rows in reversed(source.blocks(tar)):
            found = source.render(tar, rows, views=[3, 0])
            own = source.uids[source.starts[tar] + rows.start : source.starts[tar] + rows.stop]
            alone = render_block(recipe, source.read(tar, rows), uids_N=own, views=[3, 0])
            assert np.array_equal(found.pixels_GNHW3, alone.pixels_GNHW3)


# --- memory ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    recipe=recipes,
    asked=st.lists(views, min_size=1, max_size=3),
    bad=st.dictionaries(st.integers(0, 6), st.sampled_from(BROKEN)),
    filler=st.integers(0, 255),
    whole=st.booleans(),
)
def test_pixels_are_written_where_asked_and_nowhere_else(
    recipe: Recipe, asked: list[int], bad: dict[int, bytes], filler: int, whole: bool
) -> None:
    """Bad rows, too: whatever the memory held before, they are zero."""
    images: list[bytes | None] = [bad.get(row, data) for row, data in enumerate(IMAGES)]
    expected = render_block(recipe, images, uids_N=uids(7), views=asked)
    block = recipe.model_copy(update={"block": 7})
    drawn = [draw_view(block, uids(7), view=view) for view in asked]
    size = recipe.size
    memory = np.full((len(asked) + 2, 9, size, size, 3), filler, np.uint8)
    out = memory[1:-1, 1:-1]
    found = render_drawn(block, images, drawn, whole=whole, out_GNHW3=out)
    assert np.shares_memory(found.pixels_GNHW3, out)
    assert np.array_equal(out, expected.pixels_GNHW3)
    assert found.witnesses().tolist() == expected.witnesses().tolist()
    inside = np.zeros(memory.shape[:2], bool)
    inside[1:-1, 1:-1] = True
    assert (memory[~inside] == filler).all()


Call = tuple[Recipe, list[int], list[int]]
calls = st.lists(
    st.tuples(
        recipes,
        st.lists(st.integers(0, len(IMAGES)), min_size=1, max_size=6),  # one more: a bad image
        st.lists(views, min_size=1, max_size=3),
    ),
    min_size=2,
    max_size=6,
)


def rendered(call: Call) -> Pixels:
    recipe, rows, asked = call
    images = [(*IMAGES, BROKEN[2])[row] for row in rows]
    return render_block(recipe, images, uids_N=uids(len(rows)), views=asked).pixels_GNHW3


def in_fresh_thread(call: Call) -> Pixels:
    """Return the pixels of a call in a thread that has used no memory yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(rendered, call).result()


@settings(deadline=None, max_examples=40)
@given(sequence=calls)
def test_memory_that_is_used_again_never_shows_in_later_or_earlier_blocks(
    sequence: list[Call],
) -> None:
    expected = [in_fresh_thread(call) for call in sequence]
    found = [rendered(call) for call in sequence]
    for pixels, alone in zip(found, expected, strict=True):
        assert np.array_equal(pixels, alone)
    found[0][:] = 0  # memory of its own
    assert all(np.array_equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True))


def test_threads_do_not_share_memory() -> None:
    rng = np.random.default_rng(0)
    sequence: list[Call] = []
    for number in range(60):
        table = {**EVERYTHING, "seed": number, "size": int(rng.integers(1, 40))}
        rows = rng.integers(0, len(IMAGES), rng.integers(2, 7)).tolist()
        sequence.append((recipe_of(table), rows, [number % 5, 7]))
    expected = [witness(rendered(call)) for call in sequence]
    started = threading.Barrier(4)

    def work(_: int) -> list[int]:
        started.wait()
        return [witness(rendered(call)) for call in sequence]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(4)):
            assert found == expected


def test_blocks_beyond_the_kept_memory_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    call = recipe_of(EVERYTHING), [0, 1, 2, 3, 4], [0, 1]
    expected = rendered(call)
    for most in (0, expected.size - 1, expected.size):
        monkeypatch.setattr(render_module, "MAX_SCRATCH_BYTES", most)
        assert np.array_equal(in_fresh_thread(call), expected)
