"""What tells people and other programs of a published cache: croissant.json and README.md."""

from kdcache.cache.metadata import Document
from kdcache.cache.published import Manifest
from kdcache.sharing.card import card
from kdcache.sharing.croissant import croissant

CROISSANT, README = "croissant.json", "README.md"


def descriptions(manifest: Manifest, attributes: Document) -> dict[str, bytes]:
    """Return the objects that describe a cache, by name. attributes: of its root group."""
    body = attributes["kdcache"]
    return {CROISSANT: croissant(manifest, body), README: card(manifest, body).encode()}
