import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kdcache import __version__
from kdcache.cli.app import app
from kdcache.cli.shell import SETTINGS
from kdcache.cli.teachers import torchvision_names
from tests.cli.conftest import Run
from tests.cli.making import check_refusal

COMMANDS = ["doctor", "init", "pack", "index", "plan", "fidelity", "precompute"]
COMMANDS += ["status", "inspect", "show", "verify", "extend", "merge", "slice", "repair"]
COMMANDS += ["train", "eval", "compare", "export"]
COMMANDS += ["publish", "find", "fetch", "sign", "ref", "rebuild", "gc"]
GROUPS = ["recipe", "teacher", "keys", "hub"]
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
    assert [group.name for group in app.registered_groups] == GROUPS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_answers_help_with_an_example(kdcache: Run, command: str) -> None:
    outcome = kdcache(command, "--help")
    assert outcome.code == 0
    assert outcome.stderr == ""
    assert re.search(rf"Examples?:\s+kdcache {command} ", outcome.stdout)
    assert "--json" in outcome.stdout
    assert kdcache(command, "-h").stdout == outcome.stdout


def _leaves(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, below groups too, with the words that name it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, each in command.commands.items():
        yield from _leaves(each, *path, name)


LEAVES = dict(_leaves(typer.main.get_command(app)))


def test_every_command_and_subcommand_has_an_example_and_options_with_help() -> None:
    assert len(LEAVES) > len(COMMANDS) + len(GROUPS)
    for path, command in LEAVES.items():
        assert re.search(rf"\n *Examples?:\s+kdcache {' '.join(path)}( |$)", command.help, re.M), (
            path
        )
        assert all(p.help for p in command.params if p.param_type_name == "option"), path


def test_help_names_every_command_on_one_screen_and_so_does_no_argument(kdcache: Run) -> None:
    outcome = kdcache("--help")
    assert outcome.code == 0
    for command in COMMANDS + GROUPS:
        assert re.search(rf"^[A-Z]?[a-z]* +{command} +\w", outcome.stdout, re.MULTILINE)
    lines = outcome.stdout.splitlines()
    assert 24 <= len(lines) <= 40
    assert max(map(len, lines)) <= 80
    shown = kdcache()
    assert COMMANDS[0] in shown.stdout + shown.stderr


def test_a_setting_of_the_environment_stands_for_the_option_of_every_command() -> None:
    found = {
        (path, option): param.envvar
        for path, command in LEAVES.items()
        for param in command.params
        for option in param.opts
        if option in SETTINGS
    }
    assert set(SETTINGS) == {option for _, option in found}
    optional = {("doctor",), ("fidelity",), ("repair",), ("show",), ("verify",)}
    for (path, option), variable in found.items():
        expected = None if option == "--data" and path in optional else SETTINGS[option]
        assert variable == expected, (path, option)
    last = {
        path[0]
        for path, command in LEAVES.items()
        for param in command.params
        if param.envvar and param.param_type_name == "argument"
    }
    assert last == {"find", "publish", "rebuild", "gc"}


@pytest.mark.parametrize("given", [True, False])
def test_what_is_given_goes_before_the_environment(
    kdcache: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: bool
) -> None:
    monkeypatch.setenv("KDCACHE_CATALOGUE", str(tmp_path / "of the team"))
    outcome = kdcache("find", *([tmp_path / "another"] if given else []))
    assert outcome.code == 2
    assert ("another" if given else "of the team") in outcome.stderr
    monkeypatch.setenv("KDCACHE_DATA", str(tmp_path / "data"))
    options = ["--out", tmp_path / "a.png"]
    outcome = kdcache("recipe", "preview", "mild", *options)
    assert str(tmp_path / "data") in outcome.stderr
    assert "KDCACHE_DATA" in kdcache("recipe", "preview", "--help").stdout


def _completed(words: str, folder: Path) -> list[str]:
    """Return what a shell offers for the last of the words."""
    count = str(len(words.split(" ")) - 1)
    done = subprocess.run(
        [Path(sys.executable).with_name("kdcache")],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "_KDCACHE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": count,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_recipes(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    assert _completed("kdcache pre", tmp_path) == ["precompute"]
    assert _completed("kdcache recipe show rand", tmp_path) == ["randaugment"]
    assert _completed("kdcache precompute --recipe mi", tmp_path) == ["mild", "mine.toml"]
    assert "--workers" in _completed("kdcache train --wor", tmp_path)
    teacher = "kdcache precompute --teacher torchvision:resnet10"
    assert _completed(teacher, tmp_path) == ["torchvision:resnet101"]


def test_networks_of_torchvision_are_completed_without_importing_it() -> None:
    from torchvision import models

    names = [f"torchvision:{name}" for name in models.list_models(module=models)]
    assert torchvision_names("") == torchvision_names("torchvision:") == names
    assert torchvision_names("torchvision:resnet1") == [
        f"torchvision:resnet{depth}" for depth in (101, 152, 18)
    ]
    assert torchvision_names("timm:") == []


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


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"doctor", "init"}))
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
        (["show", "c", "--port", "80000"], "--port"),
        (["keys", "trust", "--ol\x1b[31m\nx"], "No such option"),
    ],
)
def test_wrong_options_are_named(kdcache: Run, arguments: list[str], words: str) -> None:
    outcome = kdcache(*arguments)
    assert outcome.stdout == ""
    group = arguments[:2] if arguments[0] == "keys" else arguments[:1]
    command = " ".join(["kdcache", *group] if arguments != ["distil"] else ["kdcache"])
    check_refusal(outcome, 2, words, f"; see {command} --help\n")
    assert "\x1b" not in outcome.stderr


def test_a_wrong_setting_of_the_environment_is_named_in_a_line(
    kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_WORKERS", "abc")
    words = ("--data", "d", "--teacher", "t", "--recipe", "mild", "--views", "1", "--cache", "c")
    check_refusal(kdcache("precompute", *words), 2, "KDCACHE_WORKERS", "see kdcache precompute")


@pytest.mark.parametrize("group", [[], ["keys"]])
def test_a_group_without_a_command_answers_with_its_help_alone(
    kdcache: Run, group: list[str]
) -> None:
    outcome = kdcache(*group)
    assert (outcome.code, outcome.stderr) == (2, "")
    assert "Usage: kdcache" in outcome.stdout
