"""A real browser for tests, spoken to over pipes in its DevTools protocol."""

import base64
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

Scheme = Literal["light", "dark"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """Return the path of a browser that is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a running browser. complaints: what its console said."""

    def __init__(self, to: IO[bytes], answers: IO[bytes]) -> None:
        self._to, self._answers, self._count = to, answers, 0
        self._session: dict[str, str] = {}
        self.complaints: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for part in ("Page", "Runtime", "Log"):
            self(f"{part}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to a command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        self._to.write(json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self._count)["result"]  # type: ignore[no-any-return]

    def open(self, page: Path | str, *, width: int, scheme: Scheme) -> None:
        """Show a file or an address in a window of this width, as a phone or a desktop does."""
        self.complaints.clear()
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        preferred = {"name": "prefers-color-scheme", "value": scheme}
        self("Emulation.setEmulatedMedia", features=[preferred])
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self("Page.navigate", url=url)
        self.wait_for_page()

    def wait_for_page(self) -> None:
        """Wait until the next page is loaded."""
        self._until(lambda event: event.get("method") == "Page.loadEventFired")

    def value(self, script: str) -> Any:
        """Return what a script's expression is in the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """Return the whole page as a PNG."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _until(self, wanted: Any) -> dict[str, Any]:
        """Return the first message wanted, and keep what the console says before it."""
        while True:
            text = bytearray()
            while (letter := self._answers.read(1)) != b"\0":
                assert letter, "the browser has gone"
                text += letter
            message: dict[str, Any] = json.loads(text)
            if message.get("method") in (
                "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown",
            ):  # fmt: skip
                self.complaints.append(str(message["params"]))
            assert "error" not in message, message
            if wanted(message):
                return message


@contextmanager
def run_browser(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with a fresh profile, and end it."""
    commands, to = _pipe()
    answers, answer_to = _pipe()
    # The browser reads commands from its file 3 and answers on its file 4.
    files = [
        (os.POSIX_SPAWN_DUP2, commands, 3),
        (os.POSIX_SPAWN_DUP2, answer_to, 4),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    line = [program, *OPTIONS, f"--user-data-dir={profile}"]
    # In a group of its own, which no test that signals its group ends.
    process = os.posix_spawn(program, line, os.environ, file_actions=files, setpgroup=0)
    os.close(commands)
    os.close(answer_to)
    try:
        with os.fdopen(to, "wb", buffering=0) as out, os.fdopen(answers, "rb") as back:
            yield Browser(out, back)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _pipe() -> tuple[int, int]:
    """Return the ends of a pipe, whose numbers are none that a browser expects."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
