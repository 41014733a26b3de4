"""kdcache publish, kdcache fetch, kdcache sign."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.caches import FINDINGS_SHOWN, CachePath
from kdcache.cli.data import Json
from kdcache.cli.keys import RequireSignature, Trusted
from kdcache.cli.output import give, human_bytes, progress_bar, say
from kdcache.cli.places import path
from kdcache.cli.upkeep import read_range
from kdcache.errors import CorruptError, IncompleteError

if TYPE_CHECKING:
    from kdcache.cache.store import Cache
    from kdcache.sharing.catalogue import Catalogue
    from kdcache.sharing.fetch import Fetched, Fetching
    from kdcache.sharing.publish import Publisher, Sent

CATALOGUE_HELP = "Folder, s3://BUCKET/PREFIX, gs://…, az://…, or https://… to read only."
CatalogueText = Annotated[str, typer.Argument(metavar="CATALOGUE", help=CATALOGUE_HELP)]
Named = Annotated[
    str, typer.Argument(metavar="ID|REF", help="Id of a cache, 8 digits of it or more, or a ref.")
]
WHO_HELP = "Who publishes; default: KDCACHE_WHO, else USER@HOST."
Who = Annotated[str | None, typer.Option(help=WHO_HELP)]
Out = Annotated[Path, typer.Argument(parser=path, metavar="OUT", help="Where the cache goes.")]
Views = Annotated[
    int | None, typer.Option(min=1, help="Views that the cache here has: the first; default: all.")
]
First = Annotated[int, typer.Option("--from", min=0, help="First view that is fetched.")]
Tars = Annotated[
    str | None, typer.Option(metavar="A..B", help="Fetch only tars A to B, counted from 0.")
]
SignBy = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY", help="Sign with this private key.")
]
Unknown = Annotated[
    bool, typer.Option("--licence-unknown", help="Publish though a licence is not known.")
]


def publish(
    cache: CachePath,
    catalogue: CatalogueText,
    ref: Annotated[
        str | None, typer.Option(metavar="NAME", help="A name that shall refer to the cache.")
    ] = None,
    sign: SignBy = None,
    who: Who = None,
    licence_data: Annotated[
        str | None,
        typer.Option("--licence-data", "--data-licence", help="SPDX expression, of the images."),
    ] = None,
    licence_weights: Annotated[
        str | None,
        typer.Option(
            "--licence-weights",
            "--weights-licence",
            help="SPDX expression, of the teacher's weights.",
        ),
    ] = None,
    licence_output: Annotated[
        str | None,
        typer.Option(
            "--licence-output", "--output-licence", help="SPDX expression, of the targets."
        ),
    ] = None,
    licence_unknown: Unknown = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Send what is there already too: mends damaged objects. Licences that are given "
            "replace those that are published.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a cache in a catalogue, as far as it is computed and not there yet.

    Goes on where it stopped. Nobody sees the cache, or what is new of it, before all of that is
    there. Spans that others published stay as they are.

    Example:

      kdcache publish build/cache s3://bucket/catalogue --ref resnet50-funmatch
      --licence-data CC-BY-4.0 --licence-weights BSD-3-Clause --licence-output CC-BY-4.0
    """
    from kdcache.cache.store import open_cache
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.keys import load_signer
    from kdcache.sharing.owners import check_licences, licences_there, publisher_name
    from kdcache.sharing.publish import Publisher, code_commit

    store = open_cache(cache)
    given = {"data": licence_data, "weights": licence_weights, "output": licence_output}
    place = open_catalogue(catalogue, create=True)
    was_there = not isinstance(place.place, Path) or place.place.exists()
    there = licences_there(place, store.info.id)
    licences = check_licences(store.info.licences, given, there=there, unknown=licence_unknown)
    signer = None if sign is None else load_signer(sign)
    publisher = Publisher(
        publisher_name(who),
        licences,
        corrects=again and any(given.values()),
        ref=ref,
        signer=signer,
        commit=code_commit(),
    )
    sent = publish_visibly(store, place, publisher, again=again)
    give(
        published_value(sent),
        as_json=as_json,
        lines={
            "cache": sent.published.id,
            "catalogue": f"{place.place}{'' if was_there else ', a new folder here'}",
            **published_lines(sent),
            **({} if ref is None else {"ref": ref}),
            **({} if signer is None else {"signed with": f"key {signer.public_key.keyid[:16]}"}),
            "published by": publisher.who,
            "licences": ", ".join(f"{part} {text or 'unknown'}" for part, text in licences),
        },
    )
    _say_damaged(sent, as_json=as_json)


def publish_visibly(
    store: "Cache", catalogue: "Catalogue", publisher: "Publisher", *, again: bool = False
) -> "Sent":
    """Publish a cache, with a progress bar."""
    from kdcache.cache.manifest import committed
    from kdcache.sharing.publish import publish as publish_cache

    spans = len(committed(store.folder))
    with progress_bar("publish", spans, rates=_spans_per_s) as advance:
        return publish_cache(store, catalogue, publisher, again=again, progress=advance)


def _spans_per_s(done: int, seconds: float) -> str:
    return f"spans, {done / seconds:.1f} spans/s"


def published_value(sent: "Sent") -> dict[str, Any]:
    """Return what publishing did as JSON has it."""
    from kdcache.cache.published import manifest_digest

    manifest = sent.published.manifest
    return {
        "id": sent.published.id,
        "catalogue": str(sent.published.catalogue.place),
        "manifest": manifest_digest(sent.published.data),
        "spans_sent": len(sent.sent),
        "size_bytes": sent.size_bytes,
        "spans_there": sent.there,
        "spans_differing": [str(span) for span in sent.differing],
        "damaged": list(sent.damaged),
        "views": manifest.views,
        "spans": manifest.spans,
        "complete": manifest.is_complete,
        "licences": manifest.licences.model_dump(),
        "ref": None if sent.ref is None else sent.ref.cache,
    }


def published_lines(sent: "Sent") -> dict[str, object]:
    """Return what publishing did as a table for people has it."""
    manifest = sent.published.manifest
    lines: dict[str, object] = {
        "sent": f"{len(sent.sent)} spans, {human_bytes(sent.size_bytes)}",
        "there": f"{sent.there} spans",
        "published": f"{manifest.spans} spans of {manifest.views} views"
        + ("" if manifest.is_complete else "; others are missing"),
    }
    if sent.differing:
        lines["differing"] = f"{len(sent.differing)} spans of others, kept as they were"
    if sent.unsigned:
        lines["signature"] = (
            "of an older manifest: who requires one is refused until somebody runs kdcache sign"
        )
    return lines


def _say_damaged(sent: "Sent", *, as_json: bool) -> None:
    for text in sent.damaged[:FINDINGS_SHOWN]:
        say(f"  left out: {text}", as_json=as_json)


def fetch(
    catalogue: CatalogueText,
    cache: Named,
    out: Out,
    views: Views = None,
    first: First = 0,
    tars: Tars = None,
    require_signature: RequireSignature = False,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Fetch a cache, or whole spans of it, each object compared with the manifest.

    Goes on where it stopped. Parts are as those of kdcache slice, and kdcache merge brings them
    together.

    Examples:

      kdcache fetch s3://bucket/catalogue resnet50-funmatch build/cache

      kdcache fetch https://host/catalogue 42a5cf92 build/cache --views 16 --require-signature
    """
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.fetch import prepare_fetch
    from kdcache.sharing.keys import load_trusted
    from kdcache.sharing.signed import check_signed

    place = open_catalogue(catalogue)
    keys = load_trusted(trusted) if require_signature else None
    published = place.published(place.resolve(cache))
    signed_by = None if keys is None else check_signed(published, keys)
    fetching = prepare_fetch(
        published,
        out,
        num_views=views,
        first_view=first,
        tars=None if tars is None else read_range(tars),
    )
    fetch_and_give(fetching, signed_by, as_json=as_json)


def fetch_and_give(fetching: "Fetching", signed_by: str | None, *, as_json: bool) -> None:
    """Fetch spans, and print what came.

    Raises:
        CorruptError: some are damaged.
        IncompleteError: some are not published.
    """
    fetched, absent = fetch_visibly(fetching), fetching.absent
    _give_fetched(fetching, fetched, signed_by, as_json=as_json)
    refuse_damaged(fetched)
    if absent:
        raise IncompleteError(
            f"{fetching.published.place}: {len(absent)} spans are not published, the first is "
            f"{absent[0]}; run the same command again when they are, or kdcache precompute"
        )


def fetch_visibly(fetching: "Fetching") -> "Fetched":
    """Fetch spans, with a progress bar."""
    from kdcache.sharing.fetch import run_fetch

    with progress_bar("fetch", len(fetching.spans), rates=_spans_per_s) as advance:
        return run_fetch(fetching, progress=advance)


def _give_fetched(
    fetching: "Fetching", fetched: "Fetched", signed_by: str | None, *, as_json: bool
) -> None:
    target, absent = fetching.target, len(fetching.target.missing())
    value = {
        "id": target.info.id,
        "path": str(target.path),
        "views": target.grid.num_views,
        "spans_fetched": len(fetched.spans),
        "size_bytes": fetched.size_bytes,
        "spans_there": fetching.there,
        "spans_unpublished": [str(span) for span in fetching.absent],
        "damaged": list(fetched.damaged),
        "spans_missing": absent,
        "signed_by": signed_by,
        "licences": fetching.published.manifest.licences.model_dump(),
    }
    lines: dict[str, object] = {
        "cache": f"{target.path} ({target.info.id[:12]})",
        "fetched": f"{len(fetched.spans)} spans, {human_bytes(fetched.size_bytes)}",
        "there": f"{fetching.there} spans",
        "spans": f"{absent} missing" if absent else "complete",
    }
    if signed_by is not None:
        lines["signed by"] = signed_by
    if fetched.damaged:
        lines["damaged"] = f"{len(fetched.damaged)} spans refused"
    give(value, as_json=as_json, lines=lines)
    for text in fetched.damaged[:FINDINGS_SHOWN]:
        say(f"  {text}", as_json=as_json)


def refuse_damaged(fetched: "Fetched") -> None:
    """Raise what is wrong with spans that were not fetched.

    Raises:
        CorruptError: there are some.
    """
    if fetched.damaged:
        raise CorruptError(
            f"{fetched.damaged[0]}; {len(fetched.damaged)} spans were refused, the others are here"
        )


def sign(
    catalogue: CatalogueText,
    cache: Named,
    key: Annotated[Path, typer.Option(help="Your private key, of kdcache keys make.")],
    as_json: Json = False,
) -> None:
    """Sign a published cache's manifest: that what it names is what you say it is.

    Signatures of others stay. Whoever publishes more of the cache makes another manifest, which is
    to be signed again.

    Example:

      kdcache sign s3://bucket/catalogue resnet50-funmatch --key ~/.config/kdcache/key
    """
    from kdcache.cache.published import manifest_digest
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.keys import load_signer
    from kdcache.sharing.names import check_writable
    from kdcache.sharing.signed import sign_manifest
    from kdcache.sharing.trust import key_ids

    signer = load_signer(key)
    place = open_catalogue(catalogue)
    check_writable(place)
    published = place.published(place.resolve(cache))
    ids = key_ids(sign_manifest(published, signer))
    digest = manifest_digest(published.data)
    give(
        {"id": published.id, "manifest": digest, "key": signer.public_key.keyid, "keys": list(ids)},
        as_json=as_json,
        lines={
            "cache": published.id,
            "manifest": f"sha256 {digest}",
            "signed": f"by key {signer.public_key.keyid[:16]}, {len(ids)} signatures in all",
        },
    )
