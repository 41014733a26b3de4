"""Make's jobs are the commands that people type."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kdcache.cli.app import app
from kdcache.recipe.schema import load_recipe

ROOT = Path(__file__).parents[2]
JOBS = {
    "pack": {"DATA": "my photos", "OUT": "out"},
    "precompute": {"DATA": "d", "TEACHER": "t:n", "RECIPE": "r", "VIEWS": "16", "CACHE": "c"},
    "train": {"DATA": "d", "CACHE": "c", "STUDENT": "s:n", "EPOCHS": "7", "RUN": "r"},
    "inspect": {"CACHE": "c"},
    "verify": {"CACHE": "c"},
}


def _make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )


def _command(program: str, *words: str) -> list[str]:
    """Return the words of the command that make would run, as the shell makes them."""
    done = _make("-n", *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    (line,) = (line for line in lines if line.startswith(program))
    return shell_words(line, words)


def shell_words(line: str, given: Sequence[str]) -> list[str]:
    """Return the words that the shell makes of a line, with variables given as NAME=VALUE."""
    values = dict(word.split("=", 1) for word in given if "=" in word)
    script = f"set -- {line}\nprintf '%s\\0' \"$@\""
    said = subprocess.run(["sh", "-c", script], env=values, capture_output=True, check=True)
    return said.stdout.decode().split("\0")[:-1]


def _parsed(words: list[str]) -> dict[str, Any]:
    """Return the parameters that `kdcache` takes from the words; it refuses what it does not know.

    The command itself is not run.
    """
    assert words[0] == ".venv/bin/kdcache"
    command: Any = typer.main.get_command(app)
    sub = command.commands[words[1]]
    found: dict[str, Any] = sub.make_context(words[1], words[2:]).params
    return found


def test_precompute_is_the_same_job() -> None:
    words = ["precompute", *(f"{k}={v}" for k, v in JOBS["precompute"].items())]
    assert _command(".venv/bin/kdcache", *words) == [
        *(".venv/bin/kdcache", "precompute", "--data", "d", "--teacher", "t:n"),
        *("--recipe", "r", "--views", "16", "--cache", "c"),
    ]
    found = _parsed(_command(".venv/bin/kdcache", *words, "WEIGHTS=w", "ARGS=--skip-bad --json"))
    assert (found["weights"], found["skip_bad"], found["as_json"]) == (Path("w"), True, True)
    assert (found["data"], found["views"], found["cache"]) == ("d", 16, Path("c"))


def test_train_is_the_same_job() -> None:
    words = ["train", *(f"{k}={v}" for k, v in JOBS["train"].items()), "ARGS=--resume"]
    found = _parsed(_command(".venv/bin/kdcache", *words))
    assert (found["data"], found["cache"], found["out"]) == ("d", ["c"], Path("r"))
    assert (found["student"], found["epochs"], found["resume"]) == ("s:n", 7, True)


def test_pack_verify_and_inspect_are_the_same_jobs() -> None:
    words = ["pack", *(f"{k}={v}" for k, v in JOBS["pack"].items()), "ARGS=--shuffle-seed 3"]
    found = _parsed(_command(".venv/bin/kdcache", *words))
    assert (found["source"], found["out"], found["shuffle_seed"]) == ("my photos", Path("out"), 3)
    found = _parsed(_command(".venv/bin/kdcache", "verify", "CACHE=c", "DATA=d", "ARGS=--replay 1"))
    assert (found["cache"], found["data"], found["replay"]) == ("c", "d", 1)
    assert _parsed(_command(".venv/bin/kdcache", "verify", "CACHE=c"))["data"] is None
    assert _parsed(_command(".venv/bin/kdcache", "inspect", "CACHE=c"))["cache"] == "c"


@pytest.mark.parametrize(
    "name", ["a $(touch x)", "`touch x`", "cost$5", 'a "quoted" one', "it's", "two\nlines", "#no"]
)
def test_a_name_reaches_its_job_letter_by_letter(name: str, tmp_path: Path) -> None:
    (tmp_path / "kdcache").write_text('#!/bin/sh\nprintf \'%s\' "$3" > "$0.said"\n')
    (tmp_path / "kdcache").chmod(0o755)
    place = f"BIN={os.path.relpath(tmp_path, ROOT)}"
    done = _make("-o", "setup", "pack", "DATA=d", f"OUT={name}", place)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kdcache.said").read_text() == name
    assert not (ROOT / "x").exists()


def test_the_demo_takes_a_seed() -> None:
    words = [".venv/bin/python", "-m", "pipelines.demo", "--seed"]
    assert _command(".venv/bin/python", "demo") == [*words, "0"]
    assert _command(".venv/bin/python", "demo", "SEED=3") == [*words, "3"]
    assert _command(".venv/bin/python", "demo", "ARGS=--epochs 300") == [
        *(*words, "0", "--epochs", "300")
    ]


MISSING = [(job, name) for job, variables in JOBS.items() for name in variables]


@pytest.mark.parametrize(("job", "name"), MISSING)
def test_a_missing_variable_is_named_and_nothing_is_run(job: str, name: str) -> None:
    """The example that is shown is a command that can be run."""
    given = {k: v for k, v in JOBS[job].items() if k != name}
    done = _make(job, *(f"{k}={v}" for k, v in given.items()))
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    start, _, example = line.partition("; for example: ")
    assert start == f"{name} is missing"
    words = shlex.split(example)
    assert words[:2] == ["make", job]
    _parsed(_command(".venv/bin/kdcache", *words[1:]))
    for recipe in re.findall(r"RECIPE=(\S+)", example):
        load_recipe(recipe)


def test_make_alone_lists_the_jobs() -> None:
    done = _make()
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {*JOBS, "setup", "check", "format", "test", "demo", "demo-table"} <= set(listed)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines/recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_ready_recipe_is_one(path: Path) -> None:
    assert load_recipe(path).size in (12, 128)
