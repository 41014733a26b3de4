"""Published caches signed, and their signatures checked."""

from dataclasses import replace
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from kdcache.cache.audit import Finding
from kdcache.cache.in_place import local_path
from kdcache.cache.objects import Folder
from kdcache.cache.published import MANIFEST, SIGNATURE, manifest_digest
from kdcache.errors import CorruptError, UsageError
from kdcache.sharing.catalogue import Published, cache_name, published_at
from kdcache.sharing.keys import TrustedKeys
from kdcache.sharing.trust import check_signature, sign
from kdcache.stores.location import Location, Place


def check_signed(published: Published, trusted: TrustedKeys) -> str:
    """Return who signed a published cache's manifest.

    Raises:
        UntrustedError: there is no signature, or none of a trusted key, or not of this manifest.
    """
    where = published.place / SIGNATURE
    return check_signature(published.data, published.signature(), trusted, where=where)


def check_pinned(place: Place, trusted: TrustedKeys) -> tuple[Location, str]:
    """Return the place of a published cache, pinned to a manifest that is signed, and who signed.

    Raises:
        UntrustedError: as check_signed.
        UsageError: the place is a folder of this machine, or no cache is published there.
        CorruptError: its manifest is damaged.
    """
    if not isinstance(place, Location):
        raise UsageError(
            f"{place}: --require-signature is for caches at an address; fetch this one with "
            "kdcache fetch --require-signature, which compares every object"
        )
    published = published_at(place)
    names = check_signed(published, trusted)
    return replace(place, pin=manifest_digest(published.data)), names


def check_folder(path: Path, trusted: TrustedKeys) -> tuple[str, list[Finding]]:
    """Return who signed the cache in a catalogue's folder, and which objects are not as signed.

    Raises:
        UntrustedError: as check_signed.
        UsageError: no cache is published there.
        CorruptError: its manifest is damaged.
    """
    published = published_at(path)
    names, found = check_signed(published, trusted), []
    folder = Folder(local_path(path))
    for name, entry in published.manifest.objects.items():
        try:
            if folder.digest(name) != entry.model_dump():
                found.append(Finding(name, "differs from what was signed", None))
        except CorruptError as error:
            found.append(Finding(name, str(error).partition(": ")[2], None))
    return names, found


def sign_manifest(published: Published, signer: CryptoSigner) -> bytes:
    """Return the envelope of a published manifest with a signature more, as written.

    Raises:
        UsageError: the store refuses, or does not answer.
    """
    there = published.signature()
    where = published.place / MANIFEST
    envelope = sign(published.data, signer, envelope=there, where=where)
    if envelope != there:
        published.catalogue.store.write(cache_name(published.id, SIGNATURE), envelope)
    return envelope
