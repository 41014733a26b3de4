"""Claims about the annotated recipe: it is the recipe, and names every setting there is."""

import re
import tomllib
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from kdcache.recipe.annotated import SETTINGS, annotated
from kdcache.recipe.schema import Recipe, load_recipe, parse_recipe, presets


def _parsed(text: str) -> Recipe:
    return parse_recipe(tomllib.loads(text), source="test")


@pytest.mark.parametrize("name", presets())
def test_what_is_written_is_the_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert _parsed(annotated(recipe, title="a title")).id == recipe.id


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the tables that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def test_every_setting_of_the_schema_is_named_once() -> None:
    fields = set()
    for name, field in Recipe.model_fields.items():
        models = _models(field.annotation)
        fields |= {(name, inner) for model in models for inner in model.model_fields}
        fields |= set() if models else {("", name)}
    assert sorted((s.table, s.name) for s in SETTINGS) == sorted(fields)


def test_what_is_a_comment_is_a_setting_that_works() -> None:
    """Each table's comments are taken in, but for what goes with another law."""
    text = annotated(load_recipe("centre"), title="a title")
    other = ("area", "ratio", "mixup", "cutmix")
    head, *tables = re.split(r"\n(?=(?:# )?\[)", text)
    for table in tables:
        lines = table.splitlines()
        if lines[0] in ("[crop]", "# [mix]"):
            lines = [line for line in lines if not re.match(rf"# ({'|'.join(other)}) =", line)]
        open_ = "\n".join(line.removeprefix("# ") for line in lines)
        others = "\n".join(t for t in tables if t is not table)
        found = _parsed(f"{head}\n{open_}\n{others}").canonical()
        name = lines[0].removeprefix("# ").strip("[]")
        commented = {s.name for s in SETTINGS if s.table == name} - set(other)
        if lines[0].startswith("#") or name == "crop":
            assert commented - {"area", "ratio"} <= set(found[name]), name
