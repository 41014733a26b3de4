"""Claims about `kdcache compare`: a row a run, the best marked, what differs named."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.cli.making import check_refusal
from tests.report.making import SETTINGS, metrics, write_run
from tests.tiny import files_of

OTHER_ID = "c2" * 32


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A run, a better one of other settings, and one that is neither finished nor validated."""
    recipe = {"size": 32, "crop": {"scale": [0.5, 1.0]}, "mix": {"alpha": 0.2}}
    return [
        write_run(tmp_path / "usual", metrics(4)),
        write_run(tmp_path / "better", metrics(4, better=2), recipe=recipe, cache=OTHER_ID),
        write_run(tmp_path / "short", metrics(2, validated=False), ema=0.999),
    ]


def rows(stdout: str, *names: str) -> dict[str, list[str]]:
    """Return the cells of the first line of each run."""
    cells = {line.split()[0]: line.split()[1:] for line in stdout.splitlines()[1:7]}
    return {name: cells[name] for name in names}


@pytest.mark.usefixtures("plain")
def test_each_run_has_a_row_in_the_order_given(kdcache: Run, three: list[Path]) -> None:
    outcome = kdcache("compare", *three[::-1])
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[0].split() == [
        "run", "student", "learn", "epochs", "loss", "images/s", "wait", "top-1", "KL", "agree",
        "calib",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:7]] == [
        "short", "unfinished", "better", "last", "usual", "last"
    ]  # fmt: skip
    found = rows(outcome.stdout, "short", "usual")
    assert found["short"] == ["resnet18", "cache", "2/4", "0.606", "800", "2.0%", *"––––"]
    assert found["usual"][:7] == ["resnet18", "cache", "4/4", "0.255", "800", "2.0%", "best"]
    assert "without validation: short" in lines


@pytest.mark.usefixtures("plain")
def test_best_and_last_values_are_those_of_the_metrics(kdcache: Run, tmp_path: Path) -> None:
    lines = metrics(3)
    closing = [line for line in lines if "epoch" in line]
    for line, top1, kl, speed in zip(
        closing, (0.5, 0.75, 0.625), (0.3, 0.1, 0.2), (1, 900, 800), strict=True
    ):
        line |= {"val_top1": top1, "val_kl_nats": kl, "images_per_s": speed}
    outcome = kdcache("compare", write_run(tmp_path / "run", lines))
    first, second = outcome.stdout.splitlines()[1:3]
    assert first.split()[5:10] == ["800", "2.0%", "best", "75.0%", "0.100"]  # 800 is the median
    assert second.split()[:4] == ["unfinished", "last", "62.5%", "0.200"]
    assert "*" not in outcome.stdout


@pytest.mark.usefixtures("plain")
def test_the_best_of_each_column_has_a_star(kdcache: Run, three: list[Path]) -> None:
    found = rows(kdcache("compare", *three[:2]).stdout, "usual", "better")
    assert found["better"][3:7] == ["0.201*", "1,600*", "2.0%", "best"]
    assert all(cell.endswith("*") for cell in found["better"][7:])
    assert not any("*" in cell for cell in found["usual"])


def test_the_best_is_bold_on_a_terminal(
    kdcache: Run, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    outcome = kdcache("compare", *three)
    better = next(line for line in outcome.stdout.splitlines() if "better" in line)
    assert better.count("\x1b[1m") == 6
    assert "*" not in outcome.stdout


@pytest.mark.usefixtures("plain")
def test_runs_of_other_losses_or_validations_have_no_best_there(
    kdcache: Run, tmp_path: Path
) -> None:
    usual = write_run(tmp_path / "usual", metrics(4))
    labels = write_run(tmp_path / "labels", metrics(4, better=2), learn="labels", cache=None)
    outcome = kdcache("compare", usual, labels)
    assert "loss: no best is marked, since runs differ in learn\n" in outcome.stdout
    found = rows(outcome.stdout, "labels")["labels"]
    assert found[3:7] == ["0.201", "1,600*", "2.0%", "best"]
    assert all(cell.endswith("*") for cell in found[7:])
    other = write_run(tmp_path / "other", metrics(4, better=2), val_cache=OTHER_ID)
    outcome = kdcache("compare", usual, other)
    why = "top-1, KL, agree, calib: no best is marked, since runs differ in val_cache"
    assert why in outcome.stdout
    assert [cell for cell in rows(outcome.stdout, "other")["other"] if "*" in cell] == [
        "0.201*", "1,600*"
    ]  # fmt: skip
    blind = write_run(tmp_path / "blind", metrics(4, validated=False), val_cache=None)
    outcome = kdcache("compare", usual, blind, write_run(tmp_path / "c", metrics(4, better=3)))
    assert "no best" not in outcome.stdout


def test_only_settings_that_differ_are_listed(kdcache: Run, three: list[Path]) -> None:
    text = kdcache("compare", *three).stdout.partition("differing settings\n")[2]
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()} == {
        "cache": f"{SETTINGS['cache'][:12]}: usual, short; {OTHER_ID[:12]}: better",
        "ema": "none: usual, better; 0.999: short",
        "recipe.crop.scale": "[0.2, 1.0]: usual, short; [0.5, 1.0]: better",
    }


def test_whether_labels_are_learned_is_said_in_words(kdcache: Run, tmp_path: Path) -> None:
    usual = write_run(tmp_path / "usual", metrics(4))
    other = write_run(tmp_path / "other", metrics(4), labels=1261159828513293762)
    found = kdcache("compare", usual, other).stdout
    assert "labels  not learned: usual; learned, of digest 11808a2e9f8705c2: other" in found


@pytest.mark.usefixtures("plain")
def test_the_teachers_own_accuracy_stands_beside(kdcache: Run, tmp_path: Path) -> None:
    lines = metrics(4)
    for line in lines:
        line |= {"val_teacher_top1": 0.66} if "val_top1" in line else {}
    taught, plain = (
        write_run(tmp_path / name, found, learn=learn)
        for name, found, learn in (("b", lines, "function-matching"), ("a", metrics(4), "cache"))
    )
    outcome = kdcache("compare", plain, taught)
    shown = outcome.stdout.splitlines()[:5]
    assert shown[0].endswith(" teacher")
    assert [line.split()[-1] for line in shown[1:4:2]] == ["–", "66.0%"]
    assert max(map(len, shown)) <= 100
    value = kdcache("compare", plain, taught, "--json").value
    assert [run["val_teacher_top1"] for run in value["runs"]] == [None, {"last": 0.66}]


def test_equal_runs_differ_in_nothing(kdcache: Run, tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, metrics(4)) for name in "ab"]
    outcome = kdcache("compare", *folders)
    assert outcome.stdout.endswith("no setting differs\n")
    assert "*" not in outcome.stdout


@pytest.mark.usefixtures("plain")
def test_the_table_fits_a_hundred_columns(
    kdcache: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # which is a guess where there is no terminal
    runs = [
        write_run(
            tmp_path / f"resnet18-s{seed}", metrics(4 - seed, better=30), seed=seed, learn="fixed"
        )
        for seed in range(2)
    ]
    lines = kdcache("compare", *runs).stdout.splitlines()[:5]
    assert max(map(len, lines)) <= 100
    assert {"resnet18-s0", "resnet18-s1"} <= {line.split()[0] for line in lines}
    assert not any("…" in line for line in lines)


def test_names_may_be_markup_and_are_made_unique(kdcache: Run, tmp_path: Path) -> None:
    names = ["[red]x", ":smile:/run", "other/run"]
    stdout = kdcache("compare", *(write_run(tmp_path / n, metrics(1)) for n in names)).stdout
    assert [stdout.count(name) for name in names] == [1, 1, 1]


def test_nothing_of_a_run_moves_the_cursor(kdcache: Run, tmp_path: Path) -> None:
    odd = {"student": "a:b\x1b[2J", "learn": "l\x1b[31m", "note": "n\x9b"}
    runs = [
        write_run(tmp_path / "x\x1b]0;t", metrics(1), **odd),
        write_run(tmp_path / "y", metrics(1)),
    ]
    outcome = kdcache("compare", *runs)
    assert outcome.code == 0
    assert all(text in outcome.stdout for text in ("b\\x1b[2J", "l\\x1b[31m", "x\\x1b]0;t"))
    assert not any(letter in outcome.stdout for letter in "\x1b\x9b")


def test_json_holds_what_is_compared(kdcache: Run, three: list[Path], tmp_path: Path) -> None:
    outcome = kdcache("compare", *three, "--json", "--out", tmp_path / "a.png")
    assert (outcome.code, outcome.stderr) == (0, "")
    usual, _, short = outcome.value["runs"]
    last = metrics(4)[-1]
    assert usual["val_top1"] == {"best": last["val_top1"], "last": last["val_top1"]}
    assert usual["images_per_s"] == {"median": 800}
    assert short["val_top1"] is None
    assert (short["epochs_done"], short["epochs"], short["path"]) == (2, 4, str(three[2]))
    differing: dict[str, Any] = outcome.value["differing"]
    assert differing.keys() == {"cache", "ema", "recipe.crop.scale"}
    assert differing["cache"]["better"] == OTHER_ID


def test_json_has_no_numbers_that_are_not_finite(kdcache: Run, tmp_path: Path) -> None:
    lines = [metrics(1)[-1] | {"loss": float("nan"), "val_kl_nats": float("inf")}]
    (run,) = kdcache("compare", write_run(tmp_path / "run", lines), "--json").value["runs"]
    assert run["loss"] is run["val_kl_nats"] is None


def test_a_picture_is_drawn_and_runs_are_left_as_they_are(
    kdcache: Run, three: list[Path], tmp_path: Path
) -> None:
    before = files_of(tmp_path)
    assert kdcache("compare", *three, "--out", tmp_path / "curves.png").code == 0
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
    assert files_of(tmp_path).keys() - before.keys() == {"curves.png"}
    assert {name: files_of(tmp_path)[name] for name in before} == before


def test_a_run_that_is_being_written_is_compared(kdcache: Run, three: list[Path]) -> None:
    whole = kdcache("compare", *three).stdout
    with (three[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    assert kdcache("compare", *three).stdout == whole


def test_what_does_not_serve_is_refused(kdcache: Run, three: list[Path], tmp_path: Path) -> None:
    check_refusal(kdcache("compare", three[0], tmp_path), 2, f"{tmp_path}: no run here")
    check_refusal(kdcache("compare", tmp_path / "none"), 2, "none: no run here; kdcache train")
    begun = write_run(tmp_path / "begun", metrics(1)[:-1])
    check_refusal(kdcache("compare", three[0], begun), 2, f"{begun}: no epoch is done yet")
    check_refusal(kdcache("compare", *three, f"{three[0]}/"), 2, "given twice")
    for out in ("a.jpg", "/no/folder/a.png"):
        check_refusal(kdcache("compare", *three, "--out", out), 2, "ends in .png")
    (three[1] / "metrics.jsonl").write_text("damaged\n")
    check_refusal(kdcache("compare", *three), 5, "better/metrics.jsonl: line 1 is damaged")
