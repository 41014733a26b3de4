"""Claims about the tables of augmentations and mixing: what may be written, what it means as an id.

One recipe has one canonical form; an error names the file, the table, the field and what is
allowed there.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from kdcache.errors import UsageError
from kdcache.identity import canonical_json
from kdcache.recipe import parts
from kdcache.recipe.parts import Part
from kdcache.recipe.schema import Recipe, parse_recipe
from tests.recipe.tables import STEPS, any_recipes

SMALL: dict[str, Any] = {"seed": 1, "size": 8, "crop": {"law": "full"}}


def parse(**tables: Any) -> Recipe:
    return parse_recipe({**SMALL, **tables}, source="a.toml")


def refusal(**tables: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse(**tables)
    return str(caught.value)


# --- identity ----------------------------------------------------------------------------------


def test_every_table_gives_another_id() -> None:
    ids = {name: parse(**table).id for name, table in STEPS.items()}
    assert len({*ids.values(), parse().id}) == len(STEPS) + 1


# Each field of each table, at another value than its default.
CHANGES: dict[str, dict[str, Any]] = {
    "flip": {"horizontal": 0.5, "vertical": 0.5},
    "jitter": {
        "probability": 0.5,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
        "hue": 0.25,
    },
    "grey": {"probability": 0.5},
    "blur": {"probability": 0.5, "sigma": [0.1, 2.5]},
    "solarize": {"probability": 0.5, "threshold": 127},
    "posterize": {"probability": 0.5, "bits": 5},
    "equalize": {"probability": 0.5},
    "autocontrast": {"probability": 0.5},
    "augment": {"num_ops": 3, "magnitude": 10},
    "erase": {
        "probability": 0.5,
        "area": [0.02, 0.4],
        "ratio": [0.3, 3.0],
        "fill": [124, 116, 105],
    },
    "mix": {"mixup": 0.4, "cutmix": 0.4},
}
BARE: dict[str, dict[str, Any]] = {
    "flip": {"horizontal": 1.0, "vertical": 1.0},
    "jitter": {"hue": 0.1},
    "augment": {"law": "randaugment"},
    "mix": {"law": "switch"},
}


@pytest.mark.parametrize("table", CHANGES)
def test_every_field_of_a_table_is_part_of_the_id(table: str) -> None:
    bare = BARE.get(table, {"probability": 1.0})
    ids = {parse(**{table: bare}).id, parse().id}
    for field, value in CHANGES[table].items():
        ids.add(parse(**{table: {**bare, field: value}}).id)
    assert len(ids) == 2 + len(CHANGES[table])
    written = type(getattr(parse(**{table: bare}), table)).model_fields
    assert set(CHANGES[table]) == set(written) - {"law"}


def test_laws_of_one_table_have_ids_of_their_own() -> None:
    augments = [{"law": "trivial"}, {"law": "randaugment"}]
    mixes = [{"law": "mixup"}, {"law": "cutmix"}, {"law": "switch"}]
    tables = [{"augment": law} for law in augments] + [{"mix": law} for law in mixes]
    assert len({parse(**table).id for table in tables}) == 5


@settings(deadline=None, max_examples=200)
@given(recipe=any_recipes)
def test_the_canonical_form_is_read_back_as_the_same_recipe(recipe: Recipe) -> None:
    text = canonical_json(recipe.canonical())
    again = parse_recipe(json.loads(text), source="t")
    assert again == recipe
    assert again.id == recipe.id
    assert canonical_json(again.canonical()) == text
    for name, part in recipe:
        assert (name in recipe.canonical()) == (part is not None)


TABLES: dict[str, dict[str, Any]] = {
    "flip": {"vertical": 1},
    "jitter": {"hue": 0.1},
    "grey": {"probability": 0.2},
    "blur": {"probability": 0.5},
    "solarize": {"probability": 0.5},
    "posterize": {"probability": 0.5},
    "equalize": {"probability": 0.5},
    "autocontrast": {"probability": 0.5},
    "augment": {"law": "randaugment"},
    "erase": {"probability": 0.25},
    "mix": {"law": "switch"},
}


def test_the_canonical_form_of_every_table_holds_all_its_settings() -> None:
    whole = parse(**TABLES).canonical()
    assert {name: whole[name] for name in TABLES} == {
        "flip": {"vertical": 1.0},
        "jitter": {
            "probability": 1.0,
            "brightness": 0.0,
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.1,
        },
        "grey": {"probability": 0.2},
        "blur": {"probability": 0.5, "sigma": [0.1, 2.0]},
        "solarize": {"probability": 0.5, "threshold": 128},
        "posterize": {"probability": 0.5, "bits": 4},
        "equalize": {"probability": 0.5},
        "autocontrast": {"probability": 0.5},
        "augment": {"law": "randaugment", "num_ops": 2, "magnitude": 9},
        "erase": {
            "probability": 0.25,
            "area": [0.02, 0.33],
            "ratio": [0.3, 3.3],
            "fill": [124, 116, 104],
        },
        "mix": {"law": "switch", "mixup": 0.5, "cutmix": 0.5},
    }
    assert parse(**whole).id == parse(**TABLES).id
    assert parse(augment={"law": "trivial"}).canonical()["augment"] == {"law": "trivial"}
    assert parse(mix={"law": "cutmix"}).canonical()["mix"] == {"law": "cutmix"}
    assert parse(**STEPS["noise"]).canonical()["erase"]["fill"] == "noise"


def test_the_ids_of_recipes_with_new_tables_never_change() -> None:
    assert parse(**TABLES).id == "a23da349ecbf7a00b0594f3a2dace335e9011204f59399cfb7e3d55b20bdb59a"
    some = {"augment": {"law": "trivial"}, "mix": {"law": "cutmix"}, **STEPS["noise"]}
    assert parse(**some).id == "243b4502a30a0990d7825ca9c4a211c3f8f80a71c1fed76ed871bfa373df0d11"


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tables",
    [
        {"jitter": {"brightness": 10, "contrast": 10.0, "saturation": 10, "hue": 0.5}},
        {"blur": {"probability": 1, "sigma": [0.1, 10]}},
        {"blur": {"probability": 1, "sigma": [1, 1]}},
        {"solarize": {"probability": 1, "threshold": 0}},
        {"solarize": {"probability": 1, "threshold": 256}},
        {"posterize": {"probability": 1, "bits": 1}},
        {"posterize": {"probability": 1, "bits": 8}},
        {"augment": {"law": "randaugment", "num_ops": 1, "magnitude": 0}},
        {"augment": {"law": "randaugment", "num_ops": 8, "magnitude": 30}},
        {"erase": {"probability": 1, "area": [1e-9, 1], "ratio": [0.01, 100], "fill": [0, 0, 0]}},
        {"erase": {"probability": 1, "fill": [255, 255, 255]}},
        {"mix": {"law": "switch", "mixup": 1, "cutmix": 0}},
        {"mix": {"law": "switch", "mixup": 0, "cutmix": 1}},
        {"mix": {"law": "switch", "mixup": 0.7, "cutmix": 0.3}},
        {"mix": {"law": "switch", "mixup": 0.57, "cutmix": 0.43}},
        {"mix": {"law": "switch", "mixup": 1e-9, "cutmix": 0}},
        {"block": 2, "mix": {"law": "cutmix"}},
    ],
    ids=str,
)
def test_limits_may_be_reached(tables: dict[str, Any]) -> None:
    recipe = parse(**tables)
    assert all(getattr(recipe, name) is not None for name in tables)


@pytest.mark.parametrize("hundredth", range(101))
def test_two_hundredths_that_make_one_may_be_written(hundredth: int) -> None:
    mix = {"law": "switch", "mixup": hundredth / 100, "cutmix": (100 - hundredth) / 100}
    assert parse(mix=mix).mix is not None


CHANCE = "expected a probability above 0 and at most 1, found "
LIST = "expected [low, high]"
NUMBER, WHOLE = "Input should be a valid number", "Input should be a valid integer"
AREA = "area must be [low, high] with 0 < low <= high <= 1"
RATIO = "ratio must be [low, high] with 0.01 <= low <= high <= 100"
SIGMA = "sigma must be [low, high] with 0.1 <= low <= high <= 10.0"
FILL = 'fill must be "noise" or [red, green, blue], each from 0 to 255, found '
SWITCH = "mixup + cutmix must be above 0 and at most 1"
JITTER = "give brightness, contrast, saturation or hue"
SURE = {"probability": 1}
NAN = float("nan")


def above(bound: float) -> str:
    return f"Input should be less than or equal to {bound}, found "


def below(bound: float) -> str:
    return f"Input should be greater than or equal to {bound}, found "


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        # flip
        ({"flip": {"vertical": 0}}, f"flip.vertical: {CHANCE}0"),
        ({"flip": {"vertical": 1.5}}, f"flip.vertical: {CHANCE}1.5"),
        # jitter
        ({"jitter": {}}, f"jitter: {JITTER}"),
        ({"jitter": {"probability": 0.5, "hue": 0}}, f"jitter: {JITTER}"),
        ({"jitter": {"hue": 0.6}}, f"jitter.hue: {above(0.5)}0.6"),
        ({"jitter": {"hue": NAN}}, f"jitter.hue: {above(0.5)}nan"),
        ({"jitter": {"brightness": -1}}, f"jitter.brightness: {below(0)}-1"),
        ({"jitter": {"contrast": 11}}, f"jitter.contrast: {above(10)}11"),
        ({"jitter": {"saturation": "0.4"}}, f"jitter.saturation: {NUMBER}, found '0.4'"),
        ({"jitter": {"saturation": [0.4, 1]}}, f"jitter.saturation: {NUMBER}, found [0.4, 1]"),
        (
            {"jitter": {"bright": 1}},
            "jitter.bright: unknown field; allowed: probability, brightness, contrast, saturation,"
            " hue",
        ),
        (
            {"jitter": 0.4},
            "jitter: expected a table (probability, brightness, contrast, saturation, hue),"
            " found 0.4",
        ),
        # steps without settings
        *(
            (tables, message)
            for name in ("grey", "equalize", "autocontrast")
            for tables, message in (
                ({name: {}}, f"{name}.probability: Field required"),
                ({name: True}, f"{name}: expected a table (probability), found True"),
                ({name: {"probability": 2}}, f"{name}.probability: {CHANCE}2"),
                (
                    {name: {"probability": 0.0}},
                    f"{name}.probability: {CHANCE}0.0",
                ),
                (
                    {name: {**SURE, "rate": 1}},
                    f"{name}.rate: unknown field; allowed: probability",
                ),
            )
        ),
        # blur
        ({"blur": {"sigma": [1, 2]}}, "blur.probability: Field required"),
        ({"blur": {**SURE, "sigma": [0.05, 1]}}, f"blur: {SIGMA}"),
        ({"blur": {**SURE, "sigma": [2, 1]}}, f"blur: {SIGMA}"),
        ({"blur": {**SURE, "sigma": [2, 10.5]}}, f"blur: {SIGMA}"),
        ({"blur": {**SURE, "sigma": [NAN, 2]}}, f"blur: {SIGMA}"),
        ({"blur": {**SURE, "sigma": [1, NAN]}}, f"blur: {SIGMA}"),
        ({"blur": {**SURE, "sigma": 2}}, f"blur.sigma: {LIST}, found 2"),
        ({"blur": {**SURE, "sigma": [1]}}, "blur.sigma.1: Field required, found [1]"),
        (
            {"blur": {**SURE, "radius": 2}},
            "blur.radius: unknown field; allowed: probability, sigma",
        ),
        # solarize, posterize
        ({"solarize": {**SURE, "threshold": 257}}, f"solarize.threshold: {above(256)}257"),
        ({"solarize": {**SURE, "threshold": -1}}, f"solarize.threshold: {below(0)}-1"),
        ({"solarize": {**SURE, "threshold": 0.5}}, f"solarize.threshold: {WHOLE}, found 0.5"),
        ({"posterize": {**SURE, "bits": 0}}, f"posterize.bits: {below(1)}0"),
        ({"posterize": {**SURE, "bits": 9}}, f"posterize.bits: {above(8)}9"),
        (
            {"posterize": {**SURE, "bit": 4}},
            "posterize.bit: unknown field; allowed: probability, bits",
        ),
        # augment
        ({"augment": {}}, "augment: law is missing; allowed: randaugment, trivial"),
        ({"augment": {"law": "auto"}}, "augment: law 'auto' is unknown; allowed: randaugment,"),
        (
            {"augment": "trivial"},
            "augment: expected a table (law: randaugment, trivial), found 'trivial'",
        ),
        (
            {"augment": {"law": "trivial", "magnitude": 3}},
            "augment.magnitude: unknown field; allowed: law",
        ),
        (
            {"augment": {"law": "randaugment", "magnitude": 31}},
            f"augment.magnitude: {above(30)}31",
        ),
        (
            {"augment": {"law": "randaugment", "magnitude": 9.5}},
            f"augment.magnitude: {WHOLE}, found 9.5",
        ),
        (
            {"augment": {"law": "randaugment", "num_ops": 9}},
            f"augment.num_ops: {above(8)}9",
        ),
        (
            {"augment": {"law": "randaugment", "num_ops": 0}},
            f"augment.num_ops: {below(1)}0",
        ),
        (
            {"augment": {"law": "randaugment", "m": 9}},
            "augment.m: unknown field; allowed: law, num_ops, magnitude",
        ),
        # erase
        ({"erase": {}}, "erase.probability: Field required"),
        ({"erase": {**SURE, "fill": "random"}}, f"erase.fill: {FILL}'random'"),
        ({"erase": {**SURE, "fill": 0}}, f"erase.fill: {FILL}0"),
        ({"erase": {**SURE, "fill": [1, 2]}}, f"erase.fill: {FILL}[1, 2]"),
        ({"erase": {**SURE, "fill": [1, 2, 256]}}, f"erase.fill: {FILL}[1, 2, 256]"),
        ({"erase": {**SURE, "fill": [-1, 2, 3]}}, f"erase.fill: {FILL}[-1, 2, 3]"),
        ({"erase": {**SURE, "fill": [1, 2, 3.0]}}, f"erase.fill: {FILL}[1, 2, 3.0]"),
        ({"erase": {**SURE, "fill": [True, 2, 3]}}, f"erase.fill: {FILL}[True, 2, 3]"),
        ({"erase": {**SURE, "area": [0, 1]}}, f"erase: {AREA}"),
        ({"erase": {**SURE, "area": [0.5, 0.4]}}, f"erase: {AREA}"),
        ({"erase": {**SURE, "area": [0.5, 1.1]}}, f"erase: {AREA}"),
        ({"erase": {**SURE, "area": [0.5, NAN]}}, f"erase: {AREA}"),
        ({"erase": {**SURE, "ratio": [3.3, 0.3]}}, f"erase: {RATIO}"),
        ({"erase": {**SURE, "ratio": [0.001, 1]}}, f"erase: {RATIO}"),
        ({"erase": {**SURE, "ratio": [1, 101]}}, f"erase: {RATIO}"),
        (
            {"erase": {**SURE, "ratio": [1, 1, 1]}},
            "erase.ratio: List should have at most 2 items after validation, not 3, found [1,",
        ),
        (
            {"erase": {**SURE, "scale": [0, 1]}},
            "erase.scale: unknown field; allowed: probability, area, ratio, fill",
        ),
        # mix
        ({"mix": {"law": "cutmix", "alpha": 1}}, "mix.alpha: unknown field; allowed: law"),
        ({"mix": {"law": "switch", "mixup": 0.6, "cutmix": 0.6}}, f"mix: {SWITCH}"),
        ({"mix": {"law": "switch", "mixup": 0, "cutmix": 0}}, f"mix: {SWITCH}"),
        ({"mix": {"law": "switch", "mixup": -0.1}}, f"mix.mixup: {below(0)}-0.1"),
        ({"mix": {"law": "switch", "cutmix": NAN}}, f"mix.cutmix: {above(1)}nan"),
        (
            {"mix": {"law": "switch", "alpha": 1}},
            "mix.alpha: unknown field; allowed: law, mixup, cutmix",
        ),
        ({"mix": "cutmix"}, "mix: expected a table (law: mixup, cutmix, switch), found 'cutmix'"),
        ({"block": 1, "mix": {"law": "cutmix"}}, "recipe: mix needs a block of at least 2"),
        ({"block": 1, "mix": {"law": "switch"}}, "recipe: mix needs a block of at least 2"),
        ({"gray": SURE}, "gray: unknown field; allowed: pixels, seed, size,"),
    ],
    ids=str,
)
def test_an_error_names_the_file_the_table_the_field_and_what_is_allowed(
    tables: dict[str, Any], message: str
) -> None:
    assert refusal(**tables).startswith(f"a.toml: {message}")


def test_faults_in_several_tables_are_listed_at_once() -> None:
    message = refusal(blur={"sigma": [1, 2]}, grey={"probability": 7}, erase={**SURE, "fill": 1})
    for field in ("blur.probability", "grey.probability", "erase.fill"):
        assert f" {field}: " in message
    assert message.count("; ") == 2


def test_every_table_is_immutable_and_refuses_unknown_fields() -> None:
    tables = [part for part in vars(parts).values() if isinstance(part, type)]
    tables = [part for part in tables if issubclass(part, Part)]
    assert len(tables) == 19
    for part in tables:
        assert part.model_config.get("frozen")
        assert part.model_config.get("extra") == "forbid"
        assert part.model_config.get("strict")
