"""Places on the command line: folders, and addresses in stores where a command reads in place."""

from pathlib import Path

from kdcache.errors import UsageError
from kdcache.stores.location import Location, Place, parse_place

PLACE = "PLACE"
DATA_HELP = "Folder or dataset.json of the images, here or at s3://, gs://, az:// or https://."
CACHE_HELP = "here, or a published one at s3://, gs://, az:// or https://"


def path(text: str) -> Path:
    """Return the path that a text names.

    Raises:
        UsageError: it names an address in a store, where this cannot be.
    """
    place = parse_place(text)
    if isinstance(place, Location):
        raise UsageError(
            f"{place}: this must be on this disk; fetch a cache first with kdcache fetch"
        )
    return place


def cache_places(
    texts: list[str] | None, *, require_signature: bool, trusted: Path | None
) -> list[Place]:
    """Return where caches are; with signatures required, pinned to what a trusted key signed.

    Raises:
        UntrustedError: no trusted key signed one of them.
        UsageError: one is on this disk, where nothing is signed.
    """
    places = [parse_place(text) for text in texts or []]
    if not require_signature:
        return places
    from kdcache.sharing.keys import load_trusted
    from kdcache.sharing.signed import check_pinned

    keys = load_trusted(trusted)
    return [check_pinned(place, keys)[0] for place in places]


def absolute(place: Place) -> Place:
    """Return the same place, for a process that starts in another folder."""
    return place if isinstance(place, Location) else place.absolute()
