"""Claims about what commands print while they work."""

import os
import pty
import re

import pytest

from kdcache.cli import output
from kdcache.cli.output import human_time, progress_bar


def test_a_log_has_a_line_every_30_seconds_at_most_each_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    with progress_bar(
        "work", 1000, rates=lambda n, s: f"{'images, ' * 12}{n / s:.1f}/s"
    ) as advance:
        for _ in range(100):
            now += 1
            advance(10)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 3
    assert lines[0].startswith("work 310/1000 images")
    assert all(re.search(r" 10\.0/s, \S+ (s|min) left$", line) for line in lines)


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_terminal_has_a_bar_unless_it_cannot_draw_one(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TERM", kind)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        with progress_bar("work", 10, rates=lambda n, _: f"{n} images") as advance:
            advance(10)
        terminal.flush()
        os.write(writer, b"END")
        drawn = b""
        while not drawn.endswith(b"END"):
            drawn += os.read(reader, 4096)
    os.close(reader)
    text = drawn.decode()
    assert ("━" in text and "10/10" in text) == (kind == "xterm")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (90, "1.5 min"),
        (7200, "2.0 h"),
        (129600, "36.0 h"),
        (864000, "10.0 days"),
    ],
)
def test_a_duration_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
