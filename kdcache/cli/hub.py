"""kdcache hub push, kdcache hub pull."""

from typing import Annotated

import typer

from kdcache.cli.data import Json
from kdcache.cli.keys import RequireSignature, Trusted
from kdcache.cli.output import give, human_bytes, progress_bar
from kdcache.cli.sharing import First, Out, Tars, Views, fetch_and_give
from kdcache.cli.upkeep import read_range

app = typer.Typer(no_args_is_help=True, help="Caches as datasets of the Hugging Face Hub.")

Repository = Annotated[
    str, typer.Argument(metavar="OWNER/NAME", help="A dataset repository of the hub.")
]


@app.command()
def push(
    cache: Annotated[
        str,
        typer.Argument(
            metavar="CATALOGUE/caches/ID", help="A published cache: a folder, s3://… or https://…."
        ),
    ],
    repository: Repository,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if it is not there; default: main.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A repository that is made is private.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring a published cache to a dataset repository, which is made if it is not there.

    Goes on where it stopped. The token is that of hf auth login, or of HF_TOKEN.

    Example:

      kdcache hub push build/catalogue/caches/5b9c… team/imagenet-targets
    """
    from kdcache.sharing.catalogue import published_at
    from kdcache.sharing.hub import push as push_published
    from kdcache.stores.location import parse_place

    published = published_at(parse_place(cache))
    manifest = published.manifest
    count, rates = len(manifest.objects), "objects, {:.1f} objects/s".format
    with progress_bar("push", count, rates=lambda n, s: rates(n / s)) as advance:
        pushed = push_published(
            published, repository, revision=revision, private=private, progress=advance
        )
    value = {
        "id": manifest.cache,
        "repository": repository,
        "address": pushed.address,
        "commit": pushed.commit,
        "objects": count,
        "size_bytes": manifest.size_bytes,
    }
    lines: dict[str, object] = {
        "cache": manifest.cache,
        "repository": pushed.address,
        "commit": pushed.commit,
        "size": f"{human_bytes(manifest.size_bytes)} in {count} objects",
    }
    give(value, as_json=as_json, lines=lines)


@app.command()
def pull(
    repository: Repository,
    out: Out,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default: main.")
    ] = None,
    views: Views = None,
    first: First = 0,
    tars: Tars = None,
    require_signature: RequireSignature = False,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Bring a cache, or a part of it, from a dataset repository, each object compared.

    Goes on where it stopped; all of it is of one commit. Private repositories ask for the token of
    hf auth login, or of HF_TOKEN.

    Examples:

      kdcache hub pull team/imagenet-targets build/cache

      kdcache hub pull team/imagenet-targets build/part --views 16 --tars 0..99
    """
    from kdcache.sharing.fetch import prepare_fetch
    from kdcache.sharing.hub import published_on_hub
    from kdcache.sharing.hub_store import hushed
    from kdcache.sharing.keys import load_trusted
    from kdcache.sharing.signed import check_signed

    keys = load_trusted(trusted) if require_signature else None
    part = None if tars is None else read_range(tars)
    with hushed(repository):
        published = published_on_hub(repository, revision)
        signed_by = None if keys is None else check_signed(published, keys)
        fetching = prepare_fetch(published, out, num_views=views, first_view=first, tars=part)
        fetch_and_give(fetching, signed_by, as_json=as_json)
