"""A published cache, or spans of it, brought to this disk.

Invariant: what is written has the size and sha256 that the manifest and the span's commit record
state, and the record goes last: a fetched part is an ordinary cache of which spans are missing, and
a whole one is that cache to the last byte. Nothing is written through a link, and nothing larger
than the manifest says is read.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.copy import StoredSpan, check_copies
from kdcache.cache.inventory import published_spans
from kdcache.cache.layout import Span
from kdcache.cache.manifest import parse_commit
from kdcache.cache.merge import check_part, open_or_create
from kdcache.cache.objects import Locks
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, MismatchError, UsageError
from kdcache.sharing.catalogue import AGAIN, Published
from kdcache.sharing.draft import bare_cache, renamed
from kdcache.sharing.settle import basis_of
from kdcache.sharing.together import THREADS, together
from kdcache.stores.store import abandon

SPANS_AT_ONCE = 8
MAX_RECORD_BYTES = 1 << 22
_BESIDE = 1 << 16  # bytes of a shard beside its chunks, and of what does not compress


@dataclass(frozen=True)
class Fetching:
    """Spans to be fetched. there: those that the target has; absent: that are not published."""

    published: Published
    target: Cache
    spans: tuple[Span, ...]
    there: int
    absent: tuple[Span, ...]


@dataclass(frozen=True)
class Fetched:
    """What fetching did: spans of size_bytes, without their records. damaged: what was refused."""

    spans: tuple[Span, ...]
    size_bytes: int
    damaged: tuple[str, ...]


def prepare_fetch(
    published: Published,
    out: Path,
    *,
    num_views: int | None = None,
    first_view: int = 0,
    tars: range | None = None,
) -> Fetching:
    """Return how to bring a part of a published cache to one of its first num_views views.

    first_view: the first that is fetched. tars: those that are fetched; None for all. The cache at
    out is created, or opened to go on with.

    Raises:
        UsageError: there are no such views or tars, or out has other views or cannot be created.
        MismatchError: out is a cache of something else.
        CorruptError: what is published of the cache is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="kdcache-") as scratch:
        like = _like(published, Path(scratch))
        grid = like.grid
        num_views = grid.num_views if num_views is None else num_views
        tars = range(grid.num_tars) if tars is None else tars
        check_part(like, range(first_view, num_views), tars=tars, where=published.place)
        target = open_or_create(out, like, num_views=num_views)
        check_copies(target, [like])
    if target.grid.num_views != num_views:
        raise UsageError(
            f"{out}: has {target.grid.num_views} views, {num_views} are asked for; pass the same, "
            f"or another path, or run kdcache extend {out} --views {num_views} first"
        )
    runs = range(first_view // grid.span_views, num_views // grid.span_views)
    return _choose(published, target, [Span(tar, run) for tar in tars for run in runs])


def prepare_spans(published: Published, target: Cache) -> Fetching:
    """Return how to bring to a cache of the same id all spans that it lacks, and that are there.

    Raises:
        MismatchError: the cache is of something else, or laid out otherwise.
        CorruptError: what is published of the cache is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="kdcache-") as scratch:
        check_copies(target, [_like(published, Path(scratch))])
    return _choose(published, target, target.missing())


def _choose(published: Published, target: Cache, wanted: list[Span]) -> Fetching:
    have, named = (
        set(wanted) - set(target.missing()),
        {Span(*span) for span in published_spans(published.manifest.objects)},
    )
    return Fetching(
        published,
        target,
        spans=tuple(span for span in wanted if span in named and span not in have),
        there=len(have),
        absent=tuple(span for span in wanted if span not in named and span not in have),
    )


def _like(published: Published, path: Path) -> Cache:
    """Return a cache without spans that is otherwise the published one, in an empty folder."""
    basis, manifest = basis_of(published), published.manifest
    try:
        like = bare_cache(path, basis)
        for name, data in _samples(published, like).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        for tar in range(like.grid.num_tars):
            like.uids(tar)
    except CorruptError as error:
        raise CorruptError(renamed(error, path, published.place)) from None
    stated = (manifest.num_classes, manifest.span_views, manifest.dataset.num_tars)
    if stated != (like.info.num_classes, like.grid.span_views, like.grid.num_tars):
        raise CorruptError(f"{published.place}: its manifest differs from its zarr.json; {AGAIN}")
    return like


def _samples(published: Published, like: Cache) -> dict[str, bytes]:
    most_bytes = 8 * like.grid.max_rows + _BESIDE
    names = [f"{a}/c/{tar}/0" for a in ("uids", "contents") for tar in range(like.grid.num_tars)]
    found = together(lambda name: published.read(name, most_bytes=most_bytes), names)
    return dict(zip(names, found, strict=True))


def run_fetch(fetching: Fetching, *, progress: Callable[[int], None] = lambda _: None) -> Fetched:
    """Fetch spans, and seal the cache if it is complete.

    Goes on where it stopped. Spans that another process is working on are left to it, and looked
    at again when nothing else is left. progress is given the number of spans done.

    Raises:
        UsageError: the disk is full or read-only, or the store refuses or does not answer; what
            was fetched stays.
    """
    target, results = fetching.target, _Results([], 0, [])
    with (
        Locks(target.path) as locks,
        ThreadPoolExecutor(SPANS_AT_ONCE) as spans,
        ThreadPoolExecutor(THREADS) as objects,
    ):
        work = _Work(fetching.published, target, locks, objects, results)
        try:
            held = work.fetch(spans, fetching.spans, progress, wait=False)
            work.fetch(spans, held, progress, wait=True)
        except KeyboardInterrupt:
            abandon()
            raise
        finally:
            spans.shutdown(wait=False, cancel_futures=True)
    if not target.missing():
        seal(target)
    return Fetched(tuple(results.spans), results.size_bytes, tuple(results.damaged))


@dataclass
class _Results:
    spans: list[Span]
    size_bytes: int
    damaged: list[str]


@dataclass(frozen=True)
class _Work:
    """Spans on their way. objects: runs the requests."""

    published: Published
    target: Cache
    locks: Locks
    objects: Executor
    results: _Results

    def fetch(
        self,
        executor: Executor,
        spans: Iterable[Span],
        progress: Callable[[int], None],
        *,
        wait: bool,
    ) -> list[Span]:
        """Fetch spans; return those that another process works on."""
        held: list[Span] = []
        coming: deque[tuple[Span, Future[StoredSpan]]] = deque()

        def finish() -> None:
            self._finish(*coming.popleft())
            progress(1)

        for span in spans:
            if not self.locks.take(span.lock, wait=wait):
                held.append(span)
            elif self.target.folder.exists(span.commit_name):
                self.locks.free(span.lock)
                progress(1)
            else:
                coming.append((span, executor.submit(self._load, span)))
            if len(coming) >= SPANS_AT_ONCE:
                finish()
        while coming:
            finish()
        return held

    def _finish(self, span: Span, loading: Future[StoredSpan]) -> None:
        try:
            loaded = loading.result()
        except CorruptError as error:
            self.results.damaged.append(str(error))
            self.locks.free(span.lock)
            return
        folder = self.target.folder
        for name in (*loaded.objects, span.commit_name):
            _refuse_links(folder.path, name)
        try:
            folder.write(loaded.objects)
            published = folder.publish(span.commit_name, loaded.record)
        except OSError as error:
            raise self.target.cannot_write(f"span {span}", error) from error
        if not published:
            raise MismatchError(
                f"{self.target.path}: span {span} was committed in spite of its lock; see that the "
                "file system locks files, then run kdcache repair"
            )
        self.locks.free(span.lock)
        self.results.spans.append(span)
        self.results.size_bytes += sum(map(len, loaded.objects.values()))

    def _load(self, span: Span) -> StoredSpan:
        """Return a published span, its objects compared with the manifest and with its record.

        Raises:
            CorruptError: something of it is missing, or other than they say.
        """
        published, target = self.published, self.target
        record = published.read(span.commit_name, most_bytes=MAX_RECORD_BYTES)
        where = published.place / span.commit_name
        commit = parse_commit(record, span, cache=target.info.id, where=where)
        try:
            target.check_extent(commit)
        except CorruptError as error:
            raise CorruptError(renamed(error, target.path, published.place)) from None
        names = target.object_names(span)
        for array, name in names.items():
            entry = published.entry(name, most_bytes=_most_bytes(target, array))
            if entry.model_dump() != commit.objects[name]:
                raise CorruptError(
                    f"{published.place / name}: the manifest differs from its commit record; "
                    f"{AGAIN}"
                )
        found = self.objects.map(published.read, names.values())
        return StoredSpan(dict(zip(names.values(), found, strict=True)), record)


def _most_bytes(cache: Cache, array: str) -> int:
    """Return more bytes than an object of an array can have."""
    widths = {spec.name: spec.width for spec in cache.info.specs}
    values = cache.grid.max_rows * widths.get(array, 1)
    return cache.grid.span_views * (2 * 8 * values + _BESIDE)


def _refuse_links(folder: Path, name: str) -> None:
    """Check that a link stands nowhere between a folder and an object.

    Raises:
        UsageError: one does.
    """
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            raise UsageError(f"{path}: a link stands in a cache; delete it, or fetch elsewhere")
