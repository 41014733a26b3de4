"""Claims about recipes: one id for one meaning, and errors that say what to write instead."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kdcache.errors import UsageError
from kdcache.identity import canonical_json, digest
from kdcache.recipe.schema import Recipe, central_recipe, load_recipe, parse_recipe
from tests.recipe.tables import any_tables

SMALL: dict[str, Any] = {"seed": 1, "size": 8, "crop": {"law": "full"}}
FULL_TOML = """\
pixels = 1
seed = 20240601
size = 224
block = 32
resize = "pillow"

[crop]
law = "inception"
area = [0.08, 1]
ratio = [0.5, 2.0]

[decode]
guard = 2
exif = "apply"
max_pixels = 1000000

[flip]
horizontal = 0.5

[mix]
law = "mixup"
"""
FULL: dict[str, Any] = {
    "pixels": 1,
    "seed": 20240601,
    "size": 224,
    "block": 32,
    "resize": "pillow",
    "crop": {"law": "inception", "area": [0.08, 1.0], "ratio": [0.5, 2.0]},
    "decode": {"guard": 2.0, "exif": "apply", "max_pixels": 1_000_000},
    "flip": {"horizontal": 0.5},
    "mix": {"law": "mixup"},
}


def parse(**changes: Any) -> Recipe:
    """Return the smallest recipe with changes; None leaves a field out."""
    fields = {**SMALL, **changes}
    return parse_recipe({k: v for k, v in fields.items() if v is not None}, source="a.toml")


def refusal(**changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse(**changes)
    return str(caught.value)


def to_toml(table: dict[str, Any]) -> str:
    """Return a table of tables as TOML; TOML's scalars and lists of these are JSON's."""
    flat = [f"{key} = {json.dumps(v)}" for key, v in table.items() if not isinstance(v, dict)]
    for name, part in table.items():
        if isinstance(part, dict):
            flat += ["", f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in part.items())]
    return "\n".join(flat) + "\n"


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return value


# --- identity ------------------------------------------------------------------------------


def test_the_ids_of_recipes_never_change(tmp_path: Path) -> None:
    path = tmp_path / "full.toml"
    path.write_text(FULL_TOML)
    full = load_recipe(path)
    assert full.canonical() == FULL
    assert full.id == digest(FULL)
    assert full.id == "3c8b1d2ff37e76cb519c6c3e509eba66aba2876f722f26e38a961c738bb7d0a5"
    assert parse().id == "bcec8d0ebd49ecc2276bebf9358f8a44517b3bd4c5885bc29eb49e5d27e8eadb"
    matching = {
        "seed": 0,
        "size": 224,
        "crop": {"law": "inception"},
        "flip": {"horizontal": 0.5},
        "mix": {"law": "mixup"},
    }
    mild = {"seed": 2**63 - 1, "size": 32, "crop": {"law": "mild", "resize": 36}}
    centre = {"seed": 7, "size": 224, "block": 1, "crop": {"law": "centre", "resize": 256}}
    assert [
        parse_recipe(fields, source="t").id
        for fields in (matching, {**mild, "flip": {"horizontal": 0.5}}, centre)
    ] == [
        "43322e47e1f0c4f53de1454596bbcc9cb81f0925b219a2b7024c4b0b4fb7c7ed",
        "165c0d6a19e64b00ed5ac2874bee2e66a71a3b5d4b6fe4a3ac0566e6c864a6a7",
        "d9ffe61d5f39ff6bf2d38cdfff9fdd9b947f3dbaa10d62f0ad521b8628bef1cd",
    ]


def test_steps_that_are_off_are_not_part_of_the_canonical_form() -> None:
    assert parse().canonical() == {
        "pixels": 1,
        "seed": 1,
        "size": 8,
        "block": 64,
        "resize": "torch",
        "crop": {"law": "full"},
        "decode": {"guard": 1.25, "exif": "ignore", "max_pixels": 89_478_485},
    }
    assert parse(flip={"horizontal": 1.0}).canonical()["flip"] == {"horizontal": 1.0}
    assert parse(mix={"law": "mixup"}).canonical()["mix"] == {"law": "mixup"}


@settings(deadline=None, max_examples=150)
@given(table=any_tables)
def test_a_recipe_survives_json_and_toml(
    table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = parse_recipe(table, source="t")
    through_json = parse_recipe(json.loads(canonical_json(recipe.canonical())), source="t")
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(to_toml(recipe.canonical()), encoding="utf-8")
    assert through_json == load_recipe(path) == recipe
    assert through_json.id == load_recipe(path).id == recipe.id


def test_the_central_view_at_224_pixels_is_the_preset() -> None:
    assert central_recipe(224) == load_recipe("centre")
    crops = [central_recipe(size).crop for size in (1, 12, 128)]
    assert [getattr(crop, "resize", None) for crop in crops] == [1, 14, 146]


@settings(deadline=None)
@given(table=any_tables)
def test_the_order_of_keys_does_not_count(table: dict[str, Any]) -> None:
    turned = reversed_keys(table)
    assert list(turned) != list(table)
    assert parse_recipe(turned, source="t").id == parse_recipe(table, source="t").id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"size": 9},
        {"block": 63},
        {"resize": "pillow"},
        {"crop": {"law": "inception"}},
        {"crop": {"law": "mild", "resize": 8}},
        {"crop": {"law": "centre", "resize": 8}},
        {"decode": {"guard": 1.5}},
        {"decode": {"exif": "apply"}},
        {"decode": {"max_pixels": 10}},
        {"flip": {"horizontal": 0.5}},
        {"mix": {"law": "mixup"}},
    ],
    ids=str,
)
def test_every_field_is_part_of_the_id(change: dict[str, Any]) -> None:
    assert parse(**change).id != parse().id


def test_whole_numbers_and_stated_defaults_give_the_same_id() -> None:
    assert parse(flip={"horizontal": 1}).id == parse(flip={"horizontal": 1.0}).id
    assert parse(block=64, resize="torch", decode={"guard": 1.25}).id == parse().id
    whole = {"law": "inception", "area": [0.05, 1]}
    assert parse(crop=whole).id == parse(crop={"law": "inception"}).id


def test_a_recipe_cannot_be_changed() -> None:
    recipe = parse()
    with pytest.raises(ValueError, match="frozen"):
        recipe.size = 9  # type: ignore[misc]


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # unknown fields: the ones allowed there are listed
        (
            {"sede": 1},
            "sede: unknown field; allowed: pixels, seed, size, block, resize, crop, decode, flip,"
            " jitter, grey, blur, solarize, posterize, equalize, autocontrast, augment, erase, mix",
        ),
        (
            {"crop": {"law": "inception", "scale": [0, 1]}},
            "crop.scale: unknown field; allowed: law, area, ratio",
        ),
        (
            {"crop": {"law": "mild", "resize": 9, "area": [0, 1]}},
            "crop.area: unknown field; allowed: law, resize",
        ),
        ({"crop": {"law": "full", "resize": 9}}, "crop.resize: unknown field; allowed: law"),
        (
            {"decode": {"gard": 2.0}},
            "decode.gard: unknown field; allowed: guard, exif, max_pixels",
        ),
        (
            {"flip": {"horizontal": 0.5, "diagonal": 0.5}},
            "flip.diagonal: unknown field; allowed: horizontal, vertical",
        ),
        ({"mix": {"law": "mixup", "alpha": 1}}, "mix.alpha: unknown field; allowed: law"),
        # missing fields
        ({"seed": None}, "seed: Field required"),
        ({"size": None}, "size: Field required"),
        ({"crop": None}, "crop: Field required"),
        ({"crop": {"law": "mild"}}, "crop.resize: Field required"),
        ({"flip": {}}, "flip: give horizontal, vertical or both"),
        ({"mix": {}}, "mix: law is missing; allowed: mixup, cutmix, switch"),
        ({"crop": {}}, "crop: law is missing; allowed: inception, mild, centre, full"),
        # unknown choices: the ones allowed are listed
        (
            {"crop": {"law": "random"}},
            "crop: law 'random' is unknown; allowed: inception, mild, centre, full",
        ),
        (
            {"mix": {"law": "mixed"}},
            "mix: law 'mixed' is unknown; allowed: mixup, cutmix, switch",
        ),
        ({"resize": "bicubic"}, "resize: 'torch' or 'pillow' found 'bicubic'"),
        ({"decode": {"exif": "yes"}}, "decode.exif: 'ignore' or 'apply' found 'yes'"),
        ({"pixels": 2}, "pixels: 1 found 2"),
        # wrong types
        ({"size": "8"}, "size: integer found '8'"),
        ({"size": 8.0}, "size: integer found 8.0"),
        ({"seed": True}, "seed: integer found True"),
        ({"seed": 0.5}, "seed: integer found 0.5"),
        ({"flip": 0.5}, "flip: expected a table (horizontal, vertical), found 0.5"),
        ({"flip": {"horizontal": "half"}}, "flip.horizontal: number found 'half'"),
        ({"flip": {"horizontal": True}}, "flip.horizontal: number found True"),
        (
            {"crop": "full"},
            "crop: expected a table (law: inception, mild, centre, full), found 'full'",
        ),
        ({"crop": {"law": "inception", "area": 0.5}}, "crop.area: found 0.5"),
        ({"crop": {"law": "inception", "area": [0.5]}}, "crop.area.1: required"),
        ({"crop": {"law": "inception", "area": ["a", 1]}}, "crop.area.0: number found"),
        ({"crop": {"law": "inception", "area": [0.1, 0.2, 0.3]}}, "crop.area: 2 items"),
        # out of range: the bound and the value found are named
        ({"seed": -1}, "seed: greater than or equal to 0 found -1"),
        ({"seed": 2**63}, f"seed: less than {2**63} found {2**63}"),
        ({"size": 0}, "size: greater than or equal to 1 found 0"),
        ({"size": 4097}, "size: less than or equal to 4096 found 4097"),
        ({"block": 0}, "block: greater than or equal to 1 found 0"),
        ({"block": 65537}, "block: less than or equal to 65536 found 65537"),
        ({"flip": {"horizontal": 0.0}}, "flip.horizontal: probability above 0 found 0.0"),
        ({"flip": {"horizontal": 1.5}}, "flip.horizontal: probability at most 1 found 1.5"),
        ({"flip": {"horizontal": float("nan")}}, "flip.horizontal: found nan"),
        ({"decode": {"guard": 0.9}}, "decode.guard: greater than or equal to 1 found 0.9"),
        ({"decode": {"guard": 17.0}}, "decode.guard: less than or equal to 16 found 17.0"),
        ({"decode": {"guard": float("nan")}}, "decode.guard: found nan"),
        ({"decode": {"max_pixels": 0}}, "decode.max_pixels: greater than or equal to 1 found 0"),
        ({"decode": {"max_pixels": 10**9}}, "decode.max_pixels: equal to 89478485 found"),
        ({"crop": {"law": "mild", "resize": 0}}, "crop.resize: greater than or equal to 1"),
        # contradictions
        (
            {"crop": {"law": "inception", "area": [0.5, 0.4]}},
            "crop: area must be [low, high] with 0 < low <= high <= 1",
        ),
        (
            {"crop": {"law": "inception", "area": [0.0, 0.4]}},
            "crop: area must be [low, high] with 0 < low <= high <= 1",
        ),
        (
            {"crop": {"law": "inception", "area": [0.1, float("nan")]}},
            "crop: area must be [low, high] with 0 < low <= high <= 1",
        ),
        (
            {"crop": {"law": "inception", "ratio": [2.0, 0.5]}},
            "crop: ratio must be [low, high] with 0.01 <= low <= high <= 100",
        ),
        ({"crop": {"law": "mild", "resize": 7}}, "crop.resize is 7, below size 8"),
        ({"crop": {"law": "centre", "resize": 7}}, "crop.resize is 7, below size 8"),
        ({"block": 1, "mix": {"law": "mixup"}}, "mix needs a block of at least 2"),
    ],
    ids=str,
)
def test_an_error_names_the_file_the_field_and_what_is_allowed(
    change: dict[str, Any], words: str
) -> None:
    message = refusal(**change)
    assert message.startswith("a.toml: ")
    field, _, rest = words.partition(": ")
    if not rest:
        assert words in message
        return
    assert f" {field}: " in message
    if rest.startswith(("unknown", "law ", "area must", "ratio must", "give", "expected")):
        assert f" {field}: {rest}" in message
    for word in rest.split():
        assert word in message


def test_every_fault_is_listed_at_once() -> None:
    message = refusal(seed=-1, size="8", colour="red")
    assert all(f"{field}: " in message for field in ("seed", "size", "colour"))
    assert message.count("; ") >= 3  # between three faults, and before "allowed"


def test_a_missing_or_unreadable_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none\.toml: neither a file nor a preset; presets: centre"
    ):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot read the recipe: Is a directory"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    "content", [b"seed = ", b"seed = 1\nseed = 2", b"\xff\xfe\x00", b"[crop", b'{"seed": 1}']
)
def test_a_file_that_is_not_toml_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.toml: not a TOML file: "):
        load_recipe(path)


# --- imports -------------------------------------------------------------------------------


def test_importing_the_recipe_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, kdcache.recipe.plan, kdcache.recipe.schema, kdcache.recipe.draws\n"
        "print([m for m in ('torch', 'torchvision', 'PIL', 'zarr', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
