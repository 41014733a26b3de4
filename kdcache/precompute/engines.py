"""Engines: who runs which span when. All run the same spans; the store is the only state."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, Seal
from kdcache.cache.objects import Locks
from kdcache.cache.quarantine import quarantine, quarantined, release
from kdcache.cache.writers import Heartbeat
from kdcache.errors import DataError, KdcacheError
from kdcache.precompute.span import Job, Report, run_spans


def slice_of(spans: Sequence[Span], part: int, parts: int) -> list[Span]:
    """Return every parts-th span, from number `part` on, whatever is computed meanwhile."""
    return [span for span in spans if (span.tar + span.run) % parts == part]


def run_inline(
    job: Job,
    spans: Sequence[Span] | None = None,
    *,
    retry_quarantined: bool = False,
    progress: Report = lambda _: None,
    committed: Callable[[Commit], None] = lambda _: None,
) -> Seal:
    """Compute spans in this process, by default all that are missing; seal a complete cache.

    Spans that another process is working on are left to it, and waited for when nothing else is
    left: several such processes share the work. A span that cannot be computed is quarantined, and
    left out until a run retries those. progress is called after each block with the number of
    images done, committed after each span.

    Raises:
        DataError, UsageError: spans are quarantined; the others are committed.
    """
    folder = job.cache.folder
    device, span_views = str(job.teacher.device), job.cache.grid.span_views
    with Heartbeat(folder, device=device, span_views=span_views) as heartbeat:
        with Locks(job.cache.path) as locks:
            run = _Claims(job, (locks, heartbeat), progress=progress, committed=committed)
            # What skips bad images tries again where one was the cause.
            retry = retry_quarantined or job.skip_bad
            aside = set() if retry else set(quarantined(folder))
            wanted = job.cache.missing() if spans is None else spans
            todo = [span for span in wanted if span not in aside]
            heartbeat.expect(len(todo))
            run.compute(todo, wait=False)
            # Those of others, one at a time, lest two processes wait for each other.
            for span in todo:
                if span not in run.errors and not folder.exists(span.commit_name):
                    run.compute([span], wait=True)
        left = {s: e for s, e in quarantined(folder).items() if not folder.exists(s.commit_name)}
        if run.errors or left:
            raise _joined(run.errors, left)
        # Whoever finishes the last of several slices seals the cache.
        return job.cache.totals() if spans is not None and job.cache.missing() else job.cache.seal()


def _joined(errors: dict[Span, KdcacheError], left: dict[Span, KdcacheError]) -> KdcacheError:
    """Return the error of spans that failed now, or are left in quarantine."""
    span = next(iter(errors or left))
    error = errors.get(span) or left[span]
    advice = "once the cause is mended, run the same command again"
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
        committed: Callable[[Commit], None],
    ) -> None:
        self.errors: dict[Span, KdcacheError] = {}
        self._job, (self._locks, self._heartbeat) = job, held
        self._progress, self._report = progress, committed
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
            committed=self._done,
            failed=self._failed,
        )

    def _claim(self, spans: Iterable[Span], *, wait: bool) -> Iterator[Span]:
        for span in spans:
            if self._locks.take(span.lock, wait=wait):
                if self._job.cache.folder.exists(span.commit_name):
                    self._locks.free(span.lock)
                else:
                    self._heartbeat.begin(span)
                    yield span

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
