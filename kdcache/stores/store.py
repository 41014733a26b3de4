"""Reading and writing the objects of a location.

Invariant: what is returned has the length that was asked for; whose bytes they are is for the
caller to prove, by a digest. Requests that fail for a moment are repeated for about a minute
(KDCACHE_PATIENCE_S); answers that are wrong, a few times. No error's text holds credentials.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from kdcache.errors import KdcacheError, UsageError
from kdcache.stores import clients
from kdcache.stores.clients import AbandonedError, ForkedError, abandon
from kdcache.stores.filling import fill
from kdcache.stores.listing import Entry, list_files, list_folders
from kdcache.stores.location import Place
from kdcache.stores.refusals import WrongError, is_passing, is_wrong, missing, refused

__all__ = ["AbandonedError", "Entry", "ForkedError", "Store", "abandon"]

ATTEMPTS = 4  # to get what was asked for from a store that answers something else
PART_BYTES, MOST_PARTS = 8 << 20, 900  # of an object that is written; Swift takes 1,000 parts
PARTS_AT_ONCE = 4
SMALL_BYTES = 1 << 20  # that are sent within moments
DELETED_AT_ONCE = 1000

T = TypeVar("T")


class Store:
    """The objects below a location, or below a folder. Safe to use from several threads."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def read(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: it is missing.
            UsageError: the store refuses, or does not answer.
            ForkedError, AbandonedError: see clients.
        """

        async def ask(client: Any) -> bytes:
            answer = await client.get_async(name)
            data, size = bytes(await answer.bytes_async()), int(answer.meta["size"])
            return _whole(data, size)

        return self._asking(name, ask)

    def read_range(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Return a part of an object; as read.

        Raises:
            UsageError: the object ends before, too, or the server serves no ranges.
        """

        async def ask(client: Any) -> bytes:
            data = await client.get_range_async(name, start=offset, length=size_bytes)
            return _whole(bytes(data), size_bytes)

        return b"" if size_bytes == 0 else self._asking(name, ask)

    def read_to_file(self, name: str, path: Path, *, size_bytes: int) -> None:
        """Write an object of so many bytes to a file, which is there once it is whole.

        Reads by ranges; what a killed process had is kept beside the file, and gone on with. Whose
        bytes they are is for the caller to prove, as of read: delete the file if they are others.

        Raises:
            As read_range.
            UsageError: the file cannot be written, too.
        """
        fill(path, size_bytes, lambda start, count: self.read_range(name, start, count))

    def size(self, name: str) -> int | None:
        """Return an object's bytes; None if it is missing."""

        async def ask(client: Any) -> int:
            return int((await client.head_async(name))["size"])

        try:
            return self._asking(name, ask)
        except FileNotFoundError:
            return None

    def names(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the objects below a prefix, which ends where a folder does, by name.

        Raises:
            UsageError: the store refuses, does not answer, or lists nothing, as plain HTTP.
        """

        if isinstance(self.place, Path):
            yield from sorted(list_files(self.place, prefix))
            return

        async def ask(client: Any) -> list[Entry]:
            found = await client.list(prefix.rstrip("/") or None).collect_async()
            return [
                Entry(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())
                for meta in found
            ]

        try:
            found = self._asking(prefix, ask)
        except FileNotFoundError:
            return
        yield from sorted(found)

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below a prefix, sorted; as names."""

        if isinstance(self.place, Path):
            return list_folders(self.place / prefix)

        async def ask(client: Any) -> list[str]:
            return list((await client.list_with_delimiter_async(prefix))["common_prefixes"])

        try:
            return sorted(path.rpartition("/")[2] for path in self._asking(prefix, ask))
        except FileNotFoundError:
            return []

    def write(self, name: str, data: bytes) -> None:
        """Write a whole object, in place of what is there; it is seen whole or not at all."""

        async def ask(client: Any) -> None:
            await client.put_async(name, data, use_multipart=False)

        self._asking(name, ask, writing=True, large=len(data) > SMALL_BYTES)

    def write_file(self, name: str, path: Path) -> None:
        """Write a file's bytes as an object, in parts if it is large; as write."""
        size = path.stat().st_size
        part = max(PART_BYTES, -(-size // MOST_PARTS))

        async def ask(client: Any) -> None:
            await client.put_async(
                name,
                path,
                use_multipart=size > part,
                chunk_size=part,
                max_concurrency=PARTS_AT_ONCE,
            )

        self._asking(name, ask, writing=True, large=size > SMALL_BYTES)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects that are there."""
        names = list(names)
        at_once = 1 if isinstance(self.place, Path) else DELETED_AT_ONCE
        for start in range(0, len(names), at_once):
            some = names[start : start + at_once]

            async def ask(client: Any, some: list[str] = some) -> None:
                await client.delete_async(some)

            try:
                self._asking(some[0], ask)
            except FileNotFoundError:
                continue

    def _asking(
        self,
        name: str,
        ask: Callable[[Any], Coroutine[Any, Any, T]],
        *,
        writing: bool = False,
        large: bool = False,
    ) -> T:
        """Return what a request gives, which is repeated while that may help."""
        where, waits = self.place / name if name else self.place, clients.waits()
        if isinstance(where, Path) and where.exists() and not (where.is_file() or where.is_dir()):
            raise UsageError(f"{where}: neither a file nor a folder; delete it")
        patience = clients.patience_s()

        def is_enough(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if error is not None and is_wrong(error):
                return state.attempt_number >= ATTEMPTS
            return (state.seconds_since_start or 0) > patience * clients.LAST_TRY

        again = tenacity.Retrying(
            stop=is_enough,
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=patience / 12),
            retry=tenacity.retry_if_exception(is_passing),
            sleep=tenacity.sleep_using_event(waits.given_up),
            reraise=True,
        )

        def once() -> T:
            client = clients.client(self.place, writing=writing, large=large)
            return clients.wait_for(ask(client), waits)

        told: Exception
        try:
            return again(once)
        except FileNotFoundError as error:
            told = missing(where, error)
        except KdcacheError as error:
            told = error
        except Exception as error:  # obstore raises many kinds, whose texts may hold anything
            if "DataLoader worker" in str(error):  # torch tells of a dead one by a signal, anywhere
                raise
            told = refused(where, error)
        told.__context__ = None  # which may hold credentials; raised here, it gets no other one
        try:
            raise told
        finally:  # a frame that keeps its error keeps all callers' frames
            del told, again


def _whole(data: bytes, size_bytes: int) -> bytes:
    if len(data) != size_bytes:
        raise WrongError(f"{len(data)} of {size_bytes} bytes came, {ATTEMPTS} times")
    return data
