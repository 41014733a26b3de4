"""kdcache recipe show, preview, check."""

from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give, say
from kdcache.cli.places import DATA_HELP, PLACE
from kdcache.stores.location import parse_place

RECIPE_HELP = "TOML file, or a preset: funmatch, consistent, mild, randaugment, centre."


def preset_names(incomplete: str) -> list[str]:
    """Return the presets that a shell may complete a name to."""
    from kdcache.recipe.schema import presets

    return [name for name in presets() if name.startswith(incomplete)]


def recipe_names(incomplete: str) -> list[str]:
    """Return the presets, and the TOML files here, that a shell may complete a name to."""
    files = sorted(map(str, Path().glob("*.toml")))
    return preset_names(incomplete) + [name for name in files if name.startswith(incomplete)]


RecipeName = Annotated[str, typer.Argument(help=RECIPE_HELP, autocompletion=recipe_names)]

app = typer.Typer(no_args_is_help=True, help="Look at recipes: what decides the pixels of views.")


@app.command()
def show(
    preset: Annotated[str, typer.Argument(help="Name of the preset.", autocompletion=preset_names)],
) -> None:
    """Print the TOML of a preset, to start a recipe of your own from.

    Example:

      kdcache recipe show funmatch > my.toml
    """
    from kdcache.recipe.schema import preset_text

    typer.echo(preset_text(preset), nl=False)


@app.command()
def preview(
    recipe: RecipeName,
    data: Annotated[str, typer.Option(metavar=PLACE, help=DATA_HELP)],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    rows: Annotated[int, typer.Option(min=1, max=64, help="Images, from the tar's first.")] = 4,
    views: Annotated[int, typer.Option(min=1, max=64, help="Views of each, from the first.")] = 6,
    tar: Annotated[int, typer.Option(min=0, help="Number of the tar.")] = 0,
    first_view: Annotated[int, typer.Option(min=0, max=2**62, help="First view.")] = 0,
) -> None:
    """Draw a contact sheet: images with their crop boxes, and their views.

    Example:

      kdcache recipe preview randaugment --data build/photos --out preview.png
    """
    from kdcache.data.blocks import dataset_source
    from kdcache.data.document import load_dataset
    from kdcache.errors import UsageError
    from kdcache.files import write_whole
    from kdcache.recipe.schema import load_recipe
    from kdcache.report.preview import draw_preview

    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise UsageError(
            f"--out {out}: expected a name that ends in .png, in a folder that is there"
        )
    source = dataset_source(load_dataset(parse_place(data)), load_recipe(recipe))
    if tar >= source.num_tars:
        raise UsageError(f"--tar {tar}: {source.dataset.root} has tars 0 to {source.num_tars - 1}")
    shown = range(min(rows, source.num_rows(tar)))
    sheet = draw_preview(source, tar=tar, rows=shown, views=range(first_view, first_view + views))
    write_whole(out, lambda partial: sheet.save(partial, "PNG"))
    say(f"{out}: {len(shown)} images, {views} views of each", as_json=False)


@app.command()
def check(as_json: Json = False) -> None:
    """Prove that this machine makes the pixels that recipes state; says by which libraries.

    Example:

      kdcache recipe check --json
    """
    from kdcache.pixels.decode import chosen_backends
    from kdcache.pixels.selftest import check_pixels
    from kdcache.pixels.witness import pixel_versions

    for resize in ("torch", "pillow"):
        check_pixels(resize)
    backends, versions = chosen_backends(), pixel_versions()
    lines = {"pixels": "function 1, as stated", "JPEG": ", then ".join(backends), **versions}
    give({"pixels": 1, "jpeg": list(backends), "versions": versions}, as_json=as_json, lines=lines)
