"""kdcache keys make, trust, list, distrust."""

from pathlib import Path
from typing import Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.output import give, say
from kdcache.cli.places import path as here

Trusted = Annotated[
    Path | None,
    typer.Option(help="Folder of trusted keys; default: kdcache/trusted in your configuration."),
]
RequireSignature = Annotated[
    bool, typer.Option("--require-signature", help="Refuse a cache that no trusted key signed.")
]
Owner = Annotated[str | None, typer.Option(help="Whose key it is, in your words.")]

app = typer.Typer(no_args_is_help=True, help="Keys that sign caches, and whose you trust.")


@app.command()
def make(
    path: Annotated[
        Path, typer.Argument(parser=here, metavar="PATH", help="New file for the private key.")
    ],
    name: Annotated[str, typer.Option(help="Whose key it is, as others should read it.")],
    as_json: Json = False,
) -> None:
    """Make a key pair: a private key, and its public part beside it for those who read your caches.

    The private key is encrypted if KDCACHE_KEY_PASSPHRASE is set.

    Example:

      kdcache keys make ~/.config/kdcache/key --name "Vision team"
    """
    from kdcache.sharing.keys import make_key, public_file

    found, public = make_key(path, name=name), str(public_file(path))
    give(
        {"id": found, "name": name, "private": str(path), "public": public},
        as_json=as_json,
        lines={
            "key": found,
            "name": name,
            "private": f"{path}, to be kept",
            "public": f"{public}, to be given to others: kdcache keys trust {public}",
        },
    )


@app.command()
def trust(
    file: Annotated[Path, typer.Argument(help="The .pub file that its owner gave you.")],
    name: Owner = None,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Trust the caches that a key signs. Compare its id with what its owner says it is.

    Example:

      kdcache keys trust vision.pub --name "Vision team"
    """
    from kdcache.sharing.keys import trust_key

    key = trust_key(file, name=name, folder=trusted)
    lines = {"trusted": key.name, "key": key.id}
    give({"id": key.id, "name": key.name}, as_json=as_json, lines=lines)


@app.command("list")
def listing(trusted: Trusted = None, as_json: Json = False) -> None:
    """Print whose keys are trusted.

    Example:

      kdcache keys list
    """
    from kdcache.sharing.keys import load_trusted

    found = load_trusted(trusted)
    keys = sorted(found.keys.values(), key=lambda key: key.name)
    if not as_json and not keys:
        say(f"{found.source}: no trusted keys", as_json=False)
        return
    give(
        {
            "folder": str(found.source),
            "keys": [{"id": key.id, "name": key.name} for key in keys],
        },
        as_json=as_json,
        lines={key.id[:16]: key.name for key in keys},
    )


@app.command()
def distrust(
    key: Annotated[str, typer.Argument(help="Name of the owner, or how the key's id begins.")],
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Trust a key no more.

    Example:

      kdcache keys distrust "Vision team"
    """
    from kdcache.sharing.keys import distrust_key

    gone = distrust_key(key, folder=trusted)
    lines = {"trusted no more": gone.name, "key": gone.id}
    give({"id": gone.id, "name": gone.name}, as_json=as_json, lines=lines)
