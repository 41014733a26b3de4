"""A local cache published in a catalogue, for whoever needs its targets.

Invariant: objects go before the commit records that name them, these before the manifest, and
nobody sees a cache before its manifest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner

import kdcache
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed
from kdcache.cache.published import CONTRIBUTIONS, Licences
from kdcache.cache.store import Cache
from kdcache.errors import IncompleteError, UsageError
from kdcache.sharing.catalogue import Catalogue, Published, sha256
from kdcache.sharing.describing import descriptions
from kdcache.sharing.draft import ROWS, Basis, contribute, contribution_name, parse_contribution
from kdcache.sharing.index import Ref
from kdcache.sharing.names import check_writable, set_ref, update_index
from kdcache.sharing.refs import check_ref_name, utc
from kdcache.sharing.sending import Outcome, Sending
from kdcache.sharing.settle import Settled, find_there, joined_with, list_folder, settle
from kdcache.sharing.signed import sign_manifest
from kdcache.student.folder import describe_commit

RACES = 4


@dataclass(frozen=True)
class Publisher:
    """Who publishes, and under which licences.

    ref: a name that shall refer to the cache. signer: signs the manifest. when: UTC; None for now.
    commit: of the code that computed, where it is known. corrects: the licences take the place of
    those that are published.
    """

    who: str
    licences: Licences
    corrects: bool = False
    ref: str | None = None
    signer: CryptoSigner | None = None
    when: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Sent:
    """What publishing did.

    sent: spans, of size_bytes. there: spans that were there already. differing: those that are
    there with other objects than the local cache's. damaged: what is wrong with what others left.
    unsigned: what was signed is another manifest than is there now.
    """

    published: Published
    sent: tuple[Span, ...]
    size_bytes: int
    there: int
    differing: tuple[Span, ...]
    damaged: tuple[str, ...]
    ref: Ref | None
    unsigned: bool


def publish(
    cache: Cache,
    catalogue: Catalogue,
    publisher: Publisher,
    *,
    again: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Sent:
    """Publish the committed spans of a local cache, those that are not there yet.

    Goes on where it stopped. again: sends objects that are there already too, which mends damaged
    ones. progress is given the number of spans done.

    Raises:
        IncompleteError: no span is computed.
        CorruptError: a local object is damaged; nothing of its span was sent.
        MismatchError: the cache that is there is laid out otherwise, or has other licences.
        UsageError: the catalogue cannot be written, or the store refuses or does not answer.
    """
    check_writable(catalogue)
    if publisher.ref is not None:
        check_ref_name(publisher.ref)
    spans = sorted(committed(cache.folder) & set(cache.grid.spans()))
    if not spans:
        raise IncompleteError(f"{cache.path}: no span is computed; run kdcache precompute")
    before = find_there(catalogue, cache.info.id, mend=True)
    sending = Sending(cache, list_folder(catalogue, cache.info.id), again=again)
    samples = sending.samples()
    mine = Basis(
        attributes=cache.attributes(),
        views=cache.grid.num_views,
        rows=cache.folder.read(ROWS),
        samples=samples,
        licences=publisher.licences,
        corrects=publisher.corrects,
    )
    joined_with(before, mine)  # which refuses what cannot be, before anything is sent
    outcomes = sending.send_all(spans, progress)
    sending.send_samples(samples)
    contributed = _contribute(sending, outcomes, publisher, before)
    known = {*(span.commit_name for span in spans), *samples, *contributed}
    settled, lost = _settle(sending, mine, outcomes, known)
    found = settled.published
    if publisher.signer is not None:
        sign_manifest(found, publisher.signer)
    ref = None
    if publisher.ref is not None:
        ref = set_ref(catalogue, publisher.ref, found.id, who=publisher.who, when=publisher.when)
    update_index(catalogue, [found])
    differing = {o.span for o in outcomes if o.what == "differs"} | lost
    return Sent(
        published=found,
        sent=tuple(o.span for o in outcomes if o.size_bytes),
        size_bytes=sum(o.size_bytes for o in outcomes),
        there=sum(not o.size_bytes for o in outcomes),
        differing=tuple(sorted(differing)),
        damaged=tuple(settled.damaged.values()),
        ref=ref,
        unsigned=publisher.signer is None and _was_signed(found, before),
    )


def _was_signed(found: Published, before: Published | None) -> bool:
    changed = before is not None and before.data != found.data
    return changed and found.signature() is not None


def _settle(
    sending: Sending, mine: Basis, outcomes: Sequence[Outcome], known: set[str]
) -> tuple[Settled, set[Span]]:
    """Return the manifest that stands, and the spans that others published meanwhile."""
    catalogue, cache = sending.folder.catalogue, sending.folder.cache
    sent = [outcome.span for outcome in outcomes if outcome.size_bytes]
    sending.look_for_others(sent, find_there(catalogue, cache, mend=True))
    for _ in range(RACES):
        settled = settle(catalogue, cache, mine=mine, describe=descriptions, known=known)
        mixed, theirs = sending.mend(sent)
        if not mixed:
            return settled, set(theirs)
    raise UsageError(
        f"{sending.folder.place}: somebody else publishes other objects of the same spans, the "
        f"first is {mixed[0]}; run the same command again when they have ended"
    )


def _contribute(
    sending: Sending,
    outcomes: Sequence[Outcome],
    publisher: Publisher,
    before: Published | None,
) -> list[str]:
    """Return the name of the contribution, written if it is not there; none without new spans.

    Its spans are those whose records are this cache's, and which the manifest did not name: so a
    publisher that was killed claims all of its spans when it is run again.
    """
    cache, folder = sending.cache, sending.folder
    records = {}
    for outcome in outcomes:
        if outcome.what in ("sent", "there"):
            records[outcome.span] = cache.folder.read(outcome.span.commit_name)
    if before is not None:
        named = before.manifest.objects
        records = {
            span: record
            for span, record in records.items()
            if span.commit_name not in named or named[span.commit_name].sha256 != sha256(record)
        }
    if not records:
        return []
    made = contribute(
        [cache.commit(span) for span in records],
        list(records.values()),
        who=publisher.who,
        when=publisher.when or utc(),
        commit=publisher.commit,
    )
    name = contribution_name(made)
    wanted = parse_contribution(name, made)
    assert wanted is not None
    listed = folder.read(n for n in folder.sizes if n.startswith(f"{CONTRIBUTIONS}/"))
    for other, data in listed.items():
        there = parse_contribution(other, data)
        if there is not None and (there.who, there.records) == (wanted.who, wanted.records):
            return [other]  # of the same publisher, who was killed
    folder.write({name: made})
    return [name]


def code_commit() -> str | None:
    """Return the commit of the code that runs; None where it is no checkout."""
    root = Path(kdcache.__file__).parents[1]
    return describe_commit(root) if (root / ".git").exists() else None
