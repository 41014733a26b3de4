"""Claims of docs/how-to/share-a-cache.md: its commands run as they stand, on the demo's cache."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from pipelines import demo
from tests.cli.conftest import Run
from tests.cli.making import ROOT

PAGE = (ROOT / "docs/how-to/share-a-cache.md").read_text().replace("~/.config/", "config/")


def commands() -> list[list[str]]:
    text = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a clone is after the demo, of fewer epochs; no keys are trusted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    shutil.copytree(ROOT / "pipelines/recipes", tmp_path / "pipelines/recipes")
    demo.main(seed=0, out=Path("build/demo"), epochs=1, teacher_epochs=2, views=256, num_workers=0)
    return tmp_path


def test_its_commands_run_one_after_the_other(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, said = [], {}
    for words in commands():
        while "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        assert words[0] == "kdcache"
        outcome = kdcache(*words[1:])
        assert outcome.code == 0, (words, outcome.stderr)
        seen.append(words[1])
        said[words[1]] = outcome.stdout + outcome.stderr
    assert seen == [
        *("keys", "publish", "find", "show", "keys", "train", "fetch", "verify"),
        *("precompute", "sign", "ref", "rebuild", "gc"),
    ]
    assert "digits" in said["find"]
    assert "views 0..255 of 272 are there" in said["precompute"]
    assert open_cache(Path("build/robotics/part")).grid.num_views == 16
    assert not open_cache(Path("build/robotics/more")).missing()
    shown = kdcache("show", "build/catalogue", "digits").stdout
    for words in ("272 in spans of 8, complete", "by Vision team", "by Robotics team"):
        assert words in shown, words
