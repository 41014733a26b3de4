"""Commands of pages, run as they stand; what a machine of tests lacks is exchanged, no more."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, Run
from tests.cli.making import TEACHER
from tests.docs.blocks import ROOT, words_of
from tests.worlds import ISOLATED

EMPTY: Mapping[str, Sequence[str]] = {}


def exchanged(lines: Sequence[str], exchange: Mapping[str, str]) -> list[str]:
    """Return lines with parts exchanged, each of which must be there."""
    text = "\n".join(lines)
    for part, other in exchange.items():
        assert part in text, part
        text = text.replace(part, other)
    changed = text.splitlines()
    assert "…" not in [word for line in changed for word in words_of(line)]
    return changed


def precompute(run: Run, cache: str, *, views: int = 16) -> None:
    teacher = ["--teacher", TEACHER, "--weights", "teacher.safetensors"]
    recipe = ["--recipe", "funmatch", "--views", views]
    outcome = run("precompute", "--data", "build/train", *teacher, *recipe, "--cache", cache)
    assert outcome.code == 0, outcome.stderr


def run_here(
    run: Run,
    lines: Sequence[str],
    *,
    monkeypatch: pytest.MonkeyPatch,
    more: Mapping[str, Sequence[str]] = EMPTY,
) -> list[tuple[str, Outcome]]:
    """Run kdcache's commands in this process; return each one's name and outcome.

    more: options that are added to a command of a name.
    """
    found = []
    for line in lines:
        words, out = words_of(line), ""
        if ">" in words:
            words, out = words[: words.index(">")], words[-1]
        with monkeypatch.context() as changed:
            while "=" in words[0]:
                changed.setenv(*words.pop(0).split("=", 1))
            assert words[0] == "kdcache", line
            outcome = run(*words[1:], *more.get(words[1], []))
        assert outcome.code == 0, (line, outcome.stderr)
        if out:
            Path(out).write_text(outcome.stdout)
        found.append((words[1], outcome))
    return found


def run_script(lines: Sequence[str], *, folder: Path) -> str:
    """Run lines as one script of a shell, in a network of its own; return what they wrote."""
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*ISOLATED, "bash", "-ec", "\n".join(lines)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
