"""Where objects lie: a prefix of a bucket, an HTTP root, or a folder.

Invariant: what a location shows of itself holds no credentials.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from kdcache.errors import UsageError

SCHEMES = {
    "s3": "S3",
    "s3a": "S3",
    "gs": "Google Cloud Storage",
    "az": "Azure",
    "abfs": "Azure",
    "abfss": "Azure",
    "http": "HTTP",
    "https": "HTTP",
}
CONTAINERS = ("abfs", "abfss")  # abfs://CONTAINER@ACCOUNT…: what stands before @ is no user


@dataclass(frozen=True)
class Location:
    """A prefix in a store, such as s3://BUCKET/PREFIX or https://HOST/PATH.

    url: without a slash at its end; may hold credentials, which str() leaves out. pin: sha256 that
    the manifest of the published cache there must have; each of its objects is then read whole, and
    compared with it.
    """

    url: str
    pin: str | None = None

    def __truediv__(self, name: str) -> "Location":
        parts = urlsplit(self.url)
        for mark in "%?#":  # which would end the path, or change it
            name = name.replace(mark, f"%{ord(mark):02X}")
        return Location(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")))

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        user, _, host = parts.netloc.rpartition("@")
        if user and parts.scheme in CONTAINERS:
            host = f"{user.partition(':')[0]}@{host}"
        return urlunsplit((parts.scheme, host, parts.path, "", ""))

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def parent(self) -> "Location":
        """Return the prefix above this one."""
        parts = urlsplit(self.url)
        return Location(urlunsplit(parts._replace(path=parts.path.rpartition("/")[0])))

    @property
    def scheme(self) -> str:
        """Return the scheme, such as s3."""
        return urlsplit(self.url).scheme


Place = Path | Location


_ADDRESS = re.compile(r"(\w+:/{1,2})(\S*)")


def without_credentials(text: str) -> str:
    """Return a text whose addresses hold no user, password or query any more.

    Everything before the last @ of an address goes, so that no odd password stays.
    """

    def shown(found: re.Match[str]) -> str:
        rest = re.split(r"[?#]", found[2], maxsplit=1)[0]
        return found[1] + rest.rpartition("@")[2]

    return _ADDRESS.sub(shown, text)


def parse_place(text: str) -> Place:
    """Return the folder, or the location in a store, that a text names.

    Raises:
        UsageError: its scheme is unknown, or it names no bucket or host.
    """
    if not text:
        raise UsageError("an empty place, expected a folder or an address such as s3://NAME/PATH")
    scheme, mark, rest = text.partition("://")
    if not mark and text.partition(":/")[0] in (*SCHEMES, "file") and ":/" in text:
        scheme = text.partition(":")[0]
        raise UsageError(f"{scheme}:/…: one slash after the scheme, expected {scheme}://…")
    if not mark:
        return Path(text)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UsageError("file://HOST: names a host, expected file:///PATH")
        return Path(unquote(parts.path))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"{scheme}://…: unknown kind of store, expected a folder, or {known}")
    location = Location(text.rstrip("/"))
    try:
        parts = urlsplit(location.url)
        host, user, _ = parts.hostname, parts.username, parts.port
    except ValueError:
        host = user = None
    if not rest.strip("/") or not host:
        raise UsageError(f"{scheme}://…: names no bucket or host, expected {scheme}://NAME/PATH")
    if user and scheme not in ("http", "https", *CONTAINERS):
        raise UsageError(
            f"{location}: credentials in the address, which buckets take from the environment, "
            "such as AWS_ACCESS_KEY_ID; leave them out"
        )
    return location
