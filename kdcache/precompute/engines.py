"""Engines: who runs which span when. All run the same `run_span`; the store is the only state."""

from collections.abc import Callable

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, Seal
from kdcache.precompute.span import Job, Report, run_span


def run_inline(
    job: Job,
    *,
    progress: Report = lambda _: None,
    committed: Callable[[Commit], None] = lambda _: None,
) -> Seal:
    """Compute all missing spans in this process, then seal the cache.

    Spans that another process is working on are left to it, and waited for when nothing else is
    left: several such processes share the work. progress is called after each block with the number
    of images done, committed after each span.
    """
    for wait in (False, True):
        for span in job.cache.missing():
            commit = _run_alone(job, span, wait=wait, progress=progress)
            if commit is not None:
                committed(commit)
    return job.cache.seal()


def _run_alone(job: Job, span: Span, *, wait: bool, progress: Report) -> Commit | None:
    """Run a span under its lock; None if another process holds it or has committed it."""
    number = span.tar * (job.cache.grid.num_views // job.cache.grid.span_views) + span.run
    with job.cache.folder.lock(number, wait=wait) as held:
        if not held or job.cache.folder.exists(span.commit_name):
            return None
        return run_span(job, span, progress=progress)
