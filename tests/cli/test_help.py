import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdcache import __version__
from kdcache.cli.app import app
from tests.cli.conftest import Run

COMMANDS = ["doctor", "pack", "index", "plan", "precompute", "fidelity", "train", "eval", "compare"]
COMMANDS += ["export", "status", "inspect", "verify", "extend", "merge", "slice", "repair"]
COMMANDS += ["publish", "find", "show", "fetch", "sign", "ref", "rebuild", "gc"]
HEAVY = ["torch", "torchvision", "numpy", "zarr", "PIL", "matplotlib", "webdataset"]

START_UP = """
import json, sys
from kdcache.cli.app import main
loaded, heavy = {}, json.loads(sys.argv[2])
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["kdcache", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert stop.code in (0, None), (arguments, stop.code)
    loaded[" ".join(arguments)] = [name for name in heavy if name in sys.modules]
print(json.dumps(loaded), file=sys.stderr)
"""


def test_the_commands_are_those_of_the_readme() -> None:
    assert [command.name for command in app.registered_commands] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_answers_help_with_an_example(kdcache: Run, command: str) -> None:
    outcome = kdcache(command, "--help")
    assert outcome.code == 0
    assert outcome.stderr == ""
    assert re.search(rf"Examples?:\s+kdcache {command} ", outcome.stdout)
    assert "--json" in outcome.stdout
    assert kdcache(command, "-h").stdout == outcome.stdout


def test_help_names_every_command_and_so_does_no_argument(kdcache: Run) -> None:
    outcome = kdcache("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s+\w", outcome.stdout, re.MULTILINE)
    shown = kdcache()
    assert COMMANDS[0] in shown.stdout + shown.stderr


def test_version_is_the_packages(kdcache: Run) -> None:
    assert kdcache("--version").stdout == f"kdcache {__version__}\n"


def test_help_waits_for_no_heavy_import() -> None:
    """A fresh process: nothing that help loads may take long."""
    calls = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", START_UP, json.dumps(calls), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr)
    assert len(loaded) == len(calls)
    assert loaded == {call: [] for call in loaded}


def test_the_installed_command_gives_its_errors_in_one_line(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("kdcache")
    done = subprocess.run(
        [script, "inspect", tmp_path / "none"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"kdcache: {tmp_path / 'none'}: no cache here; make one with kdcache precompute\n"
    )


def test_the_names_of_extras_are_no_markup(kdcache: Run) -> None:
    text = kdcache("train", "--help").stdout
    for extra in ("optim", "tensorboard"):
        assert f"kdcache[{extra}]" in text


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"doctor"}))
def test_a_command_without_its_arguments_names_what_is_missing(kdcache: Run, command: str) -> None:
    outcome = kdcache(command)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert "Missing" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distil"], "No such command 'distil'"),
        (["inspect", "c", "--jsn"], "No such option: --jsn"),
        (["pack", "a", "b", "--format", "gif"], "--format"),
        (["pack", "a", "b", "--rows-per-tar", "x"], "--rows-per-tar"),
        (["train", "--learn", "luck"], "--learn"),
        (["verify", "c", "--replay", "2"], "--replay"),
        (["precompute", "--precision", "int8"], "--precision"),
        (["precompute", "--workers", "-1"], "--workers"),
        (["precompute", "--views", "0"], "--views"),
        (["inspect", "one", "two"], "unexpected extra argument"),
    ],
)
def test_wrong_options_are_named(kdcache: Run, arguments: list[str], words: str) -> None:
    outcome = kdcache(*arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert words in " ".join(re.sub(r"[^\x20-\x7e]", " ", outcome.stderr).split())
