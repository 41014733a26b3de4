"""A proxy that delays every request, in a process of its own: it shares no interpreter with a test.

`python -m tests.servers.delays UPSTREAM SECONDS` prints where it answers.
"""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import faults


@contextmanager
def delaying(upstream: str, seconds: float) -> Iterator[str]:
    """Yield where a server answers with a delay of every request."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.delays", upstream, str(seconds)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main(upstream: str, seconds: float) -> None:
    """Delay requests until a signal comes, or the process that started this one ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with faults.running(upstream) as proxy:
        proxy.delay_s = seconds
        print(proxy.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
