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


def absolute(place: Place) -> Place:
    """Return the same place, for a process that starts in another folder."""
    return place if isinstance(place, Location) else place.absolute()
