"""Claims of docs/tour.md and docs/how-to/share-a-cache.md: all runs as it stands there, on the
cache of the demo.
"""

import re
import shlex
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from pipelines import demo
from tests.cli.conftest import Run
from tests.cli.making import ROOT

PAGE = (ROOT / "docs/how-to/share-a-cache.md").read_text().replace("~/.config/", "config/")
TOUR = (ROOT / "docs/tour.md").read_text()


def commands(page: str) -> list[list[str]]:
    text = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after the demo, of fewer epochs."""
    folder = tmp_path_factory.mktemp("made")
    out = Path("build/demo")
    with chdir(folder):
        demo.main(seed=0, out=out, epochs=1, teacher_epochs=2, views=256, num_workers=0)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a clone is after the demo; no keys are trusted."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "build", tmp_path / "build")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    shutil.copytree(ROOT / "pipelines/recipes", tmp_path / "pipelines/recipes")
    return tmp_path


def test_the_tour_runs_after_the_demo(
    place: Path, kdcache: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = commands(TOUR.replace("--epochs 64", "--epochs 2"))
    assert first == ["make", "demo"]
    said = {}
    for words in others:
        outcome = kdcache(*words[1:])
        assert outcome.code == 0, (words, outcome.stderr)
        said[words[1]] = outcome.stdout
    assert list(said) == ["inspect", "recipe", "verify", "train", "compare"]
    shown = re.findall(r"```text\n(.*?)```", TOUR, re.DOTALL)
    for text, command in zip(shown, ("inspect", "verify"), strict=True):
        names = [line.split("  ")[0] for line in text.splitlines()]
        assert set(names) <= {line.split("  ")[0] for line in said[command].splitlines()}
    assert Path("build/demo/views.png").is_file()
    code = re.search(r"```python\n(.*?)```", TOUR, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "tour.md", "exec"), {})
    printed = re.findall(r"# (torch.Size.*)", code[1])
    assert printed[0] in capsys.readouterr().out


def test_the_commands_of_sharing_run_one_after_the_other(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, said = [], {}
    for words in commands(PAGE):
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
