"""A published cache as a dataset repository of the Hugging Face Hub.

Invariant: in each commit of a repository, what the manifest names is there, and is what it says:
objects that never change go first, in commits without a manifest; the manifest goes last, in one
commit with the documents that grow with a cache. So nobody sees a half of it, and a push that was
killed goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdcache.cache.inventory import published_spans
from kdcache.cache.metadata import ROOT
from kdcache.cache.published import MANIFEST, MAX_BYTES, SIGNATURE, Manifest, parse_manifest
from kdcache.errors import KdcacheError, MismatchError, UsageError
from kdcache.models.hub import PATIENCE_S
from kdcache.sharing.catalogue import Catalogue, Published
from kdcache.sharing.describing import descriptions
from kdcache.sharing.hub_store import KIND, HubStore, check_name, hushed, refusal
from kdcache.sharing.settle import basis_of
from kdcache.sharing.together import together

if TYPE_CHECKING:
    from huggingface_hub import HfApi

GROUP_BYTES, GROUP_FILES = 1 << 27, 500  # that are in memory at a time
COMMIT_FILES = 5_000  # the hub asks for few commits, and refuses enormous ones


@dataclass(frozen=True)
class Pushed:
    """What pushing did. commit: the last one. address: where people see it."""

    commit: str
    address: str


def published_on_hub(repository: str, revision: str | None = None) -> Published:
    """Return the cache that a dataset repository holds in its newest commit, or in a revision.

    Raises:
        UsageError: there is no such repository or revision, or it holds none, or the hub does not
            answer.
        CorruptError: its manifest is damaged.
    """
    store = HubStore(repository, revision)
    catalogue = Catalogue(store.place, store=store)
    data = catalogue.read_small(MANIFEST, most_bytes=MAX_BYTES)
    if data is None:
        raise UsageError(
            f"dataset repository {repository}: holds no cache, which has a {MANIFEST}; another "
            "--revision may"
        )
    return Published(catalogue, data, parse_manifest(data, where=store.place / MANIFEST))


def push(
    published: Published,
    repository: str,
    *,
    revision: str | None = None,
    private: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Pushed:
    """Bring a published cache to a dataset repository, which is made if it is not there.

    revision: a branch, made from main if it is not there; None for main. progress is given the
    number of objects done.

    Raises:
        UsageError: the hub or the store refuses or does not answer, or the repository has spans
            that published lacks.
        MismatchError: the repository holds another cache.
        CorruptError: an object differs from the manifest; it was not sent.
    """
    check_name(repository)
    objects = published.manifest.objects
    documents = [name for name in objects if name.endswith(ROOT) or name == "seal.json"]
    with hushed(repository):
        from huggingface_hub import HfApi

        pushing = _Pushing(HfApi(), repository, revision or "main", published)
        try:
            pushing.open(private=private)
            pushing.check_there()
            for group in _groups(published.manifest, set(objects) - set(documents)):
                pushing.send(pushing.read(group))
                progress(len(group))
            pushing.commit("objects")
            pushing.send({**pushing.read(documents), **_descriptions(published)})
            commit = pushing.commit("manifest")
            progress(len(documents))
        except KdcacheError:
            raise
        except Exception as error:  # of the network, of the hub
            raise refusal(repository, error, revision=revision) from None
    return Pushed(commit, f"{pushing.api.endpoint}/datasets/{repository}")


@dataclass
class _Pushing:
    """A repository that is written to.

    head: the commit that the next one goes upon, so that no other push is overwritten. operations:
    that are not committed yet.
    """

    api: "HfApi"
    repository: str
    branch: str
    published: Published
    head: str | None = None
    operations: list[Any] = field(default_factory=list)

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

    def check_there(self) -> None:
        """Check that what the repository holds is of this cache, and no more of it.

        Raises:
            MismatchError: it is another cache.
            UsageError: it has spans that would be lost to it.
        """
        hub = HubStore(self.repository, self.branch)
        self.head = hub.commit
        try:
            there = parse_manifest(hub.read(MANIFEST), where=hub.place / MANIFEST)
        except FileNotFoundError:
            return
        if there.cache != self.published.id:
            raise MismatchError(
                f"dataset repository {self.repository}: holds cache {there.cache[:12]}, not "
                f"{self.published.id[:12]}; push to another repository, or another --revision"
            )
        spans, own = (set(published_spans(m.objects)) for m in (there, self.published.manifest))
        if more := spans - own:
            raise UsageError(
                f"dataset repository {self.repository}: has {len(more)} spans that "
                f"{self.published.place} lacks; run kdcache hub pull, publish what it brings, "
                "then push again"
            )

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return objects, compared with the manifest.

        Raises:
            CorruptError: one is missing, or is another.
        """
        return dict(zip(names, together(self.published.read, names), strict=True))

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
            commit_message=f"kdcache: {what} of cache {self.published.id[:12]}",
            repo_type=KIND,
            revision=self.branch,
            parent_commit=self.head,
        )
        self.operations, self.head = [], str(made.oid)
        return self.head


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


def _descriptions(published: Published) -> dict[str, bytes]:
    """Return the manifest, its signature if there is one, and what describes a cache, made anew."""
    signature = published.signature()
    return {
        MANIFEST: published.data,
        **({} if signature is None else {SIGNATURE: signature}),
        **descriptions(published.manifest, basis_of(published).attributes),
    }
