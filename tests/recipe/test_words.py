"""Claims about the words of a view: each has one use, for ever, however many rows are drawn."""

from collections.abc import Callable
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from kdcache.recipe import plan as plan_module
from kdcache.recipe.augment import NUM_WORDS
from kdcache.recipe.draws import uniforms
from kdcache.recipe.ops import Op
from kdcache.recipe.plan import ViewParams, block_slices, draw_view, plan_block, plan_drawn
from kdcache.recipe.schema import Recipe
from tests.recipe import reference
from tests.recipe.tables import STEPS, any_recipes, recipe_of

MAX = 2**64 - 1
LEAST_P = 0.001
BASE: dict[str, Any] = {"seed": 5, "size": 16, "crop": {"law": "inception"}}
names = st.integers(0, MAX) | st.sampled_from((0, 2**63, MAX))
sides = st.integers(1, 9) | st.integers(1, 5000)

Draw = Callable[..., NDArray[np.float64]]


def u64(values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def sizes_of(uids_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return an image size for each uid, fixed by it; long ones need many tries."""
    return (uids_N[:, None] % u64([97, 889])).astype(np.int64) + 1


def assert_same(a: ViewParams, b: ViewParams) -> None:
    for field in fields(ViewParams):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs), field.name


# --- the reference -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    chosen=any_recipes,
    uids=st.lists(names, min_size=1, max_size=12, unique=True),
    view=names,
    sizes=st.lists(st.tuples(sides, sides).map(list), min_size=12, max_size=12),
)
@example(
    chosen=recipe_of({**BASE, "size": 1, **STEPS["switch"], **STEPS["erase"]}),
    uids=[MAX],
    view=MAX,
    sizes=[[1, 1]] * 12,
)
def test_a_view_is_the_references_for_any_tables(
    chosen: Recipe, uids: list[int], view: int, sizes: list[list[int]]
) -> None:
    """The reference draws all words of each row from NumPy's generator, in the stated layout."""
    sizes = sizes[: len(uids)]
    found = plan_block(chosen, u64(uids), view=view, sizes_N2=np.array(sizes))
    rows, partners = reference.plan(chosen, uids, view=view, sizes=sizes)
    assert reference.as_rows(found) == rows
    assert found.partners_N.tolist() == partners
    dtypes = {field.name: getattr(found, field.name).dtype for field in fields(found)}
    assert dtypes == {
        "boxes_N4": np.int64,
        "flips_N2": np.bool_,
        "steps_NK6": np.int64,
        "partners_N": np.intp,
        "weights_N": np.uint16,
        "cuts_N4": np.int64,
    }


def test_later_tries_are_the_references_however_late_they_fit() -> None:
    """Long images seldom hold a box: each of the ten tries is taken by some, and the fallback."""
    chosen, uids = recipe_of({**BASE, **STEPS["left-right"]}), list(range(4_000))
    sizes = [[60, 400 + uid % 300] for uid in uids]
    found = plan_block(chosen, u64(uids), view=5, sizes_N2=np.array(sizes))
    rows, _ = reference.plan(chosen, uids, view=5, sizes=sizes)
    assert found.boxes_N4.tolist() == [row.box for row in rows]
    table = chosen.model_dump()
    taken = {
        reference.fitting_try(table, reference.numbers(5, uid, view=5), (size[0], size[1]))
        for uid, size in zip(uids, sizes, strict=True)
    }
    assert taken == {*range(10), None}


# --- which word decides what -------------------------------------------------------------------

FULL: dict[str, Any] = {
    **BASE,
    "crop": {"law": "inception", "area": [0.3, 1.0], "ratio": [0.2, 5.0]},
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "mix": {"law": "switch", "mixup": 0.4, "cutmix": 0.4},
    **{name: STEPS[name][name] for name in (
        "jitter", "grey", "blur", "solarize", "posterize", "equalize", "autocontrast"
    )},
    **STEPS["trivial"],
    # Most tries of crops and rectangles do not fit: every later one is needed somewhere.
    "erase": {"probability": 0.5, "area": [0.7, 1.0], "ratio": [0.2, 5.0], "fill": "noise"},
}  # fmt: skip
PLACES = {
    "jitter": slice(4), "grey": 4, "blur": 5, "solarize": 6, "posterize": 7, "equalize": 8,
    "autocontrast": 9,
}  # fmt: skip
LAYOUT: dict[str, set[int]] = {
    "box": {0, 1, 2, 3, *range(6, 24)},
    "left-right": {4},
    "top-bottom": {24},
    "mix": {5, 25, 26, 27},
    "jitter": set(range(28, 34)),
    "grey": {34},
    "blur": {35, 36},
    "solarize": {37},
    "posterize": {38},
    "equalize": {39},
    "autocontrast": {40},
    "erase": set(range(41, 65)),
    "augment": {65, 66, 67},
}


def parts(params: ViewParams) -> dict[str, list[Any]]:
    """Return what each table decides."""
    steps, num_steps = params.steps_NK6, params.steps_NK6.shape[1]
    places = {**PLACES, "augment": slice(10, num_steps - 1), "erase": num_steps - 1}
    return {
        "box": params.boxes_N4.tolist(),
        "left-right": params.flips_N2[:, 0].tolist(),
        "top-bottom": params.flips_N2[:, 1].tolist(),
        "mix": [params.weights_N.tolist(), params.cuts_N4.tolist()],
        **{name: steps[:, place].tolist() for name, place in places.items()},
    }


def with_word(word: int, value: float) -> Draw:
    """Return a source of numbers that gives all rows one value for one word."""

    def draw(*args: Any, first: int = 0, **options: Any) -> NDArray[np.float64]:
        numbers = uniforms(*args, first=first, **options)
        if first <= word < first + numbers.shape[1]:
            numbers[:, word - first] = value
        return numbers

    return draw


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"law": "trivial"}, {65, 66, 67}),
        # The level is not drawn; each operation has its three words all the same.
        ({"law": "randaugment", "num_ops": 8}, {w for w in range(65, 89) if (w - 65) % 3 != 1}),
    ],
)
def test_each_word_decides_what_the_layout_says_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, augment: dict[str, Any], words: set[int]
) -> None:
    chosen, rows = recipe_of({**FULL, "augment": augment}), u64(list(range(500)))
    sizes = np.tile(np.array([[30, 170]]), (500, 1))
    before = parts(plan_block(chosen, rows, view=3, sizes_N2=sizes))
    layout = {**LAYOUT, "augment": words}
    for word in range(NUM_WORDS):
        changed = set()
        for value in (0.001, 0.3, 0.7, 0.999):
            monkeypatch.setattr(plan_module, "uniforms", with_word(word, value))
            after = parts(plan_block(chosen, rows, view=3, sizes_N2=sizes))
            changed |= {name for name, part in before.items() if after[name] != part}
        assert changed == {name for name, uses in layout.items() if word in uses}, word
    assert NUM_WORDS == 89


@pytest.mark.parametrize("law", ["mixup", "cutmix", "switch"])
@pytest.mark.parametrize("size", [1, 2, 4096])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_all_tables_together_at_certainty_are_the_references(
    num_rows: int, size: int, law: str
) -> None:
    sure = {
        name: {**part, "probability": 1.0} if "probability" in part else part
        for name, part in FULL.items()
        if isinstance(part, dict)
    }
    flip = {"horizontal": 1.0, "vertical": 1.0}
    table = {**FULL, **sure, "size": size, "flip": flip, "mix": {"law": law}}
    chosen, uids = recipe_of(table), [MAX, 0][:num_rows]
    sizes = [[1, 1], [5000, 1]][:num_rows]
    found = plan_block(chosen, u64(uids), view=MAX, sizes_N2=np.array(sizes))
    rows, partners = reference.plan(chosen, uids, view=MAX, sizes=sizes)
    assert reference.as_rows(found) == rows
    assert found.partners_N.tolist() == partners
    assert found.flips_N2.all()
    assert all(len(row.steps) >= 10 for row in rows)


# --- tables and each other ---------------------------------------------------------------------


def done(name: str, params: ViewParams) -> NDArray[np.bool_]:
    """Return what of each row a table did, as far as it can be told by yes or no."""
    if name in ("left-right", "top-bottom"):
        return params.flips_N2[:, int(name == "top-bottom")]
    if name == "mixup":
        return params.weights_N < 128
    if name == "cutmix":
        return params.cuts_N4[:, 2] * params.cuts_N4[:, 3] > 60
    if name == "switch":
        return params.weights_N < 256
    if name in ("randaugment", "trivial"):
        return params.steps_NK6[:, 0, 0] <= Op.SATURATION
    return params.steps_NK6[..., 0].any(axis=1)


PAIRS = [
    (a, b) for a, b in combinations(STEPS, 2) if not STEPS[a].keys() & STEPS[b].keys()
] + [("left-right", "top-bottom")]  # fmt: skip
ALONE: dict[str, ViewParams] = {}


def alone(name: str) -> ViewParams:
    """Return the parameters of 5,000 rows with one table only, worked out once."""
    if name not in ALONE:
        rows = u64(list(range(5_000)))
        chosen = recipe_of({**BASE, **STEPS[name]})
        ALONE[name] = plan_block(chosen, rows, view=9, sizes_N2=sizes_of(rows))
    return ALONE[name]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_table_changes_nothing_of_what_another_does(pair: tuple[str, str]) -> None:
    rows = u64(list(range(300)))
    first, second = (alone(name) for name in pair)
    tables = {**STEPS[pair[0]], **STEPS[pair[1]]}
    if pair == ("left-right", "top-bottom"):
        tables = {"flip": {"horizontal": 0.5, "vertical": 0.5}}
    both = plan_block(recipe_of({**BASE, **tables}), rows, view=9, sizes_N2=sizes_of(rows))
    assert np.array_equal(both.boxes_N4, first.boxes_N4[:300])
    assert np.array_equal(both.flips_N2, (first.flips_N2 | second.flips_N2)[:300])
    assert np.array_equal(both.weights_N, np.minimum(first.weights_N, second.weights_N)[:300])
    assert np.array_equal(both.cuts_N4, (first.cuts_N4 + second.cuts_N4)[:300])
    steps = [params.steps_NK6[:300] for params in (first, second)]
    if pair[1] in ("randaugment", "trivial"):
        assert pair[0] not in ("erase", "noise")  # fields stand in the order of STEPS
    assert np.array_equal(both.steps_NK6, np.concatenate(steps, axis=1))


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_what_two_tables_do_is_independent(pair: tuple[str, str]) -> None:
    table = stats.contingency.crosstab(*(done(name, alone(name)) for name in pair)).count
    assert table.shape == (2, 2)
    assert table.min() > 100
    assert stats.chi2_contingency(table).pvalue > LEAST_P / len(PAIRS)


# --- blocks drawn together ---------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    chosen=any_recipes,
    block=st.integers(2, 9),
    uids=st.lists(names, min_size=1, max_size=40, unique=True),
    view=names,
    data=st.data(),
)
@example(chosen=recipe_of({**BASE, **STEPS["mixup"]}), block=4, uids=[*range(9)], view=0, data=None)
def test_blocks_drawn_together_are_those_drawn_alone(
    chosen: Recipe, block: int, uids: list[int], view: int, data: st.DataObject | None
) -> None:
    """Any size of block, the last one shorter, in any group of consecutive whole blocks."""
    chosen, rows = chosen.model_copy(update={"block": block}), u64(uids)
    slices = block_slices(len(uids), block)
    first, last = 0, len(slices)
    if data is not None:
        first = data.draw(st.integers(0, len(slices) - 1))
        last = data.draw(st.integers(first + 1, len(slices)))
    start, stop = slices[first].start, slices[last - 1].stop
    group = draw_view(chosen, rows[start:stop], view=view)
    for part in slices[first:last]:
        drawn = group.rows(slice(part.start - start, part.stop - start))
        sizes = sizes_of(rows[part])
        together = plan_drawn(chosen, drawn, sizes_N2=sizes)
        assert_same(together, plan_block(chosen, rows[part], view=view, sizes_N2=sizes))


def test_later_words_are_drawn_only_for_rows_that_need_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []

    def counted(seed: int, uids: NDArray[np.uint64], **options: Any) -> NDArray[np.float64]:
        asked.append((len(uids), options.get("first", 0), options["count"]))
        return uniforms(seed, uids, **options)

    monkeypatch.setattr(plan_module, "uniforms", counted)
    rows, sizes = u64(list(range(64))), np.tile(np.array([[60, 45]]), (64, 1))
    plain = recipe_of({**BASE, **STEPS["left-right"], **STEPS["mixup"]})
    plan_block(plain, rows, view=0, sizes_N2=sizes)
    first = asked[0][2]
    assert first < 24
    assert asked == [(64, 0, first)]
    asked.clear()
    sizes[7] = 1, 5000
    plan_block(plain, rows, view=0, sizes_N2=sizes)
    assert asked == [(64, 0, first), (1, first, 24 - first)]
    for name in ("top-bottom", "cutmix", "switch", "grey", "erase", "trivial"):
        asked.clear()
        plan_block(recipe_of({**BASE, **STEPS[name]}), rows[:2], view=0, sizes_N2=sizes[:2])
        assert asked == [(2, 0, NUM_WORDS)]


@pytest.mark.parametrize("name", ["mixup", "trivial"])
def test_what_is_drawn_keeps_no_memory_but_its_own(name: str) -> None:
    """A stream keeps the draws of many blocks: the words that made them are let go."""
    chosen = recipe_of({**BASE, **STEPS[name]})
    drawn = draw_view(chosen, u64(list(range(64))), view=0)
    arrays = [array for array in vars(drawn).values() if isinstance(array, np.ndarray)]
    bases = [array if array.base is None else array.base for array in arrays]
    assert {base.nbytes for base in bases} == {array.nbytes for array in arrays}


def test_a_view_of_all_tables_never_changes() -> None:
    """The golden words of new tables: a change here is a change of every cache that has them."""
    tables = {**FULL, "flip": {"horizontal": 1.0, "vertical": 1.0}, "mix": {"law": "cutmix"}}
    for name in ("grey", "blur", "solarize", "posterize", "equalize", "autocontrast"):
        tables[name] = {**tables[name], "probability": 1.0}
    tables["jitter"] = {**FULL["jitter"], "probability": 1.0}
    tables["erase"] = {"probability": 1.0, "fill": "noise"}
    chosen = recipe_of({**tables, "seed": 2**63 - 1, "size": 224})
    rows, sizes = u64([1, MAX]), np.array([[500, 375], [40, 700]])
    found = plan_block(chosen, rows, view=2**40, sizes_N2=sizes)
    assert found.boxes_N4.tolist() == [[100, 36, 187, 338], [0, 250, 40, 200]]
    assert found.flips_N2.all()
    assert found.partners_N.tolist() == [1, 0]
    assert found.weights_N.tolist() == [256, 256]
    assert found.cuts_N4.tolist() == [[0, 43, 44, 56], [0, 5, 76, 128]]
    assert [reference.trimmed(steps) for steps in found.steps_NK6.tolist()] == [
        [
            (3, 53833), (1, 69210), (2, 63522), (4, -3518), (6,), (7, 93), (8, 128), (9, 4),
            (10,), (11,), (9, 5), (18, 183, 171, 37, 47, 3410971482354725),
        ],
        [
            (1, 84670), (4, 5131), (2, 56315), (3, 74423), (6,), (7, 101), (8, 128), (9, 4),
            (10,), (11,), (15, -21), (18, 33, 99, 102, 98, 20392848903241),
        ],
    ]  # fmt: skip
