"""Who publishes, and under which licences."""

import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from kdcache.cache.published import Licences
from kdcache.errors import CorruptError, UsageError
from kdcache.sharing.catalogue import Catalogue
from kdcache.sharing.licences import UNKNOWN, check_licence

WHO = "KDCACHE_WHO"  # of the environment
PARTS = ("data", "weights", "output")
MAX_WHO = 200


def publisher_name(given: str | None) -> str:
    """Return who publishes: as given, else KDCACHE_WHO of the environment, else USER@HOST.

    Raises:
        UsageError: it is empty, or long.
    """
    text = given if given is not None else os.environ.get(WHO) or _account()
    if not text.strip() or len(text) > MAX_WHO or not text.isprintable():
        raise UsageError(
            f"--who {text[:40]!a}: expected a name, such as 'Vision team', of at most "
            f"{MAX_WHO} characters"
        )
    return text.strip()


def _account() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def licences_there(catalogue: Catalogue, cache: str) -> dict[str, str | None]:
    """Return the licences with which a cache is published; none if it is not.

    Raises:
        UsageError: the store refuses, or does not answer.
    """
    if isinstance(catalogue.place, Path) and not catalogue.place.exists():
        return {}
    try:
        found = catalogue.find(cache)
    except CorruptError:
        return {}  # which publishing mends
    return {} if found is None else found.manifest.licences.model_dump()


def check_licences(
    found: Mapping[str, str | None],
    given: Mapping[str, str | None],
    *,
    there: Mapping[str, str | None],
    unknown: bool,
) -> Licences:
    """Return the licences of a cache's data, weights and output, as SPDX writes them.

    found: what the cache says; given: what its publisher says instead; there: with which it is
    published, of those that neither says. unknown: they may be.

    Raises:
        UsageError: one is no SPDX expression, or is missing.
    """
    checked: dict[str, str | None] = {}
    for part in PARTS:
        text = given.get(part) or found.get(part) or there.get(part)
        option = f"--licence-{part}"
        if not given.get(part) and text:
            option = f"the {part} licence that the cache has (give {option} instead)"
        checked[part] = None if text in (None, "", UNKNOWN) else check_licence(text, option=option)
    absent = [part for part in PARTS if checked[part] is None]
    if absent and not unknown:
        options = " ".join(f"--licence-{part} SPDX" for part in absent)
        raise UsageError(
            f"licence of {', '.join(absent)}: not known; give {options}, such as CC-BY-4.0 or "
            "LicenseRef-ours, or --licence-unknown"
        )
    return Licences(**checked)
