"""Ray: an actor a GPU, on as many machines as the cluster has while the job runs.

Each actor is a job of its own over the one cache, and the store says what is left: an actor or a
machine may go at any time, and new ones join. The cache and the images must stand at the same paths
everywhere, on a file system with locks that all machines see. This process only watches the store.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, Seal
from kdcache.cache.store import open_cache
from kdcache.data.workers import WorkerDiedError
from kdcache.errors import KdcacheError, UsageError
from kdcache.precompute.engines import conclude, own_first
from kdcache.precompute.jobs import JobSpec
from kdcache.precompute.processes import LOOK_S, STOP_S, Watch, devices_for, run_processes
from kdcache.precompute.span import Report
from kdcache.processes import terminable

ANSWER_S = 10.0


@dataclass(frozen=True)
class RayOptions:
    """address: of the cluster, "auto" for the one of this machine; None starts one here.

    most: actors at most; None for as many as the cluster holds.
    """

    address: str | None = None
    most: int | None = None


def run_ray(
    spec: JobSpec,
    options: RayOptions,
    *,
    spans: Sequence[Span],
    progress: Report = lambda _: None,
    committed: Callable[[Commit], None] = lambda _: None,
) -> Seal:
    """Compute spans in the actors of a Ray cluster; seal a complete cache.

    An actor that dies is started again by Ray; a span over which its process dies twice is
    quarantined. progress and committed are told of each span that anybody commits meanwhile.

    Raises:
        DataError, UsageError: spans are quarantined, actors keep dying, or there is no such
            cluster, or none with room for an actor; what is committed stays.
    """

    def report(commit: Commit) -> None:
        progress(commit.rows)
        committed(commit)

    if not spans:
        return conclude(open_cache(spec.cache), spans, [])
    watch = Watch(open_cache(spec.cache), spans, report)
    errors: list[KdcacheError] = []

    def listen(crew: _Crew) -> None:
        for outcome in crew.wait(LOOK_S):
            watch.look()
            if isinstance(outcome, WorkerDiedError):
                watch.died(None, outcome)
            elif outcome is not None:
                errors.append(outcome)
        watch.look()

    with _cluster(options.address) as ray, terminable():  # Ray has a way of its own
        crew = _Crew(ray, spec, tuple(spans), options.most)
        while not watch.is_over() and (crew.grow() or not crew.is_idle):
            listen(crew)
        until = time.monotonic() + STOP_S  # they end in order, each for itself
        while crew.works and time.monotonic() < until:
            listen(crew)
    return conclude(watch.cache, spans, errors)


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Yield ray, connected to a cluster.

    Raises:
        UsageError: ray is not installed, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # An actor's process ends by itself, and in order, when the actor does.
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--engine ray: Ray is not installed; make ray, or pip install ray"
        ) from error
    if address is not None and ":" in address:
        _check_answers(address)
    here: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address="local" if address is None else address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **(here if address is None else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UsageError(
            f"--address {address or 'local'}: no Ray cluster: {str(error).splitlines()[0]}; start "
            "one with ray start --head, or leave --address out"
        ) from error
    except SystemExit as end:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt(signal.SIGTERM) from end
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Check that something listens at HOST:PORT; Ray itself asks for minutes.

    Raises:
        UsageError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster: {error}; start one with ray start --head, or "
            "leave --address out"
        ) from error


@dataclass(eq=False)
class _Actor:
    """An actor as it is known here."""

    handle: Any
    number: int


class _Crew:
    """The actors of a job, as many as the cluster has room for.

    An actor is asked whether it is there, then to compute what is left. pings, works: what was
    asked, by the reference of its answer.
    """

    def __init__(self, ray: Any, spec: JobSpec, spans: tuple[Span, ...], most: int | None) -> None:
        self._ray, self._spec, self._spans, self._most = ray, spec, ray.put(spans), most
        self._cpus = 1 + spec.num_workers
        self._count = 0
        self.pings: dict[Any, _Actor] = {}
        self.works: dict[Any, _Actor] = {}

    @property
    def is_idle(self) -> bool:
        """Return whether no actor is at work or about to be."""
        return not (self.pings or self.works)

    def grow(self) -> bool:
        """Start actors where there is room for more; return whether any was started.

        Raises:
            UsageError: there is no room for the first.
        """
        total = self._ray.cluster_resources()
        gpus = int(total.get("GPU", 0))
        room = int(total.get("CPU", 0)) // self._cpus
        room = min(room, gpus) if gpus else room
        room = room if self._most is None else min(room, self._most)
        if not room and not self._count:
            raise UsageError(
                f"the Ray cluster has {total.get('CPU', 0):g} CPUs and {gpus} GPUs, and an actor "
                f"needs {self._cpus} CPUs; use fewer --workers, or a larger cluster"
            )
        remote = self._ray.remote(
            num_cpus=self._cpus, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=0
        )(_Work)
        grown = range(self._count, room)
        for number in grown:
            self._ping(_Actor(remote.remote(self._spec, str(Path.cwd())), number))
        self._count = max(self._count, room)
        return bool(grown)

    def _ping(self, actor: _Actor) -> None:
        self.pings[actor.handle.ping.remote()] = actor

    def wait(self, timeout_s: float) -> Iterator[KdcacheError | None]:
        """Yield why actors have ended, None if they did all they could; let new ones compute."""
        dead = self._ray.exceptions.RayActorError
        ready, _ = self._ray.wait([*self.pings, *self.works], timeout=timeout_s)
        for answer in ready:
            if answer in self.works:
                actor = self.works.pop(answer)
                try:
                    yield self._ray.get(answer)
                except dead as error:
                    self._ping(actor)
                    yield WorkerDiedError(f"an actor died: {str(error).splitlines()[0]}")
                continue
            actor = self.pings.pop(answer)
            try:
                self._ray.get(answer)
            except dead:  # it is being started again
                time.sleep(LOOK_S)
                self._ping(actor)
            else:
                parts = max(self._count, 1)
                work = actor.handle.compute.remote(self._spans, actor.number, parts)
                self.works[work] = actor


class _Work:
    """What an actor is: it has a process compute on the GPU that Ray gave it, or on the CPU.

    So what kills that process is known here, and the actor lives on.
    """

    def __init__(self, spec: JobSpec, folder: str) -> None:
        self._spec = spec
        with suppress(OSError):  # where the user's own modules are found
            os.chdir(folder)

    def ping(self) -> None:
        """Answer."""

    def compute(self, spans: Sequence[Span], part: int, parts: int) -> KdcacheError | None:
        """Compute what is left of the spans, one part first; return why some are not computed."""
        own = own_first(spans, part, parts)
        try:  # Ray kills the group of an actor that has ended
            run_processes(self._spec, devices_for("auto", 1), spans=own, own_groups=True)
        except KdcacheError as error:
            return type(error)(f"{socket.gethostname()}: {error}")
        return None
