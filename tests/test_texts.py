"""Claims about texts of strangers: a terminal prints them, and does nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.cli import output
from kdcache.errors import UsageError
from kdcache.recipe.schema import load_recipe
from kdcache.targets.labels import load_labels
from kdcache.texts import printable
from tests.cli.conftest import Run, kdcache

__all__ = ["kdcache"]  # the fixture


@given(st.text())
def test_a_text_is_printable_and_stays_as_it_is_from_then_on(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert (shown == text) == text.isprintable()


def test_numbers_without_end_are_told_of_without_python_s_advice(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("size = " + "9" * 5000)
    for load in (load_recipe, load_labels):
        with pytest.raises(UsageError, match=r"5000 digits") as refused:
            load(tmp_path / "a.toml")
        assert "sys." not in str(refused.value)


def test_what_moves_a_cursor_is_written_as_its_escape() -> None:
    assert printable("\x1b[2J é\u202e\ud800\n") == "\\x1b[2J é\\u202e\\ud800\\n"
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


def test_errors_and_lines_move_no_cursor(
    kdcache: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = kdcache("inspect", tmp_path / "\x1b[2J")
    assert (outcome.code, "\x1b" in outcome.stderr) == (2, False)
    assert "\\x1b[2J: no cache here" in outcome.stderr
    output.say("one\x1b[2J\ntwo", as_json=False)
    assert capsys.readouterr().out == "one\\x1b[2J\ntwo\n"
