"""The replay self-test: golden views are made again, and compared with their committed witnesses.

They go the whole way of a view, from a file's bytes to mixed pixels, by the decoders that this
process would use, in every resize and as both roles see them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from kdcache.doctor.section import Section
from kdcache.errors import MismatchError
from kdcache.pixels.conformance import check_decode, chosen_backends
from kdcache.pixels.render import render_drawn
from kdcache.pixels.resize import RESIZE
from kdcache.pixels.selftest import first_failing
from kdcache.pixels.witness import (
    Layer,
    LayerDigests,
    join_layers,
    libraries,
    pixel_versions,
)
from kdcache.recipe.parts import Resize, Role
from kdcache.recipe.plan import draw_view
from kdcache.recipe.schema import Recipe, load_recipe

HOLDS = "caches made elsewhere replay bit for bit here"
NUM_VIEWS = 8
_FILES = resources.files("kdcache.doctor.golden")


@dataclass(frozen=True)
class Difference:
    """A layer that makes other pixels here than it should: "resize torch", and its libraries."""

    layer: str
    libraries: tuple[str, ...]


def golden_images() -> list[bytes]:
    """Return the image files, by name."""
    named = {f.name: f for f in _FILES.iterdir() if f.name.endswith((".jpg", ".png", ".webp"))}
    return [named[name].read_bytes() for name in sorted(named)]


def golden_recipe(resize: Resize) -> Recipe:
    """Return the recipe of the golden views with a resize function."""
    with resources.as_file(_FILES / "recipe.toml") as path:
        return load_recipe(path).model_copy(update={"resize": resize})


@lru_cache(maxsize=1)
def golden_record() -> dict[str, Any]:
    """Return the committed witnesses by resize and role, and the versions that made them."""
    record: dict[str, Any] = json.loads((_FILES / "witnesses.json").read_text("utf-8"))
    return record


def make_witnesses(recipe: Recipe, role: Role) -> dict[str, Any]:
    """Return the witness of the golden block in each view, and each layer's digest over them.

    Where an image cannot be used, why not stands beside them.
    """
    images = golden_images()
    uids = np.arange(1, len(images) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    whole = recipe.model_copy(update={"block": len(images)})
    witnesses, layers, problems = [], [], set[str]()
    for view in range(NUM_VIEWS):
        made = LayerDigests()
        drawn = [draw_view(whole, uids, view=view, role=role)]
        block = render_drawn(recipe, images, drawn, role=role, layers=made)
        witnesses.append(f"{int(block.witnesses()[0]):016x}")
        layers.append(made.values())
        problems.update(block.problems.values())
    found = {"witnesses": witnesses, "layers": join_layers(layers)}
    return {**found, "problems": sorted(problems)} if problems else found


def differences() -> list[Difference]:
    """Return every layer that makes other pixels here than those stated, in the order of layers."""
    try:
        check_decode()
    except MismatchError:
        return [Difference(Layer.DECODE, ("pillow",))]
    found = {difference: None for resize in RESIZE for difference in _of_resize(resize)}
    return sorted(found, key=lambda d: list(Layer).index(Layer(d.layer.split()[0])))


def _of_resize(resize: Resize) -> Iterator[Difference]:
    """Yield the first layer that differs in the self-test's patterns, or else in golden views."""
    name = first_failing(resize)
    recipe, record = golden_recipe(resize), golden_record()["views"][resize]
    for role in recipe.roles:
        if name is None and (found := make_witnesses(recipe, role)) != record[role]:
            name = _first_layer(found, record[role], resize)
    if name is not None:
        layer = Layer(name.split()[0])
        used = libraries(layer, resize=resize)
        if layer is Layer.DECODE:
            used = tuple(b for b in chosen_backends() if b in pixel_versions())
        yield Difference(name, used)


def _first_layer(found: dict[str, Any], expected: dict[str, Any], resize: Resize) -> str:
    """Return the first layer whose digest differs; mixing, where all others agree."""
    if "problems" in found:
        return Layer.DECODE
    for name, digest in expected["layers"].items():
        if found["layers"][name] != digest:
            return f"{name} {resize}" if name == Layer.RESIZE else name
    return Layer.MIX


def replay() -> Section:
    """Return that all golden views are made as stated.

    Raises:
        MismatchError: some are not; the message names what differs and which library to change.
        UsageError: KDCACHE_JPEG asks for a decoder that cannot be used.
    """
    found = differences()
    if found:
        raise MismatchError(describe(found))
    num_views = NUM_VIEWS * sum(map(len, golden_record()["views"].values()))
    made = f"{num_views} views of {len(golden_images())} images"
    return Section(f"{made}: each byte as stated, by this processor too", {"views": num_views})


def describe(found: list[Difference]) -> str:
    """Return in one line what differs, and which library to change to which version."""
    here, proven = pixel_versions(), golden_record()["versions"]
    first, *more = found
    made = ", ".join(f"{name} {here[name]}" for name in first.libraries)
    changed = [f"{n} to {proven[n]}" for n in first.libraries if here[n] != proven[n]]
    advice = (
        f"change {', '.join(changed)}, which is proven"
        if changed
        else "this version is proven, so its build or the processor is to blame: install the "
        f"wheel of {first.libraries[0]} that its makers publish"
    )
    others = f" (so does {', '.join(difference.layer for difference in more)})" if more else ""
    return (
        f"caches made elsewhere do not replay bit for bit here: {first.layer} makes other pixels "
        f"with {made}{others}: {advice}"
    )
