"""The command line, run in this process: torch takes seconds to import in a new one."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from kdcache.cli import output
from kdcache.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def value(self) -> Any:
        """Return the JSON that stdout carries; NaN is not JSON."""

        def refuse(name: str) -> None:
            raise AssertionError(name)

        return json.loads(self.stdout, parse_constant=refuse)


Run = Callable[..., Outcome]


@pytest.fixture
def kdcache(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `kdcache ARGUMENTS…` as the installed command does."""
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["kdcache", *map(str, arguments)])
        capsys.readouterr()
        stdout = sys.stdout
        torch.set_num_threads(1)
        code: object = "no exit"
        try:
            main()
        except SystemExit as stop:  # pytest.raises would keep its frames, and so their workers
            code = stop.code or 0
        finally:
            torch.set_num_threads(threads)
            sys.stdout, output.results = stdout, None  # --json turns them
        out = capsys.readouterr()
        assert isinstance(code, int)
        return Outcome(code, out.out, out.err)

    return run
