"""Claims of docs/tour.md and docs/how-to/share-a-cache.md: all runs as it stands there, on the
cache of the demo.
"""

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from pipelines import demo
from tests.cli.conftest import Run
from tests.cli.making import ROOT
from tests.docs.blocks import find_blocks, lines_of
from tests.docs.running import exchanged, run_here

PAGE = "docs/how-to/share-a-cache.md"
TOUR = "docs/tour.md"


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
    place: Path,
    kdcache: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = exchanged(lines_of(TOUR), {"--epochs 64": "--epochs 2"})
    done = run_here(kdcache, lines, monkeypatch=monkeypatch)
    said = {name: outcome.stdout for name, outcome in done}
    assert list(said) == ["inspect", "recipe", "verify", "train", "compare"]
    for block, command in zip(find_blocks(TOUR, "text"), ("inspect", "verify"), strict=True):
        names = [line.split("  ")[0] for line in block.text.splitlines()]
        assert set(names) <= {line.split("  ")[0] for line in said[command].splitlines()}
    assert Path("build/demo/views.png").is_file()
    [code] = find_blocks(TOUR, "python")
    exec(compile(code.text, code.page, "exec"), {})
    printed = re.findall(r"# (torch.Size.*)", code.text)
    assert printed[0] in capsys.readouterr().out


def test_the_commands_of_sharing_run_one_after_the_other(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = exchanged(lines_of(PAGE), {"~/.config/": "config/"})
    done = run_here(kdcache, lines, monkeypatch=monkeypatch)
    said = {name: outcome.stdout + outcome.stderr for name, outcome in done}
    assert [name for name, _ in done] == [
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
