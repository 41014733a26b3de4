"""docs/reference/json.md states the keys that every command with --json prints."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kdcache.cli.app import app
from tests.cli.conftest import Run
from tests.cli.making import TEACHER
from tests.docs.blocks import ROOT
from tests.servers.hub import TOKEN, reach, serve_hub

pytestmark = pytest.mark.slow

GIVEN = ["--teacher", TEACHER, "--weights", "teacher.safetensors"]
STUDENT = ["--student", "tests.student.nets:small"]
LICENCES = [f"--licence-{part}=MIT" for part in ("data", "weights", "output")]
MADE = ["--recipe", "funmatch", "--views", 8, "--cache", "build/cache"]
TRAINED = [*STUDENT, "--epochs", 1, "--batch-size", 8, "--workers", 0, "--out", "build/run"]
# In this order, since one makes what another reads.
COMMANDS: dict[str, list[Any]] = {
    "init": ["mine"],
    "pack": ["photos/val", "build/other"],
    "index": ["build/tars"],
    "doctor": [],
    "recipe check": [],
    "teacher check": [TEACHER, "--weights", "teacher.safetensors", "--data", "build/train"],
    "plan": ["--data", "build/train", *GIVEN, *MADE[:4], "--probe-s", 0],
    "fidelity": ["--data", "build/train", *GIVEN, *MADE[:2]],
    "precompute": ["--data", "build/train", *GIVEN, *MADE],
    "inspect": ["build/cache"],
    "status": ["build/cache"],
    "show": ["build/cache"],
    "verify": ["build/cache", "--data", "build/train"],
    "train": ["--data", "build/train", "--cache", "build/cache", *TRAINED],
    "eval": ["build/run", "--data", "build/train", "--cache", "build/cache", *STUDENT],
    "compare": ["build/run"],
    "export": ["build/run", "student.pt2", *STUDENT],
    "keys make": ["our.pem", "--name", "us"],
    "keys trust": ["our.pem.pub"],
    "keys list": [],
    "publish": ["build/cache", "catalogue", "--ref", "best", "--sign", "our.pem", *LICENCES],
    "sign": ["catalogue", "best", "--key", "our.pem"],
    "find": ["catalogue"],
    "ref": ["catalogue", "best"],
    "fetch": ["catalogue", "best", "build/fetched"],
    "rebuild": ["catalogue"],
    "gc": ["catalogue"],
    "hub push": ["catalogue/refs/best", "team/targets"],
    "hub pull": ["team/targets", "build/pulled"],
    "keys distrust": ["us"],
    "extend": ["build/cache", "--views", 16],
    "slice": ["build/cache", "build/small", "--views", 8],
    "merge": ["build/small", "build/fetched"],
    "repair": ["build/small"],
}


def _with_json(group: Any, path: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _with_json(command, f"{path}{name} ")
        elif any("--json" in parameter.opts for parameter in command.params):
            yield path + name


def _stated() -> dict[str, set[str]]:
    """Return the keys of each command that the page names; those of values stand in brackets."""
    page = (ROOT / "docs/reference/json.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \| (.*) \|$", page, re.MULTILINE)
    return {
        name: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys)))
        for names, keys in rows
        for name in re.findall(r"`([\w ]+)`", names)
    }


def test_the_keys_of_json_are_those_that_commands_print(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = {}
    with serve_hub() as hub:
        reach(monkeypatch, hub.address)
        for name, arguments in COMMANDS.items():
            outcome = kdcache(*name.split(), *arguments, "--json")
            assert outcome.code == 0, (name, outcome.stderr)
            found[name] = set(outcome.value)
    assert COMMANDS.keys() == set(_with_json(typer.main.get_command(app)))
    validated = {key for key in _stated()["train"] if key.startswith("val_")}
    assert found == {**_stated(), "train": _stated()["train"] - validated}
