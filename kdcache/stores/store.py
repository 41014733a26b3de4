"""Reading and writing the objects of a location: the only code that imports obstore.

Invariant: what is returned has the length that was asked for; whose bytes they are is for the
caller to prove. Requests that fail for a moment are repeated, within limits.

obstore's threads do not survive a fork: a process that was forked from one that used it is refused
instead of left to hang. Workers read what their parent has kept on the disk (disk.py).
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tenacity

from kdcache.errors import KdcacheError, UsageError
from kdcache.stores.location import Place

ATTEMPTS = 4
RETRY_S = 60.0
TIMEOUT_S = 60.0

T = TypeVar("T")

_used_by: int | None = None  # the process that first used obstore


class ForkedError(KdcacheError):
    """A process was asked for objects whose parent had opened the stores."""


class Entry(NamedTuple):
    """An object in a listing. modified: seconds since 1970, by the store's clock."""

    name: str
    size_bytes: int
    modified: float


class Store:
    """The objects below a location, or below a folder. Safe to use from several threads."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def read(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: it is missing.
            UsageError: the store refuses, or does not answer.
        """
        return self._asking(name, lambda: _whole(self._client().get(name)))

    def read_range(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Return a part of an object; as read.

        Raises:
            UsageError: the object ends before, too, or the server serves no ranges.
        """

        def ask() -> bytes:
            data = bytes(self._client().get_range(name, start=offset, length=size_bytes))
            if len(data) != size_bytes:
                raise _ShortError(f"{len(data)} of {size_bytes} bytes came")
            return data

        return b"" if size_bytes == 0 else self._asking(name, ask)

    def size(self, name: str) -> int | None:
        """Return an object's bytes; None if it is missing."""
        try:
            return self._asking(name, lambda: int(self._client().head(name)["size"]))
        except FileNotFoundError:
            return None

    def names(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below a prefix, which ends where a folder does.

        Raises:
            UsageError: the store refuses, does not answer, or lists nothing, as plain HTTP.
        """

        def ask() -> list[Entry]:
            return [
                Entry(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())
                for page in self._client().list(prefix.rstrip("/") or None)
                for meta in page
            ]

        try:
            found = self._asking(prefix, ask)
        except FileNotFoundError:
            return
        yield from sorted(found)

    def write(self, name: str, data: bytes) -> None:
        """Write a whole object, in place of what is there; it is seen whole or not at all."""
        self._asking(name, lambda: self._client().put(name, data))

    def write_file(self, name: str, path: Path) -> None:
        """Write a file's bytes as an object, in parts if it is large."""
        self._asking(name, lambda: self._client().put(name, path))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects that are there."""
        for name in names:
            try:
                self._asking(name, partial(self._delete, name))
            except FileNotFoundError:
                continue

    def _delete(self, name: str) -> None:
        self._client().delete(name)

    def _client(self) -> Any:
        global _used_by
        process = os.getpid()
        if _used_by not in (None, process):
            raise ForkedError(
                f"{self.place}: this process was forked from one that had opened stores, and "
                "cannot ask them; open them in one process alone"
            )
        _used_by = process
        return _client(self.place)

    def _asking(self, name: str, ask: Callable[[], T]) -> T:
        """Return what asking gives; asks again where less than the whole came."""
        where = self.place / name
        again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            retry=tenacity.retry_if_exception(_is_passing),
            reraise=True,
        )
        # What tries again keeps the error: were it kept by this frame, which the error's traceback
        # keeps, all callers would be left to the garbage collector.
        try:
            return again(ask)
        except (FileNotFoundError, KdcacheError) as error:
            del again
            raise error.with_traceback(None) from None
        except Exception as error:  # obstore raises many kinds, whose texts may hold anything
            refused = _refused(where, error)
        del again
        raise refused


class _ShortError(Exception):
    """Less came than was asked for."""


def _whole(answer: Any) -> bytes:
    data, expected = bytes(answer.bytes()), int(answer.meta["size"])
    if len(data) != expected:
        raise _ShortError(f"{len(data)} of {expected} bytes came")
    return data


@lru_cache(maxsize=64)
def _client(place: Place) -> Any:
    """Return obstore's client for a place. Credentials come from the environment, or the URL.

    Raises:
        UsageError: obstore does not accept the location.
    """
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, from_url

    if isinstance(place, Path):
        return LocalStore(place.absolute(), mkdir=True)
    options: Any = {
        "client_options": {
            "allow_http": place.scheme == "http" or _allows_http(),
            "connect_timeout": "10s",
            "timeout": f"{TIMEOUT_S:.0f}s",
        },
        "retry_config": {"max_retries": 8, "retry_timeout": timedelta(seconds=RETRY_S)},
    }
    try:
        return from_url(place.url, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise _refused(place, error) from None


def _allows_http() -> bool:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint.startswith("http://")


_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")


def _is_passing(error: BaseException) -> bool:
    """Return whether the same request may well succeed."""
    if isinstance(error, _ShortError):
        return True
    text = str(error)
    status = _STATUS.search(text)
    return type(error).__name__ == "GenericError" and (
        status is None and ("decoding" in text or "body" in text or "retries" not in text)
    )


def _refused(where: Place, error: Exception) -> UsageError:
    """Return what to tell of an error: none of its text, which may hold credentials."""
    text, kind = str(error), type(error).__name__
    status, code = _STATUS.search(text), _CODE.search(text)
    found = "".join(f" ({m[1]})" for m in (status, code) if m)
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or (
        status is not None and status[1] in ("400", "401", "403")
    ):
        return UsageError(
            f"{where}: the store refuses{found}; check that the credentials in the environment are "
            "set, have not expired, and give access"
        )
    if isinstance(error, _ShortError):
        return UsageError(f"{where}: {error}, {ATTEMPTS} times; run the same command again")
    if kind == "NotSupportedError" or "RangeNotSupported" in text:
        return UsageError(
            f"{where}: the server does not do this{found}: HTTP is for reading, with ranges, and "
            "without listing; use a bucket, or a server with ranges such as nginx"
        )
    if status is not None:
        return UsageError(f"{where}: the server answers{found}; check the address, or try again")
    return UsageError(
        f"{where}: the store does not answer ({kind}); check the address and the network, then run "
        "the same command again"
    )
