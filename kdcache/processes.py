"""Processes that end as they should: with their parent, and by SIGTERM without loss."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
