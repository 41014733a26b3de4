"""A damaged cache made sound.

What follows from its attributes is written again; damaged spans are withdrawn, to be copied or
computed again.

Invariant: the seal goes before a commit record, a commit record before its objects, so that a
killed repair leaves a cache that lacks spans and claims no more than it holds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.audit import Finding, check_objects, check_span
from kdcache.cache.create import ROWS, rows_object, sample_object
from kdcache.cache.in_place import check_unpublished
from kdcache.cache.info import with_extent
from kdcache.cache.layout import EXTENT_LOCK, Span
from kdcache.cache.manifest import SEAL, committed, read_commit
from kdcache.cache.metadata import (
    ROOT,
    array_document,
    root_document,
    to_text,
)
from kdcache.cache.objects import Folder, Locks
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset, tar_digest
from kdcache.errors import CorruptError, KdcacheError, MismatchError, UsageError
from kdcache.identity import digest

_WITHOUT_VIEWS = ("uids", "contents", "rows")
Names = tuple[NDArray[np.uint64], NDArray[np.uint64]]


@dataclass(frozen=True)
class Plan:
    """What a repair is to do.

    findings: all that is wrong. metadata: names of what the attributes decide. samples: objects of
    sample names. spans: those to be withdrawn. unsound_seal: the seal goes, and is made again if
    no span is missing. lost: what neither the copies nor the dataset can mend.
    """

    findings: tuple[Finding, ...]
    metadata: tuple[str, ...]
    samples: dict[str, bytes]
    spans: tuple[Span, ...]
    unsound_seal: bool
    lost: tuple[Finding, ...]

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to be written or withdrawn."""
        return not (self.metadata or self.samples or self.spans or self.unsound_seal)


# --- the root document ---------------------------------------------------------------------------


def is_readable(path: Path) -> bool:
    """Return whether the root document of the cache at path can be read.

    Raises:
        UsageError: no cache was ever there, or its format is newer.
    """
    try:
        open_cache(path, checked=False)
    except CorruptError:
        return False
    except UsageError:
        if _is_sound_or_foreign(path) or not _can_read(path / ROOT):
            raise
        return False
    return True


def _can_read(path: Path) -> bool:
    """Return whether the system can read a file that is there."""
    try:
        path.read_bytes()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


def _is_sound_or_foreign(path: Path) -> bool:
    """Return whether the root document is as it was written, or nothing of a cache is there."""
    if not committed(Folder(path)) and not (path / array_document("rows")).is_file():
        return True
    try:
        body = json.loads((path / ROOT).read_bytes())["attributes"]["kdcache"]
        return bool(digest({k: v for k, v in body.items() if k != "digest"}) == body["digest"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def restore_root(path: Path, copies: Sequence[Cache], *, dry_run: bool = False) -> None:
    """Write the root document of a cache that has lost its own, from a copy that agrees with it.

    dry_run: only see that one does.

    Raises:
        CorruptError: there is no copy.
        MismatchError: no copy agrees with the array metadata and the commit records.
        UsageError: the disk is full or read-only.
    """
    if not copies:
        raise CorruptError(
            f"{path / ROOT}: damaged, and nothing else says what this cache is; run kdcache repair "
            "--from a sound copy"
        )
    for copy in copies:
        views = _agreed_views(path, copy)
        if views is None or not _owns_records(path, copy):
            continue
        root, folder = with_extent(copy.attributes(), views=views), Folder(path)
        try:
            if not dry_run:
                with folder.lock(EXTENT_LOCK, wait=True):
                    folder.publish(ROOT, to_text(root_document(root, None)), replace=True)
        except OSError as error:
            raise UsageError(
                f"{path / ROOT}: cannot be written: {error.strerror}; free space or permissions, "
                "then run the same command again"
            ) from error
        return
    raise MismatchError(
        f"{path}: its array metadata or commit records are of another cache than "
        f"{', '.join(str(copy.path) for copy in copies)}; pass a copy of this cache"
    )


def _agreed_views(path: Path, copy: Cache) -> int | None:
    """Return the number of views of a cache whose arrays are otherwise those of a copy.

    None if they are not. Array metadata that cannot be read are damaged too, and say nothing.
    """
    agreed = set()
    for array in copy.array_metadata():
        try:
            found = json.loads((path / array_document(array)).read_bytes())
        except (OSError, ValueError):
            continue
        try:
            views = copy.grid.num_views if array in _WITHOUT_VIEWS else int(found["shape"][1])
        except (KeyError, TypeError, ValueError, IndexError):
            return None
        if found != copy.array_metadata(views)[array]:
            return None
        if array not in _WITHOUT_VIEWS:
            agreed.add(views)
    return agreed.pop() if len(agreed) == 1 else None


def _owns_records(path: Path, copy: Cache) -> bool:
    spans = committed(Folder(path))
    return not spans or any(_is_of(Folder(path), span, copy.info.id) for span in spans)


def _is_of(folder: Folder, span: Span, cache: str) -> bool:
    try:
        read_commit(folder, span, cache=cache)
    except KdcacheError:
        return False
    return True


# --- the rest ------------------------------------------------------------------------------------


def plan_repair(cache: Cache, copies: Sequence[Cache], dataset: Dataset | None) -> Plan:
    """Return what would make a cache sound. dataset: the cache's own, if it is at hand.

    Raises:
        MismatchError: the dataset is another.
    """
    if dataset is not None and dataset.id != cache.info.dataset["id"]:
        raise MismatchError(
            f"{cache.path}: made with dataset {cache.info.dataset['id'][:12]}, {dataset.root} is "
            f"{dataset.id[:12]}; pass the one that it was made with"
        )
    findings, metadata = tuple(check_objects(cache)), tuple(_metadata(cache))
    samples: dict[str, bytes] = {}
    lost = [f for f in findings if f.where == ROOT and ROOT not in metadata]
    for tar in range(cache.grid.num_tars):
        try:
            cache.uids(tar)
        except CorruptError as error:
            names = _names(cache, tar, copies=copies, dataset=dataset)
            if names is None:
                lost.append(Finding(f"uids/c/{tar}/0, contents/c/{tar}/0", str(error), None))
                continue
            for array, digests in zip(("uids", "contents"), names, strict=True):
                samples[f"{array}/c/{tar}/0"] = sample_object(cache.grid, digests)
    return Plan(
        findings,
        metadata,
        samples,
        spans=tuple(sorted({f.span for f in findings if f.span is not None})),
        unsound_seal=any(finding.where == SEAL for finding in findings),
        lost=tuple(lost),
    )


def _metadata(cache: Cache) -> dict[str, bytes]:
    """Return what the attributes decide and the disk has otherwise, by name."""
    documents = {array_document(name): d for name, d in cache.array_metadata().items()}
    documents[ROOT] = root_document(cache.attributes(), None)
    decided = {name: to_text(document) for name, document in documents.items()}
    decided[ROWS] = rows_object(cache.rows)
    return {name: decided[name] for name in cache.problems()}


def _names(
    cache: Cache, tar: int, *, copies: Sequence[Cache], dataset: Dataset | None
) -> Names | None:
    """Return the uids and contents of a tar from where they are sound; None from nowhere."""
    if dataset is not None:
        rows = dataset.rows(tar)
        return dataset.uids[rows], dataset.contents[rows]
    for copy in copies:
        try:
            names = copy.uids(tar), copy.contents(tar)
        except CorruptError:
            continue
        if tar_digest(*names) == cache.info.dataset["tars"][tar]["digest"]:
            return names
    return None


def carry_out(cache: Cache, plan: Plan) -> Cache:
    """Write what the plan says and withdraw its spans; return the cache as it is then.

    Raises:
        UsageError: the cache is published, the disk is full or read-only.
    """
    folder = cache.folder
    check_unpublished(cache.path)
    try:
        with Locks(cache.path) as locks:
            locks.take(EXTENT_LOCK, wait=True)
            now = open_cache(cache.path, checked=False)  # it may have more views by now
            for name, data in (_metadata(now) | plan.samples).items():
                folder.publish(name, data, replace=True)
            if plan.unsound_seal:
                folder.remove(SEAL)
            locks.free(EXTENT_LOCK)
            for span in plan.spans:
                locks.take(span.lock, wait=True)
                if not _is_mended(now, span):
                    locks.take(EXTENT_LOCK, wait=True)
                    folder.remove(SEAL)
                    folder.remove(span.commit_name)
                    locks.free(EXTENT_LOCK)
                    for name in cache.object_names(span).values():
                        folder.remove(name)
                locks.free(span.lock)
    except OSError as error:
        raise cache.cannot_write("the repair", error) from error
    return open_cache(cache.path)


def _is_mended(cache: Cache, span: Span) -> bool:
    """Return whether another process has mended a damaged span meanwhile."""
    committed = cache.folder.exists(span.commit_name)
    return committed and not any(check_span(cache, span))
