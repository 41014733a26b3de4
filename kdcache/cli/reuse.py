"""What kdcache precompute takes from a catalogue, and gives to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.output import say
from kdcache.cli.sharing import (
    CATALOGUE_HELP,
    WHO_HELP,
    fetch_visibly,
    publish_visibly,
    refuse_damaged,
)
from kdcache.errors import UsageError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from kdcache.cache.info import CacheInfo
    from kdcache.cache.published import Licences
    from kdcache.cache.store import Cache
    from kdcache.sharing.catalogue import Catalogue, Published
    from kdcache.sharing.keys import TrustedKeys
    from kdcache.sharing.publish import Sent

PANEL = "Sharing"
CatalogueOption = Annotated[
    str | None,
    typer.Option(
        help=f"Look first whether others have published views of this. {CATALOGUE_HELP}",
        rich_help_panel=PANEL,
    ),
]
FetchOption = Annotated[
    bool,
    typer.Option(
        "--fetch", help="Fetch what is there, and compute the rest.", rich_help_panel=PANEL
    ),
]
RequireOption = Annotated[
    bool,
    typer.Option(
        "--require-signature",
        help="Fetch nothing that no trusted key signed.",
        rich_help_panel=PANEL,
    ),
]
PublishOption = Annotated[
    bool, typer.Option("--publish", help="Publish when done.", rich_help_panel=PANEL)
]
UnknownOption = Annotated[
    bool,
    typer.Option(
        "--licence-unknown",
        help="Publish though a licence is not known.",
        rich_help_panel=PANEL,
    ),
]
RefOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With --publish: a name that shall refer to the cache.",
        rich_help_panel=PANEL,
    ),
]
SignOption = Annotated[
    Path | None,
    typer.Option(
        metavar="KEY", help="With --publish: sign with this private key.", rich_help_panel=PANEL
    ),
]
WhoOption = Annotated[
    str | None, typer.Option(help=f"With --publish: {WHO_HELP}", rich_help_panel=PANEL)
]


@dataclass(frozen=True)
class Reuse:
    """A catalogue beside a job. fetches: takes what is there; publishes: gives what is done."""

    catalogue: "Catalogue"
    fetches: bool
    trusted: "TrustedKeys | None"
    publishes: bool
    licence_unknown: bool
    ref: str | None
    signer: "CryptoSigner | None"
    who: str

    def licences(self, info: "CacheInfo") -> "Licences | None":
        """Return the licences to publish under; None where nothing will be published.

        Raises:
            UsageError: one is no SPDX expression, or is missing.
        """
        if not self.publishes:
            return None
        from kdcache.sharing.names import check_writable
        from kdcache.sharing.owners import check_licences, licences_there

        check_writable(self.catalogue)
        try:
            there = licences_there(self.catalogue, info.id)
            return check_licences(info.licences, {}, there=there, unknown=self.licence_unknown)
        except UsageError as error:
            raise UsageError(f"--publish: {error}") from None

    def look(
        self, info: "CacheInfo", cache: Path, *, views: int, as_json: bool
    ) -> "Published | None":
        """Return what is published of a cache, and say so; None without.

        Raises:
            UntrustedError: it is to be fetched, and no trusted key signed it.
        """
        found = self.catalogue.find(info.id)
        out = None if self.fetches else cache
        say(_told(self.catalogue, info.id, found, out, views=views), as_json=as_json)
        if found is not None and self.fetches and self.trusted is not None:
            from kdcache.sharing.signed import check_signed

            say(f"signed by {check_signed(found, self.trusted)}", as_json=as_json)
        return found

    def span_views(self, published: "Published | None", *, views: int) -> int | None:
        """Return the views of a span that others have chosen, if they suit; None without."""
        if published is None or views % published.manifest.span_views:
            return None
        return published.manifest.span_views

    def fetch(self, published: "Published | None", store: "Cache") -> None:
        """Bring what is published to a cache, if that is wanted.

        Raises:
            MismatchError: it is laid out otherwise.
            CorruptError: something of it is damaged; all else was fetched.
        """
        if published is None or not self.fetches:
            return
        from kdcache.sharing.fetch import prepare_spans

        fetching = prepare_spans(published, store)
        if fetching.spans:
            refuse_damaged(fetch_visibly(fetching))

    def publish(self, store: "Cache", licences: "Licences | None") -> "Sent | None":
        """Return what publishing did; None where nothing is to be published."""
        if licences is None:
            return None
        from kdcache.sharing.publish import Publisher, code_commit

        publisher = Publisher(
            self.who,
            licences,
            ref=self.ref,
            signer=self.signer,
            commit=code_commit(),
        )
        return publish_visibly(store, self.catalogue, publisher)


def reuse_given(given: dict[str, Any]) -> Reuse | None:
    """Return the catalogue that options name; None without.

    Raises:
        UsageError: it cannot be opened, or options that need one are given without.
    """
    text, publishes = given["catalogue"], given["publish"]
    if text is None:
        for name in ("fetch", "publish", "require_signature", "licence_unknown"):
            if given[name]:
                option = name.replace("_", "-")
                raise UsageError(f"--{option}: name the catalogue with --catalogue")
    for name in ("ref", "sign", "who"):
        if given[name] is not None and not publishes:
            raise UsageError(f"--{name}: is of what is published; add --publish")
    if text is None:
        return None
    from kdcache.sharing.catalogue import open_catalogue
    from kdcache.sharing.keys import load_signer, load_trusted
    from kdcache.sharing.owners import publisher_name
    from kdcache.sharing.refs import check_ref_name

    return Reuse(
        open_catalogue(text, create=publishes),
        fetches=given["fetch"],
        trusted=load_trusted() if given["require_signature"] else None,
        publishes=publishes,
        licence_unknown=given["licence_unknown"],
        ref=None if given["ref"] is None else check_ref_name(given["ref"]),
        signer=None if given["sign"] is None else load_signer(given["sign"]),
        who=publisher_name(given["who"]) if publishes else "",
    )


def _told(
    catalogue: "Catalogue", cache: str, found: "Published | None", out: Path | None, *, views: int
) -> str:
    """Return what is published of a cache, in words. out: where it might be fetched to."""
    if found is None:
        return f"{catalogue.place}: has no cache {cache[:12]}"
    from kdcache.cache.inventory import published_spans

    manifest = found.manifest
    of_span, tars = manifest.span_views, manifest.dataset.num_tars
    runs = min(views, manifest.views) // of_span
    spans = [run for _, run in published_spans(manifest.objects) if run < runs]
    whole = [run for run in range(runs) if spans.count(run) == tars]
    fetch = f"kdcache fetch {catalogue.place} {cache[:12]} {out}"
    if len(whole) * of_span == views:
        advice = "fetching them" if out is None else f"{fetch} --views {views}"
        return f"{catalogue.place}: all {views} views are there: {advice}"
    ranges = ", ".join(_ranges([(r * of_span, (r + 1) * of_span - 1) for r in whole]))
    part = f"views {ranges} of {views}" if whole else f"{len(spans)} spans"
    more = len(spans) - len(whole) * tars
    beside = f", and {more} spans of others" if whole and more else ""
    advice = "fetching them first" if out is None else f"{fetch}, or --fetch"
    return f"{catalogue.place}: {part} are there{beside}: {advice}"


def _ranges(parts: list[tuple[int, int]]) -> list[str]:
    joined: list[tuple[int, int]] = []
    for first, last in parts:
        if joined and joined[-1][1] == first - 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return [f"{first}..{last}" for first, last in joined]
