"""Published caches signed, and their signatures checked."""

from securesystemslib.signer import CryptoSigner

from kdcache.cache.published import MANIFEST, SIGNATURE
from kdcache.sharing.catalogue import Published, cache_name
from kdcache.sharing.keys import TrustedKeys
from kdcache.sharing.trust import check_signature, sign


def check_signed(published: Published, trusted: TrustedKeys) -> str:
    """Return who signed a published cache's manifest.

    Raises:
        UntrustedError: there is no signature, or none of a trusted key, or not of this manifest.
    """
    where = published.place / SIGNATURE
    return check_signature(published.data, published.signature(), trusted, where=where)


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
