"""A recipe as a file to edit: every setting that there is, with a comment; unused ones as comments.

Invariant: what is written is the recipe, to its id.
"""

import json
from typing import Any, NamedTuple

from kdcache.recipe.schema import Recipe


class Setting(NamedTuple):
    """A setting, a value to begin with where a recipe has none, and what it says."""

    table: str
    name: str
    value: Any
    says: str


SETTINGS = tuple(
    Setting(*row)
    for row in (
        ("", "pixels", 1, "version of the pixel function"),
        ("", "seed", 0, "another seed makes other views"),
        ("", "size", 224, "pixels of a view's side"),
        ("", "block", 64, "rows of a tar among which mixing partners are drawn"),
        ("", "resize", "torch", "or pillow, torch-bicubic, pillow-bicubic"),
        ("crop", "law", "inception", "inception, mild, centre or full"),
        ("crop", "area", [0.05, 1.0], "of inception: share of the image, low and high"),
        ("crop", "ratio", [0.75, 1.3333333333333333], "of inception: width over height"),
        ("crop", "resize", 256, "of mild, centre: pixels of the shorter side before the crop"),
        ("decode", "guard", 1.25, "a JPEG is decoded smaller if its box keeps guard x size pixels"),
        ("decode", "exif", "ignore", "or apply: images are turned as their EXIF says"),
        ("decode", "max_pixels", 89478485, "larger images are refused"),
        ("flip", "horizontal", 0.5, "chance"),
        ("flip", "vertical", 0.5, "chance"),
        ("jitter", "probability", 0.8, "chance of what follows, in random order"),
        ("jitter", "brightness", 0.4, "factor 0.6 to 1.4"),
        ("jitter", "contrast", 0.4, "factor"),
        ("jitter", "saturation", 0.4, "factor"),
        ("jitter", "hue", 0.1, "turns of the colour wheel, at most 0.5"),
        ("grey", "probability", 0.2, "chance of no colours"),
        ("blur", "probability", 0.5, "chance of a Gaussian blur"),
        ("blur", "sigma", [0.1, 2.0], "pixels of the view, at most 10"),
        ("solarize", "probability", 0.2, "chance that values are inverted"),
        ("solarize", "threshold", 128, "from this value on"),
        ("posterize", "probability", 0.2, "chance that only upper bits stay"),
        ("posterize", "bits", 4, "so many"),
        ("equalize", "probability", 0.2, "chance of an even histogram"),
        ("autocontrast", "probability", 0.2, "chance of the full range of values"),
        ("augment", "law", "randaugment", "or trivial: one operation of random strength"),
        ("augment", "num_ops", 2, "of randaugment: operations"),
        ("augment", "magnitude", 9, "of randaugment: 0 to 30"),
        ("erase", "probability", 0.25, "chance of a rectangle that is filled"),
        ("erase", "area", [0.02, 0.33], "share of the view"),
        ("erase", "ratio", [0.3, 3.3], "of its sides"),
        ("erase", "fill", [124, 116, 104], 'red, green, blue; or "noise"'),
        ("mix", "law", "mixup", "or cutmix, or switch between both"),
        ("mix", "mixup", 0.5, "of switch: chance"),
        ("mix", "cutmix", 0.5, "of switch: chance"),
        ("teacher", "size", 384, "pixels of the same view as the teacher sees it"),
        ("teacher", "resize", "torch", "as above, where it is another one"),
    )
)


def annotated(recipe: Recipe, *, title: str) -> str:
    """Return TOML with every setting; those that the recipe does not have are comments."""
    values, table = recipe.canonical(), ""
    lines = [f"# {title}", "# Steps are applied in the order of their tables; mixing comes last."]
    for setting in SETTINGS:
        there = values if setting.table == "" else values.get(setting.table, {})
        if setting.table != table:
            table = setting.table
            lines += ["", f"[{table}]" if table in values else f"# [{table}]"]
        mark = "" if setting.name in there else "# "
        value = json.dumps(there.get(setting.name, setting.value))
        lines.append(f"{mark + setting.name + ' = ' + value:<38} # {setting.says}")
    return "\n".join(lines) + "\n"
