"""A published cache as a dataset repository of the Hugging Face Hub.

Invariant: in each commit of a repository, what the manifest names is there, and is what it says:
objects that never change go first, in commits without a manifest; the manifest goes last, in one
commit with the documents that grow with a cache. So nobody sees a half of it, and a push that was
killed goes on where it stopped.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcache.cache.manifest import COMMITS
from kdcache.cache.metadata import ROOT
from kdcache.cache.published import MANIFEST, SIGNATURE, Manifest, parse_manifest
from kdcache.errors import CorruptError, KdcacheError, MismatchError, UsageError
from kdcache.identity import read_json
from kdcache.models.hub import PATIENCE_S
from kdcache.models.libraries import need
from kdcache.sharing.card import card
from kdcache.sharing.croissant import croissant
from kdcache.sharing.hub_store import KIND, HubStore, check_name, hushed, refusal
from kdcache.stores.location import Place
from kdcache.stores.store import Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CROISSANT, README = "croissant.json", "README.md"
GROUP_BYTES, GROUP_FILES = 1 << 27, 500  # that are in memory at a time
COMMIT_FILES = 5_000  # the hub asks for few commits, and refuses enormous ones
THREADS = 16
MAX_SIGNATURE_BYTES = 1 << 20


@dataclass(frozen=True)
class Pushed:
    """What pushing did. commit: the last one. address: where people see it."""

    manifest: Manifest
    repository: str
    commit: str
    address: str


def push(
    source: Place,
    repository: str,
    *,
    revision: str | None = None,
    private: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Pushed:
    """Bring a published cache to a dataset repository, which is made if it is not there.

    source: its folder in a catalogue, CATALOGUE/caches/ID. revision: a branch, made from main if it
    is not there; None for main. progress is given the number of objects done.

    Raises:
        UsageError: source is no published cache; the hub refuses or does not answer; or the
            repository has spans that source lacks.
        MismatchError: the repository holds another cache.
        CorruptError: an object differs from the manifest; it was not sent.
    """
    check_name(repository)
    need("huggingface_hub", extra="hub", spec=repository)
    from huggingface_hub import HfApi

    store = Store(source)
    data, manifest = _manifest(store)
    with hushed():
        pushing = _Pushing(HfApi(), repository, revision or "main", store, manifest)
        try:
            pushing.open(private=private)
            pushing.check_there(revision)
            documents = [n for n in manifest.objects if n.endswith(ROOT) or n == "seal.json"]
            for group in _groups(manifest, set(manifest.objects) - set(documents)):
                pushing.send(pushing.read(group))
                progress(len(group))
            pushing.commit("objects")
            objects = pushing.read(documents)
            pushing.send({**objects, **_descriptions(store, manifest, objects), MANIFEST: data})
            progress(len(documents))
            commit = pushing.commit("manifest")
        except KdcacheError:
            raise
        except Exception as error:  # of the network, of the hub
            raise refusal(repository, error, revision=revision) from None
    address = f"{pushing.api.endpoint}/datasets/{repository}"
    return Pushed(manifest, repository, commit, address)


@dataclass
class _Pushing:
    """A repository that is written to; operations: that are not committed yet."""

    api: "HfApi"
    repository: str
    branch: str
    store: Store
    manifest: Manifest

    def __post_init__(self) -> None:
        self.operations: list[Any] = []

    def open(self, *, private: bool) -> None:
        """Make the repository, and the branch, unless they are there."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            self.api.dataset_info(self.repository, timeout=PATIENCE_S)
        except RepositoryNotFoundError:
            self.api.create_repo(
                self.repository, repo_type=KIND, private=private or None, exist_ok=True
            )
        if self.branch != "main":
            self.api.create_branch(
                self.repository, branch=self.branch, repo_type=KIND, exist_ok=True
            )

    def check_there(self, revision: str | None) -> None:
        """Check that what the repository holds is of this cache, and no more of it.

        Raises:
            MismatchError: it is another cache.
            UsageError: it has spans that would be lost to it.
        """
        hub = HubStore(self.repository, revision)
        try:
            there = parse_manifest(hub.read(MANIFEST), where=hub.place / MANIFEST)
        except FileNotFoundError:
            return
        if there.cache != self.manifest.cache:
            raise MismatchError(
                f"dataset repository {self.repository}: holds cache {there.cache[:12]}, not "
                f"{self.manifest.cache[:12]}; push to another repository, or another --revision"
            )
        more = [n for n in there.objects if n not in self.manifest.objects and COMMITS in n]
        if more:
            raise UsageError(
                f"dataset repository {self.repository}: has {len(more)} spans that "
                f"{self.store.place} lacks; run kdcache hub pull, publish what it brings, then "
                "push again"
            )

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return objects, compared with the manifest.

        Raises:
            CorruptError: one is missing, or is another.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(names, pool.map(self._read, names), strict=True))

    def _read(self, name: str) -> bytes:
        entry, problem = self.manifest.objects[name], "missing"
        try:
            data = self.store.read(name)
            if hashlib.sha256(data).hexdigest() == entry.sha256:
                return data
            problem = "its sha256 differs from the manifest's"
        except FileNotFoundError:
            pass
        raise CorruptError(
            f"{self.store.place / name}: {problem}; ask who published it to publish it again"
        )

    def send(self, files: dict[str, bytes]) -> None:
        """Send files, those that the hub keeps as large ones at once, others with a commit."""
        from huggingface_hub import CommitOperationAdd

        if len(self.operations) + len(files) > COMMIT_FILES:
            self.commit("objects")
        additions = [CommitOperationAdd(name, data) for name, data in files.items()]
        self.api.preupload_lfs_files(
            self.repository, additions=additions, repo_type=KIND, revision=self.branch
        )
        self.operations += additions

    def commit(self, what: str) -> str:
        """Return the id of a commit of what was sent."""
        if not self.operations:
            return ""
        made = self.api.create_commit(
            self.repository,
            operations=self.operations,
            commit_message=f"kdcache: {what} of cache {self.manifest.cache[:12]}",
            repo_type=KIND,
            revision=self.branch,
        )
        self.operations = []
        return str(made.oid)


def _manifest(store: Store) -> tuple[bytes, Manifest]:
    try:
        data = store.read(MANIFEST)
    except FileNotFoundError:
        raise UsageError(
            f"{store.place}: no published cache, which has a {MANIFEST}; run kdcache publish, then "
            "push CATALOGUE/caches/ID"
        ) from None
    return data, parse_manifest(data, where=store.place / MANIFEST)


def _groups(manifest: Manifest, names: set[str]) -> Iterator[list[str]]:
    """Yield names of objects that are together in memory."""
    group: list[str] = []
    size_bytes = 0
    for name in sorted(names):
        size_bytes += manifest.objects[name].size_bytes
        if group and (size_bytes > GROUP_BYTES or len(group) == GROUP_FILES):
            yield group
            group, size_bytes = [], manifest.objects[name].size_bytes
        group.append(name)
    if group:
        yield group


def _descriptions(
    store: Store, manifest: Manifest, documents: dict[str, bytes]
) -> dict[str, bytes]:
    """Return what describes a cache, made anew, and its signature, which readers check."""
    try:
        attributes = read_json(documents[ROOT])["attributes"]["kdcache"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptError(
            f"{store.place / ROOT}: no metadata of a cache; ask who published it to publish it "
            "again"
        ) from error
    return {
        **_signature(store),
        CROISSANT: croissant(manifest, attributes),
        README: card(manifest, attributes).encode(),
    }


def _signature(store: Store) -> dict[str, bytes]:
    size = store.size(SIGNATURE)
    if size is None:
        return {}
    if size > MAX_SIGNATURE_BYTES:
        raise CorruptError(f"{store.place / SIGNATURE}: {size} bytes; sign it again")
    return {SIGNATURE: store.read_range(SIGNATURE, 0, size)}
