"""Recipes for the tests: every table by itself, and any tables together."""

from typing import Any

from hypothesis import strategies as st

from kdcache.recipe.schema import Recipe, parse_recipe

# Each step by itself, done about half the time where it may.
STEPS: dict[str, dict[str, Any]] = {
    "left-right": {"flip": {"horizontal": 0.5}},
    "top-bottom": {"flip": {"vertical": 0.5}},
    "jitter": {
        "jitter": {
            "probability": 0.5,
            "brightness": 0.4,
            "contrast": 0.3,
            "saturation": 0.2,
            "hue": 0.1,
        }
    },
    "grey": {"grey": {"probability": 0.5}},
    "blur": {"blur": {"probability": 0.5}},
    "solarize": {"solarize": {"probability": 0.5}},
    "posterize": {"posterize": {"probability": 0.5}},
    "equalize": {"equalize": {"probability": 0.5}},
    "autocontrast": {"autocontrast": {"probability": 0.5}},
    "randaugment": {"augment": {"law": "randaugment"}},
    "trivial": {"augment": {"law": "trivial"}},
    "erase": {"erase": {"probability": 0.5}},
    "noise": {"erase": {"probability": 0.5, "fill": "noise"}},
    "mixup": {"mix": {"law": "mixup"}},
    "cutmix": {"mix": {"law": "cutmix"}},
    "switch": {"mix": {"law": "switch", "mixup": 0.3, "cutmix": 0.4}},
}

# --- any tables --------------------------------------------------------------------------------


def ranges(low: float, high: float) -> st.SearchStrategy[list[float]]:
    """Return ranges [low, high] within bounds, ends that meet among them."""
    ends = st.floats(low, high)
    return st.tuples(ends, ends).map(sorted) | ends.map(lambda end: [end, end])


chances = st.floats(0.001, 1) | st.just(1.0)
areas, ratios = ranges(1e-6, 1), ranges(0.01, 100)
crops = st.one_of(
    st.just({"law": "full"}),
    st.fixed_dictionaries({"law": st.just("inception")}, optional={"area": areas, "ratio": ratios}),
    st.fixed_dictionaries(
        {"law": st.sampled_from(("mild", "centre")), "resize": st.integers(4096, 9999)}
    ),
)
flips = st.fixed_dictionaries({"horizontal": chances}, optional={"vertical": chances}) | (
    st.fixed_dictionaries({"vertical": chances})
)
strengths = st.floats(0, 10) | st.just(0.0)
jitters = st.fixed_dictionaries(
    {},
    optional={
        "probability": chances,
        "brightness": strengths,
        "contrast": strengths,
        "saturation": strengths,
        "hue": st.floats(0, 0.5) | st.just(0.5),
    },
).filter(lambda table: any(value for name, value in table.items() if name != "probability"))
plain = st.fixed_dictionaries({"probability": chances})
levels = st.integers(0, 255)
augments = st.just({"law": "trivial"}) | st.fixed_dictionaries(
    {"law": st.just("randaugment")},
    optional={"num_ops": st.integers(1, 8), "magnitude": st.integers(0, 30)},
)
erases = st.fixed_dictionaries(
    {"probability": chances},
    optional={
        "area": areas,
        "ratio": ratios,
        "fill": st.just("noise") | st.lists(levels, min_size=3, max_size=3),
    },
)
halves = st.integers(0, 100).flatmap(
    lambda cutmix: st.fixed_dictionaries(
        {
            "law": st.just("switch"),
            "mixup": st.integers(cutmix == 0, 100 - cutmix).map(lambda hundredth: hundredth / 100),
            "cutmix": st.just(cutmix / 100),
        }
    )
)
mixes = st.sampled_from(({"law": "mixup"}, {"law": "cutmix"}, {"law": "switch"})) | halves
decodes = st.fixed_dictionaries(
    {},
    optional={
        "guard": st.floats(1, 16),
        "exif": st.sampled_from(("ignore", "apply")),
        "max_pixels": st.integers(1, 89_478_485),
    },
)
OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "flip": flips,
    "jitter": jitters,
    "grey": plain,
    "blur": st.fixed_dictionaries({"probability": chances}, optional={"sigma": ranges(0.1, 10)}),
    "solarize": st.fixed_dictionaries(
        {"probability": chances}, optional={"threshold": st.integers(0, 256)}
    ),
    "posterize": st.fixed_dictionaries(
        {"probability": chances}, optional={"bits": st.integers(1, 8)}
    ),
    "equalize": plain,
    "autocontrast": plain,
    "augment": augments,
    "erase": erases,
    "mix": mixes,
}
any_tables = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**63 - 1), "size": st.integers(1, 4096), "crop": crops},
    optional={
        "block": st.integers(2, 65536),
        "resize": st.sampled_from(("torch", "pillow")),
        "decode": decodes,
        **OPTIONAL,
    },
)


def recipe_of(fields: dict[str, Any]) -> Recipe:
    """Return the recipe that a table holds."""
    return parse_recipe(fields, source="test")


any_recipes = any_tables.map(recipe_of)
