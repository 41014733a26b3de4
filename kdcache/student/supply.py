"""Views that are not stored yet: the teacher makes them before the student needs them.

Whole spans are computed and committed, as precompute does, so that what is stored does not depend
on who asked for it; several processes share them by the cache's locks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdcache.precompute.engines import own_first, run_inline
from kdcache.precompute.span import Job
from kdcache.processes import StopRequest
from kdcache.student.world import World


@dataclass(frozen=True, eq=False)
class Supplier:
    """Computes missing views.

    stop: asked between blocks. tell: given a line for people. complete: runs of views that are.
    """

    job: Job
    world: World
    stop: StopRequest
    tell: Callable[[str], None]
    complete: set[int] = field(default_factory=set)

    def __call__(self, views: Sequence[int]) -> None:
        """Return when these views are stored for all tars.

        Raises:
            Stopped: this process, which is alone, was asked to stop.
            KdcacheError: as run_inline.
        """
        grid = self.job.cache.grid
        runs = {view // grid.span_views for view in views} - self.complete
        if not runs:
            return
        absent = [span for span in self.job.cache.missing() if span.run in runs]
        if absent:
            self.tell(
                f"{self.job.cache.path}: the teacher makes {len(absent)} spans that views "
                f"{min(views)} to {max(views)} lack"
            )
            spans = own_first(absent, self.world.rank, self.world.size)
            run_inline(self.job, spans, progress=self._look)
        self.complete.update(runs)

    def _look(self, _: int) -> None:
        if self.world.size == 1:  # several would wait for each other
            self.stop.check()
