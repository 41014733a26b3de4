"""Files of the Hugging Face hub: those in its cache first, then the network, or one sentence.

A repository's files are taken from one commit: that of the first file. A cache that holds a file is
not compared with the hub, so that the same command gives the same model, with a network or without.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kdcache.errors import UsageError
from kdcache.models.libraries import first_line, quiet

PATIENCE_S = 10.0  # for each answer of a server


@dataclass(frozen=True)
class Repository:
    """A repository of the hub. spec: what the user asked for. advice: what to do without a hub."""

    id: str
    revision: str | None
    spec: str
    advice: str


def fetch(repository: Repository, filename: str) -> Path:
    """Return a file of a repository, from the cache or from the network.

    Raises:
        UsageError: it is in neither; says why in one sentence.
    """
    found = _fetch(repository, filename)
    if found is None:
        raise UsageError(
            f"{repository.spec}: {repository.id} has no {filename} on the hub; {repository.advice}"
        )
    return found


def fetch_if_any(repository: Repository, filename: str) -> Path | None:
    """Return a file of a repository, None if it has none of this name.

    Raises:
        UsageError: that cannot be found out.
    """
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(repository.id, filename, revision=repository.revision)
    if known is not None and not isinstance(known, str):
        return None  # the cache notes that it is not there
    return _fetch(repository, filename)


def _fetch(repository: Repository, filename: str) -> Path | None:
    """Return a file, None if the hub says that there is none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    name, revision = repository.id, repository.revision
    try:
        return Path(hf_hub_download(name, filename, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UsageError(f"{repository.spec}: {first_line(error)}") from error
    try:
        with quiet():
            # One question before, since hf_hub_download asks for a minute where nobody answers. An
            # answer that there is no such file it notes in the cache.
            address = hf_hub_url(name, filename, revision=revision)
            with suppress(EntryNotFoundError):
                get_hf_file_metadata(address, timeout=PATIENCE_S)
            path = hf_hub_download(name, filename, revision=revision, etag_timeout=PATIENCE_S)
            return Path(path)
    except Exception as error:  # of the network, of the hub and of the file system
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        _refuse(repository, filename, error)


def known_reason(error: BaseException, *, revision: str | None) -> str | None:
    """Return why the hub gives no files of a repository; None if it is something else."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    reasons = (
        (GatedRepoError, "its owner must let you in (ask there, then run hf auth login)"),
        (RepositoryNotFoundError, "the hub has none of this name, or shows it to its owners only"),
        (RevisionNotFoundError, f"it has no revision {revision}"),
        (OfflineModeIsEnabled, "the hub is switched off by HF_HUB_OFFLINE"),
    )
    return next((words for kind, words in reasons if isinstance(error, kind)), None)


def _refuse(repository: Repository, filename: str, error: Exception) -> NoReturn:
    reason = known_reason(error, revision=repository.revision) or first_line(error)
    raise UsageError(
        f"{repository.spec}: {filename} of {repository.id} is not in the hub's cache, and cannot "
        f"be fetched: {reason}; {repository.advice}"
    ) from error
