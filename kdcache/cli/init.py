"""kdcache init."""

import os
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give
from kdcache.cli.places import path
from kdcache.cli.recipe import RECIPE_HELP, recipe_names
from kdcache.errors import UsageError
from kdcache.texts import printable

RECIPE_FILE, MAKE_FILE = "recipe.toml", "kdcache.mk"
IMAGES = "photos/train"


def init(
    folder: Annotated[
        Path | None,
        typer.Argument(parser=path, metavar="[FOLDER]", help="Where the files go; default: here."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="DIR",
            help="Your images, a sub-folder for each class; val beside it is for validation.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help=RECIPE_HELP, autocompletion=recipe_names)
    ] = "funmatch",
    as_json: Json = False,
) -> None:
    """Write a recipe with every setting, and make's targets from your images to a student.

    Both are to be edited. Nothing that is there is written over.

    Examples:

      kdcache init

      kdcache init distil --images photos/train --recipe randaugment
    """
    from kdcache.recipe.annotated import annotated
    from kdcache.recipe.schema import load_recipe

    folder = folder or Path()
    if images is not None and not images.is_dir():
        raise UsageError(f"--images {images}: no folder; name the one that holds your images")
    title = (
        f"What decides the pixels of views, from {printable(recipe)}; see kdcache recipe preview."
    )
    fragment = (resources.files("kdcache.cli") / MAKE_FILE).read_text("utf-8")
    shown = (
        IMAGES if images is None else _for_make(os.path.relpath(images.resolve(), folder.resolve()))
    )
    texts = {
        RECIPE_FILE: annotated(load_recipe(recipe), title=title),
        MAKE_FILE: fragment.replace("@IMAGES@", shown).replace(
            "@VAL@", os.path.join(os.path.dirname(shown), "val")
        ),
    }
    for name in texts:
        if (folder / name).exists():
            raise UsageError(f"{folder / name}: is there already; move it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write_new(folder / name, text)
    place = "" if folder == Path() else f" -C {shlex.quote(str(folder))}"
    following = f"make{place} -f {MAKE_FILE} pack" + ("" if images else f" IMAGES={IMAGES}")
    value = {"recipe": str(folder / RECIPE_FILE), "make": str(folder / MAKE_FILE)}
    give({**value, "next": following}, as_json=as_json, lines={**value, "next": following})


def _write_new(file: Path, text: str) -> None:
    from kdcache.files import write_whole

    if not write_whole(file, lambda to: to.write_text(text, "utf-8"), replace=False):
        raise UsageError(f"{file}: another process wrote it; look at it first")


def _for_make(path: str) -> str:
    """Return a path as a variable of make holds it.

    Raises:
        UsageError: it holds what means something else to make or the shell, as a space does.
    """
    if re.fullmatch(r"[\w./+@%,:=-]+", path) is None:
        raise UsageError(
            f"--images {path}: make takes paths of letters, digits and ./+@%,:=_- alone; link to "
            "it by another"
        )
    # A dash would begin an option, a colon part the name of a data set from its source.
    return f"./{path}" if path.startswith("-") or ":" in path else path
