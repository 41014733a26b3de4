"""Claims about the wheel: it works from anywhere, holds all that it needs and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kdcache import __version__
from kdcache.doctor import replay
from kdcache.recipe.schema import preset_text

ROOT = Path(__file__).parents[1]
SOURCES = ("kdcache", "pipelines", "tests", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
PAGE = """
from kdcache.report.page import Section, render_page
print(render_page("a title", [Section("a part", paragraphs=["some text"])]))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built as pip builds one without isolation: by the backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "node_modules", "results")
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "source")
    subprocess.run(
        [sys.executable, "-c", BUILD, folder / "dist"],
        cwd=folder / "source",
        check=True,
        capture_output=True,
    )
    (found,) = (folder / "dist").glob("*.whl")
    return found


Python = Callable[..., str]


@pytest.fixture
def python(wheel: Path, tmp_path: Path) -> Python:
    """A function that runs Python in another folder, with the wheel's files alone for kdcache."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "elsewhere").mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path / "elsewhere",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "USER": "someone"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_holds_all_data_of_the_package_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"kdcache-{__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"kdcache-{__version__}.dist-info/entry_points.txt").decode()
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kdcache").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == here
    assert {"kdcache/py.typed", "kdcache/doctor/golden/witnesses.json"} <= here
    assert f"\nVersion: {__version__}\n" in metadata
    assert "kdcache = kdcache.cli.app:main" in scripts


@pytest.mark.slow
def test_commands_run_from_a_wheel_alone(python: Python, tmp_path: Path) -> None:
    where = python("-c", "import kdcache; print(kdcache.__file__)")
    assert where.strip() == str(tmp_path / "installed/kdcache/__init__.py")
    assert python("-m", "kdcache", "--version") == f"kdcache {__version__}\n"
    assert python("-m", "kdcache", "recipe", "show", "funmatch") == preset_text("funmatch")
    found = json.loads(python("-m", "kdcache", "doctor", "--json"))
    assert found["verdict"] == replay.HOLDS
    assert found["sections"]["system"]["kdcache"] == __version__


@pytest.mark.slow
def test_pages_and_cards_are_written_from_a_wheel_alone(python: Python, tmp_path: Path) -> None:
    assert "<title>a title" in python("-c", PAGE)
    shutil.copytree(ROOT / "tests/golden/caches/v1-topk", tmp_path / "cache")
    python("-m", "kdcache", "publish", str(tmp_path / "cache"), "catalogue", "--licence-unknown")
    (card,) = (tmp_path / "elsewhere/catalogue").rglob("README.md")
    assert "kdcache" in card.read_text()


def test_hooks_before_a_commit_are_those_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [source["repo"] for source in hooks] == ["local"]
    found = [hook["entry"] for hook in hooks[0]["hooks"]]
    (rule,) = re.findall(r"^check: setup.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert found == [line.strip().replace("$(BIN)", ".venv/bin") for line in rule.splitlines()]


def test_reports_of_bugs_and_mismatches_ask_for_the_doctor() -> None:
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yml")}
    del forms["config"]
    assert set(forms) == {"bug", "mismatch", "feature"}
    for name, form in forms.items():
        assert {"name", "description", "body"} <= set(form)
        labels = [part["attributes"].get("label", "") for part in form["body"]]
        assert any("kdcache doctor --json" in label for label in labels) == (name != "feature")
