"""Processes that end as they should: with their parent, and by SIGTERM without loss."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PARENT_CHECK_S = 1.0


def end_with(parent: int, *, patience_s: float = 0.0) -> None:
    """End this process soon after its parent, however the parent ended.

    patience_s: how long it may take to end in order, after a SIGTERM.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        if patience_s:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(patience_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM, as sent before pre-emption, an interrupt: KeyboardInterrupt(15), once."""

    terminated = False

    def interrupt(number: int, _: object) -> None:
        nonlocal terminated
        terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as end:
        if terminated and not end.args:  # it came through code that raised it anew
            raise KeyboardInterrupt(signal.SIGTERM) from end
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def peer_died(error: BaseException) -> bool:
    """Return whether torch.distributed raised this because another process of the run ended."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


class Stopped(KeyboardInterrupt):
    """An interrupt at a moment that the program chose. args: 15 after SIGTERM, else nothing."""

    @classmethod
    def by(cls, number: int) -> "Stopped":
        """Return the interrupt for a signal."""
        return cls(*([number] if number == signal.SIGTERM else []))


@dataclass(eq=False)
class StopRequest:
    """Whether this process was asked to stop: the number of the signal, 0 if it was not."""

    number: int = 0

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.number:
            raise Stopped.by(self.number)


@contextmanager
def noting_stops(request: StopRequest) -> Iterator[None]:
    """Note SIGINT and SIGTERM instead of ending, so that a step can be finished; once each.

    A second Ctrl-C interrupts as ever. Does nothing outside the main thread.
    """

    def note(number: int, _: object) -> None:
        request.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def num_cores() -> int:
    """Return how many CPU cores this process may use by its affinity."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
