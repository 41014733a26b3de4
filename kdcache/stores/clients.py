"""obstore's clients of places, and waiting for what they do: the only code that imports obstore.

Invariant: a wait ends at once by Ctrl-C, which obstore's own blocking calls ignore, so its requests
run in an event loop of one thread, and the caller waits for them as Python can.

Credentials are those that obstore finds in the environment: of AWS keys with or without a session
token, web identities and the roles of containers and machines, but no profiles (`aws configure
export-credentials --format env` turns one into variables); of Google a service account's file or
the default one; of Azure an account with its key, token or client. Those of an http address are
sent as basic authentication.

obstore's threads do not survive a fork: a process that was forked from one that used it is refused
instead of left to hang. Workers read what their parent has kept on the disk (disk.py).
"""

import asyncio
import atexit
import base64
import logging
import math
import os
import re
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from kdcache.errors import KdcacheError, UsageError
from kdcache.stores.location import Location, Place
from kdcache.stores.refusals import refused, unusable

PATIENCE = "KDCACHE_PATIENCE_S"  # of the environment
DEFAULT_PATIENCE_S = 60.0
LAST_TRY = 0.75  # share of the patience after which nothing is tried again
LONGEST_S = 600.0  # of one request whose bytes still come or go
PARTING_S = 2.0  # that the end of a process waits for its requests
# What obstore and this module read of the environment.
SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", PATIENCE)

T = TypeVar("T")
_log = logging.getLogger(__name__)

_used_by: int | None = None  # the process that first used obstore


class ForkedError(KdcacheError):
    """A process was asked for objects whose parent had opened the stores."""


class AbandonedError(KdcacheError):
    """A request was given up because the process ends; see abandon."""


_URL = re.compile(r"https?://[^\s/?#]+")


def patience_s() -> float:
    """Return after how many seconds without an answer a store is given up.

    KDCACHE_PATIENCE_S in the environment says so; by default a minute.

    Raises:
        UsageError: it is no number of seconds.
    """
    text = os.environ.get(PATIENCE) or str(DEFAULT_PATIENCE_S)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UsageError(f"{PATIENCE}: {text!r} is no number of seconds, expected one such as 60")
    return found


def client(place: Place, *, writing: bool = False, large: bool = False) -> Any:
    """Return obstore's client for a place. Credentials come from the environment, or the URL.

    writing: a folder is made. large: much is sent, part by part, and may take its time.

    Raises:
        ForkedError: this process was forked from one that had opened stores.
        FileNotFoundError: a folder is missing.
        UsageError: obstore does not accept the location, or the settings.
    """
    global _used_by
    process = os.getpid()
    if _used_by not in (None, process):
        raise ForkedError(
            f"{place}: this process was forked from one that had opened stores, and cannot ask "
            "them; open them in one process alone"
        )
    _used_by = process
    settings = tuple(item for item in os.environ.items() if item[0].startswith(SETTINGS))
    for name, value in settings:  # some of which obstore would not survive
        if not value.isprintable() or ("ENDPOINT" in name and not _URL.match(value)):
            raise UsageError(f"{name}: not as such a setting is written; set it again, or unset it")
    try:
        if isinstance(place, Path):
            return _folder(place.absolute(), writing)
        return _client(place, large, settings)
    except (FileNotFoundError, KdcacheError):
        raise
    except Exception as error:  # of obstore, whose texts may hold anything
        raise (refused if isinstance(place, Path) else unusable)(place, error) from None


def _folder(path: Path, writing: bool) -> Any:
    from obstore.store import LocalStore

    if not writing and not path.is_dir():
        raise FileNotFoundError
    return LocalStore(path, mkdir=writing)


@lru_cache(maxsize=64)
def _client(location: Location, large: bool, settings: tuple[tuple[str, str], ...]) -> Any:
    """Return a client; settings: those of the environment, which obstore reads itself."""
    _log.debug("opens the store %s", location)
    from obstore.store import HTTPStore, from_url

    patience, parts = patience_s(), urlsplit(location.url)
    options: dict[str, Any] = {
        "allow_http": parts.scheme == "http" or _allows_http(),
        "connect_timeout": f"{min(10.0, patience * (1 - LAST_TRY)):.3f}s",
        "timeout": f"{LONGEST_S:.0f}s",
    }
    # Store repeats what fails, but for the parts of what is sent: obstore sends one of them again.
    retry: Any = {"max_retries": 0}
    if large:
        retry = {"max_retries": 20, "retry_timeout": timedelta(seconds=patience * LAST_TRY)}
        options["timeout"] = f"{2 * patience:.3f}s"
    else:
        options["read_timeout"] = f"{patience * (1 - LAST_TRY):.3f}s"
    if parts.scheme not in ("http", "https"):
        return from_url(location.url, client_options=options, retry_config=retry)  # type: ignore[call-overload]
    user, _, host = parts.netloc.rpartition("@")
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        options["default_headers"] = {"Authorization": f"Basic {token}"}
    url = urlunsplit(parts._replace(netloc=host, fragment=""))
    return HTTPStore(url, client_options=options, retry_config=retry)  # type: ignore[arg-type]


def _allows_http() -> bool:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint.startswith("http://")


# --- waiting -------------------------------------------------------------------------------


class Waits:
    """The requests of this process that someone waits for."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self._futures: set[Future[Any]] = set()
        self._lock = threading.Lock()

    def add(self, future: Future[Any]) -> None:
        """Note a request."""
        with self._lock:
            self._futures.add(future)
        future.add_done_callback(self._forget)
        if self.given_up.is_set():
            future.cancel()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)

    def end(self) -> None:
        """Cancel all of them."""
        self.given_up.set()
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()


_waits = Waits()
_ending = False  # the process does


def waits() -> Waits:
    """Return the requests that the next abandon ends."""
    return _waits


def abandon() -> None:
    """End all requests of this process: who waits for one gets AbandonedError.

    For whoever ends threads that read ahead; later requests are made as ever.
    """
    global _waits
    ended, _waits = _waits, Waits()
    ended.end()


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of the process, which runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kdcache-stores", daemon=True)
    thread.start()
    atexit.register(_close, process, loop, thread)
    return loop


def _close(process: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """End all requests before the interpreter does: obstore's threads would abort it later."""
    global _ending
    if os.getpid() != process:
        return
    _ending = True
    abandon()
    if asyncio.run_coroutine_threadsafe(_drain(), loop).result(PARTING_S):
        time.sleep(0.05)  # until obstore's threads have let go of the interpreter
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PARTING_S)
    if not thread.is_alive():
        loop.close()


async def _drain() -> int:
    """Return how many requests there were, which are cancelled."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=PARTING_S / 2)
    return len(tasks)


def wait_for(request: Coroutine[Any, Any, T], within: Waits) -> T:
    """Return what a request gives; Ctrl-C ends it.

    Raises:
        AbandonedError: it was ended by abandon.
    """
    if _ending:
        request.close()
        raise AbandonedError("given up, because the process ends")
    future = asyncio.run_coroutine_threadsafe(request, _loop(os.getpid()))
    within.add(future)
    try:
        return future.result()
    except CancelledError:
        raise AbandonedError("given up, because the process ends") from None
    except BaseException:
        future.cancel()
        raise
