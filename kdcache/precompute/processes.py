"""Local processes, each a job of its own over one cache: one a GPU, or several on a CPU.

They share the work by the store's locks alone, so that any of them, or this process, may die: what
it held is computed by the others, and it is started again. This process only watches the store.
"""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, Seal, committed
from kdcache.cache.quarantine import quarantine, quarantined
from kdcache.cache.store import Cache, open_cache
from kdcache.data.workers import WorkerDiedError
from kdcache.errors import KdcacheError, UsageError
from kdcache.precompute.engines import conclude, own_first, run_inline
from kdcache.precompute.jobs import JobSpec
from kdcache.precompute.span import Report
from kdcache.processes import end_with, terminable

LOOK_S = 1.0
STOP_S = 10.0
ON_CPU = 2
STRIKES = 2  # deaths over one span that set it aside
DEATHS = 5  # in a row, with nothing committed in between, that end the job


def devices_for(device: str, num_processes: int | None) -> list[str]:
    """Return the device of each process: GPUs in turn, or the device named.

    num_processes: by default one a GPU, or two on a CPU.

    Raises:
        UsageError: more processes than GPUs are asked for.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    number = num_processes or gpus or ON_CPU
    if gpus and number > gpus:
        raise UsageError(
            f"--processes {number}: this machine has {gpus} GPUs; ask for as many at most"
        )
    other = "cpu" if device == "auto" else device
    return [f"cuda:{n}" if gpus else other for n in range(number)]


@dataclass(eq=False)
class _Worker:
    """A process, the span that it began last, and why it ended, None if it did all it could."""

    number: int
    process: SpawnProcess
    news: Connection
    span: Span | None = None
    error: KdcacheError | None = None
    has_said: bool = False

    def listen(self) -> None:
        """Take in what the process has sent."""
        with suppress(EOFError):  # all of it
            while self.news.poll():
                news: Span | KdcacheError | None = self.news.recv()
                if isinstance(news, Span):
                    self.span = news
                else:
                    self.error, self.has_said = news, True

    @property
    def outcome(self) -> KdcacheError | None:
        """Return why the process, which has ended, failed."""
        if self.has_said:
            return self.error
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return WorkerDiedError(
            f"a process that computes spans died ({how}), perhaps for lack of memory; use fewer "
            "--processes or --workers, or a smaller --batch-size"
        )


def run_processes(
    spec: JobSpec,
    devices: Sequence[str],
    *,
    spans: Sequence[Span],
    progress: Report = lambda _: None,
    committed: Callable[[Commit], None] = lambda _: None,
    own_groups: bool = False,
) -> Seal:
    """Compute spans in one process a device; seal a complete cache.

    A process that dies is started again, and turns to the span that it died at when all others are
    done: if that one kills it once more, it is quarantined. If a process died because one that
    renders for it did, it renders for itself from then on, so that the span is known the next time.
    progress and committed are told of each span that anybody commits meanwhile. own_groups: what
    kills the group of this process lets them end in order.

    Raises:
        DataError, UsageError: spans are quarantined or processes keep dying; the others are
            committed.
    """

    def report(commit: Commit) -> None:
        progress(commit.rows)
        committed(commit)

    if not spans:
        return conclude(open_cache(spec.cache), spans, [])
    watch = Watch(open_cache(spec.cache), spans, report, processes=len(devices))
    errors: list[KdcacheError] = []

    def start(number: int, *, num_workers: int = spec.num_workers) -> _Worker:
        context = multiprocessing.get_context("spawn")
        news, given = context.Pipe(duplex=False)
        order = watch.suspects_last(own_first(spans, number, len(devices)))
        own = replace(spec, num_workers=num_workers)
        arguments = (own, devices[number], len(devices), tuple(order), given, own_groups)
        process = context.Process(target=_work, args=arguments, name=f"kdcache {number}")
        process.start()
        given.close()
        return _Worker(number, process, news)

    workers: list[_Worker] = []
    with _ended(workers):
        workers.extend(start(number) for number in range(len(devices)))
        while workers:
            ended = wait([worker.process.sentinel for worker in workers], timeout=LOOK_S)
            for worker in list(workers):
                worker.listen()
                if worker.process.sentinel not in ended:
                    continue
                workers.remove(worker)
                worker.process.join()
                watch.look()
                if isinstance(outcome := worker.outcome, WorkerDiedError):
                    renderer = worker.has_said
                    watch.died(None if renderer else worker.span, outcome)
                    workers.append(
                        start(worker.number, num_workers=0) if renderer else start(worker.number)
                    )
                elif outcome is not None:
                    errors.append(outcome)
            watch.look()
    watch.look()
    return conclude(watch.cache, spans, errors)


class Watch:
    """What the store says of a job, and the deaths of its processes."""

    def __init__(
        self,
        cache: Cache,
        spans: Sequence[Span],
        report: Callable[[Commit], None],
        *,
        processes: int = 1,
    ) -> None:
        self.cache = cache
        self._limit = max(DEATHS, 2 * processes)  # all of them may die of one cause
        self._left, self._report = set(spans), report
        self._strikes: Counter[Span] = Counter()
        self._deaths = 0

    def is_over(self) -> bool:
        """Return whether all spans are committed or set aside."""
        self.look()
        return not self._left.difference(quarantined(self.cache.folder))

    def look(self) -> None:
        """Report the spans that were committed since the last look."""
        for span in sorted(self._left & committed(self.cache.folder)):
            self._left.remove(span)
            self._report(self.cache.commit(span))
            self._deaths = 0

    def died(self, span: Span | None, error: WorkerDiedError) -> None:
        """Note the death of a process, and quarantine the span that it was at if many died there.

        Raises:
            UsageError: processes only die.
        """
        self._deaths += 1
        if span is not None and span in self._left:
            self._strikes[span] += 1
            if self._strikes[span] == STRIKES:
                quarantine(self.cache.folder, span, error)
                self._deaths = 0
        if self._deaths == self._limit:
            raise UsageError(
                f"{self.cache.path}: {self._limit} processes in a row died and committed nothing, "
                f"the last: {error}"
            )

    def suspects_last(self, spans: Sequence[Span]) -> list[Span]:
        """Return the spans, those that a process died at behind all others."""
        return sorted(spans, key=lambda span: span in self._strikes)  # sorting keeps the order


@contextmanager
def _ended(workers: list[_Worker]) -> Iterator[None]:
    """End the processes that are left, kindly at first."""
    try:
        yield
    finally:
        for worker in workers:
            worker.process.terminate()
        until = time.monotonic() + STOP_S
        for worker in workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.process.kill()


def _work(
    spec: JobSpec,
    device: str,
    count: int,
    spans: tuple[Span, ...],
    news: Connection,
    own_group: bool,
) -> None:
    """Compute spans in a process of its own, in order.

    Sends each span that it begins, and in the end why it failed, or None.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    if own_group:
        os.setpgid(0, 0)
    end_with(os.getppid(), patience_s=STOP_S)
    os.dup2(2, 1)  # what models print is no result

    def tell(what: Span | KdcacheError | None) -> None:
        with suppress(OSError):  # the parent has gone, and this process follows
            news.send(what)

    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        with terminable():
            run_inline(spec.open(device), spans, begun=tell)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None
    except KdcacheError as error:
        tell(error)
    else:
        tell(None)
