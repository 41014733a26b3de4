"""Files of a dataset repository of the Hugging Face Hub, as objects of a store.

Invariant: all of them are of one commit, and are asked for by range: nothing is kept in the hub's
own cache, and nothing of a token, or of an address that was signed, is in an error.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kdcache.errors import UsageError
from kdcache.models.hub import PATIENCE_S, known_reason
from kdcache.models.libraries import need
from kdcache.stores.location import Location
from kdcache.stores.store import Entry, Store

KIND = "dataset"
TRIES = 4  # of a request that fails for a moment
_IN_CATALOGUE = re.compile(r"caches/[0-9a-f]{64}/")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

T = TypeVar("T")


class HubStore(Store):
    """The files of a repository at one commit, for reading.

    They are found below caches/<cache id>/ too, as in a catalogue. Safe to use from several
    threads.
    """

    def __init__(self, repository: str, revision: str | None = None) -> None:
        """Find the commit of a revision; None for the repository's main branch.

        Raises:
            UsageError: there is no such repository or revision, or the hub does not answer.
        """
        self.repository = repository
        self.commit = find_commit(repository, revision)
        super().__init__(Location(f"hf://datasets/{repository}@{self.commit[:12]}"))

    def read(self, name: str) -> bytes:
        """Return a file's bytes; as of a store."""
        return bytes(self._get(name, {}).content)

    def read_range(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Return a part of a file; as of a store."""
        if size_bytes == 0:
            return b""
        asked = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        data = bytes(self._get(name, asked).content)
        if len(data) != size_bytes:
            raise UsageError(
                f"{self.place / name}: {len(data)} of {size_bytes} bytes came; it is another file "
                "than expected, or the connection broke: run the same command again"
            )
        return data

    def size(self, name: str) -> int | None:
        """Return a file's bytes; None if it is missing."""
        from huggingface_hub import get_hf_file_metadata

        try:
            found = self._answer(
                name,
                lambda: get_hf_file_metadata(self._address(name), timeout=PATIENCE_S).size,
            )
        except FileNotFoundError:
            return None
        return None if found is None else int(found)

    def names(self, prefix: str = "") -> Iterator[Entry]:
        """Raise an error: nothing lists a repository, which its manifest names the files of."""
        raise UsageError(f"{self.place}: is read by its manifest, and not listed")

    def write(self, name: str, data: bytes) -> None:
        """Raise an error: a repository is written by commits."""
        raise UsageError(f"{self.place / name}: is written by kdcache hub push alone")

    def _address(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        file = _IN_CATALOGUE.sub("", name, count=1)
        return hf_hub_url(self.repository, file, repo_type=KIND, revision=self.commit)

    def _get(self, name: str, headers: dict[str, str]) -> Any:
        library = _utilities(self.repository)

        def ask() -> Any:
            answer = library.http_backoff(
                "GET",
                self._address(name),
                headers={**library.build_hf_headers(), "Accept-Encoding": "identity", **headers},
                max_retries=TRIES - 1,
                base_wait_time=0.2,
                timeout=PATIENCE_S,
            )
            library.hf_raise_for_status(answer)
            return answer

        return self._answer(name, ask)

    def _answer(self, name: str, ask: Callable[[], T]) -> T:
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return ask()
        except EntryNotFoundError:
            raise FileNotFoundError(f"{self.place / name}") from None
        except Exception as error:  # of the network, of the hub
            raise refusal(self.repository, error) from None


def _utilities(repository: str) -> Any:
    """Return what the hub's library offers to others; its types are not exported.

    Raises:
        UsageError: it is not installed.
    """
    return need("huggingface_hub.utils", extra="hub", spec=f"dataset repository {repository}")


def find_commit(repository: str, revision: str | None) -> str:
    """Return the id of the commit of a revision.

    Raises:
        UsageError: there is no such repository or revision, or the hub does not answer.
    """
    check_name(repository)
    _utilities(repository)
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(repository, revision=revision, timeout=PATIENCE_S).sha
    except Exception as error:  # of the network, of the hub
        raise refusal(repository, error, revision=revision) from None
    assert found is not None  # the hub says it of all repositories
    return found


def check_name(repository: str) -> None:
    """Check that a text is the name of a repository.

    Raises:
        UsageError: it is not.
    """
    if _ID.fullmatch(repository) is None:
        raise UsageError(
            f"{ascii(repository[:120])[1:-1]}: no name of a repository of the hub, expected "
            "OWNER/NAME"
        )


def refusal(repository: str, error: BaseException, *, revision: str | None = None) -> UsageError:
    """Return what to tell of an error: none of its text, which may hold credentials."""
    from huggingface_hub.errors import HfHubHTTPError

    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__  # of an upload
    reason = known_reason(error, revision=revision)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if reason is None and status in (401, 403):
        reason = (
            f"the hub refuses ({status}); run hf auth login with a token that may read it, and for "
            "kdcache hub push one that may write"
        )
    elif reason is None and status in (409, 412):
        reason = "somebody else changed it meanwhile; run the same command again"
    elif reason is None and status is not None:
        reason = f"the hub answers {status}; run the same command again"
    elif reason is None:
        reason = (
            f"the hub does not answer ({type(error).__name__}); check the network and HF_ENDPOINT, "
            "then run the same command again"
        )
    return UsageError(f"dataset repository {repository}: {reason}")


@contextmanager
def hushed(repository: str) -> Iterator[None]:
    """Keep the log messages, warnings and progress bars of the hub's library to itself.

    Raises:
        UsageError: the library is not installed; says that this repository needs it.
    """
    library, logger = _utilities(repository), logging.getLogger("huggingface_hub")
    shown = not library.are_progress_bars_disabled()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.disable_progress_bars()
            yield
    finally:
        logger.setLevel(before)
        if shown:
            library.enable_progress_bars()
