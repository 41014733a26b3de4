"""Engines: who runs which span when. All run the same spans; the store is the only state."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, Seal
from kdcache.cache.manifest import committed as spans_committed
from kdcache.cache.objects import Locks
from kdcache.cache.quarantine import is_quarantined, quarantine, quarantined, release
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache
from kdcache.cache.writers import Heartbeat
from kdcache.errors import DataError, KdcacheError
from kdcache.precompute.span import Begun, Job, Report, run_spans

LISTING_S = 10.0


def slice_of(spans: Sequence[Span], part: int, parts: int) -> list[Span]:
    """Return every parts-th span, from number `part` on, whatever is computed meanwhile."""
    return [span for span in spans if (span.tar + span.run) % parts == part]


def own_first(spans: Sequence[Span], part: int, parts: int) -> list[Span]:
    """Return all spans, those of one part first, then the parts after it in turn.

    So several processes seldom want the same span, and take over what others leave.
    """
    return [s for n in range(parts) for s in slice_of(spans, (part + n) % parts, parts)]


def run_inline(
    job: Job,
    spans: Sequence[Span] | None = None,
    *,
    retry_quarantined: bool = False,
    progress: Report = lambda _: None,
    begun: Begun = lambda _: None,
    committed: Callable[[Commit], None] = lambda _: None,
) -> Seal:
    """Compute spans in this process, by default all that are missing; seal a complete cache.

    Spans that another process is working on are left to it, and waited for when nothing else is
    left: several such processes share the work. A span that cannot be computed is quarantined, and
    left out until a run retries those: it takes them out of quarantine first. progress is called
    after each block with the number of images done, begun before each span, as soon
    as this process works on it, committed after it.

    Raises:
        DataError, UsageError: spans are quarantined; the others are committed.
    """
    folder = job.cache.folder
    device, span_views = str(job.teacher.device), job.cache.grid.span_views
    todo = job.cache.missing() if spans is None else spans
    if retry_quarantined:
        release_all(job.cache, todo)
    with Heartbeat(folder, device=device, span_views=span_views) as heartbeat:
        heartbeat.expect(len(todo))
        with Locks(job.cache.path) as locks:
            run = _Claims(
                job, (locks, heartbeat), progress=progress, begun=begun, committed=committed
            )
            run.compute(todo, wait=False)
            # Those of others, one at a time, lest two processes wait for each other.
            for span in sorted(set(todo) - spans_committed(folder)):
                over = folder.exists(span.commit_name) or is_quarantined(folder, span)
                if not over and span not in run.errors:
                    run.compute([span], wait=True)
        left = _left_in_quarantine(job.cache)
        if run.errors or left:
            raise _joined(run.errors, left)
        # Whoever finishes the last of several slices seals the cache.
        return job.cache.totals() if spans is not None and job.cache.missing() else seal(job.cache)


def release_all(cache: Cache, spans: Iterable[Span]) -> None:
    """Take spans out of quarantine, so that they are tried again.

    Raises:
        UsageError: the folder is read-only.
    """
    try:
        for span in quarantined(cache.folder).keys() & set(spans):
            release(cache.folder, span)
    except OSError as error:
        raise cache.cannot_write("what is to be tried again", error) from error


def conclude(cache: Cache, spans: Sequence[Span], errors: Sequence[KdcacheError]) -> Seal:
    """Seal a cache that several processes have worked on, or say why it is not complete.

    Raises:
        KdcacheError: spans are quarantined, or a process failed and some were not computed.
    """
    if left := _left_in_quarantine(cache):
        raise _joined({}, left)
    missing = set(cache.missing())
    if missing.intersection(spans) and errors:
        raise errors[0]
    return cache.totals() if missing else seal(cache)


def _left_in_quarantine(cache: Cache) -> dict[Span, KdcacheError]:
    found = quarantined(cache.folder)
    return {s: e for s, e in found.items() if not cache.folder.exists(s.commit_name)}


def _joined(errors: dict[Span, KdcacheError], left: dict[Span, KdcacheError]) -> KdcacheError:
    """Return the error of spans that failed now, or are left in quarantine."""
    span = next(iter(errors or left))
    error = errors.get(span) or left[span]
    advice = "once the cause is mended, run kdcache precompute again"
    if left:
        advice = f"{len(left)} are quarantined, see kdcache inspect; {advice} with "
        advice += "--retry-quarantined"
    return type(error)(
        f"{error}; span {span} and {len(errors.keys() | left.keys()) - 1} others are not computed, "
        f"all others are stored; {advice}"
    )


class _Claims:
    """Computes spans under their locks. errors: why spans could not be computed."""

    def __init__(
        self,
        job: Job,
        held: tuple[Locks, Heartbeat],
        *,
        progress: Report,
        begun: Begun,
        committed: Callable[[Commit], None],
    ) -> None:
        self.errors: dict[Span, KdcacheError] = {}
        self._job, (self._locks, self._heartbeat) = job, held
        self._progress, self._begun, self._report = progress, begun, committed
        self._any_committed = False

    def compute(self, spans: Iterable[Span], *, wait: bool) -> None:
        """Compute those of the spans that nobody else holds or has committed.

        Raises:
            UsageError: the teacher failed before any span was committed.
        """
        run_spans(
            self._job,
            self._claim(spans, wait=wait),
            progress=self._advance,
            begun=self._begun,
            committed=self._done,
            failed=self._failed,
        )

    def _claim(self, spans: Iterable[Span], *, wait: bool) -> Iterator[Span]:
        folder, listed_at = self._job.cache.folder, -LISTING_S
        done: set[Span] = set()
        for span in spans:
            if span in done or not self._locks.take(span.lock, wait=wait):
                continue
            if not (folder.exists(span.commit_name) or is_quarantined(folder, span)):
                self._heartbeat.begin(span)
                if not self._job.num_workers:  # it is rendered at once, and here
                    self._begun(span)
                yield span
                continue
            self._locks.free(span.lock)
            # Where others have been, one listing spares a lock and a look at each of the next.
            if time.monotonic() - listed_at > LISTING_S:
                done, listed_at = spans_committed(folder), time.monotonic()

    def _advance(self, images: int) -> None:
        self._heartbeat.advance(images)
        self._progress(images)

    def _done(self, commit: Commit) -> None:
        span = Span(commit.tar, commit.run)
        self._any_committed = True
        with self._keeping(f"that span {span} is computed"):
            release(self._job.cache.folder, span)
        self._locks.free(span.lock)
        self._heartbeat.end(span, commit)
        self._report(commit)

    def _failed(self, span: Span, error: KdcacheError, poisoned: bool) -> None:
        if not isinstance(error, DataError) and not self._any_committed:
            raise error  # it would fail everywhere
        if poisoned:
            with self._keeping(f"why span {span} is not computed ({error})"):
                quarantine(self._job.cache.folder, span, error)
        self._locks.free(span.lock)
        self._heartbeat.end(span)
        self.errors[span] = error

    @contextmanager
    def _keeping(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._job.cache.cannot_write(what, error) from error
