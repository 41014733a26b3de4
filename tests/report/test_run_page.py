import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from kdcache.report.page import Section, render_page
from kdcache.report.run_page import compared_sections, curves, run_sections, run_title, wilson
from kdcache.report.runs import read_run
from tests.report.making import metrics, write_run
from tests.report.test_page import EVIL, Page


def _sections(folder: Path) -> dict[str, Section]:
    return {section.title: section for section in run_sections(read_run(folder))}


@given(st.integers(1, 100_000), st.floats(0, 1))
def test_an_interval_is_wilson_s(count: int, part: float) -> None:
    hits = round(part * count)
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(hits / count, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_run_s_page_tells_best_and_last_with_intervals(tmp_path: Path) -> None:
    lines = metrics(4)
    closing = [line for line in lines if "epoch" in line]
    closing[1]["val_kl_nats"] = 0.001
    sections = _sections(write_run(tmp_path / "run", lines))
    heads, *rows = sections["What it reached"].table
    assert heads == ["measure", "best: epoch 2", "last: epoch 4"]
    found = {row[0]: row[1:] for row in rows}
    low, high = wilson(closing[3]["val_top1"], 100)
    assert found["top-1"][1] == f"{closing[3]['val_top1']:.2%} ({low:.2%} to {high:.2%})"
    assert found["KL to the teacher, nats"][0] == "0.001"
    assert [p.name for p in sections["Curves"].figures] == [
        *("loss", "val_kl_nats", "val_top1", "val_agreement", "val_calibration_error"),
        "learning_rate",
    ]


def test_shares_are_percentages_and_small_values_are_of_the_unit_of_their_axis(
    tmp_path: Path,
) -> None:
    lines = metrics(4)
    lines[-1] |= {"val_top1": 0.3243, "learning_rate": 9.29e-8}
    for line in lines[:-1]:
        line["learning_rate"] = 2e-5
    pictures = {p.name: p for p in curves([read_run(write_run(tmp_path / "run", lines))], [""])}
    assert ">32.4%<" in pictures["val_top1"].svg
    assert pictures["val_top1"].words == "validation top-1, in % by epoch, at the end: 32.4%"
    assert pictures["learning_rate"].words == (
        "learning rate, in 1e-06 by epoch, at the end: 0.0929"
    )


def test_a_title_names_a_run_once(tmp_path: Path) -> None:
    for name, title in (("run", "Run: "), ("run-2", "Run run-2: ")):
        assert run_title(read_run(write_run(tmp_path / name, []))).startswith(title)


def test_a_run_of_labels_is_best_by_top_1(tmp_path: Path) -> None:
    lines = metrics(4)
    next(line for line in lines if line.get("epoch") == 3)["val_top1"] = 0.99
    sections = _sections(write_run(tmp_path / "run", lines, learn="labels"))
    assert sections["What it reached"].table[0][1] == "best: epoch 3"


def test_a_run_measured_by_labels_alone_is_best_by_top_1_and_a_teacher_is_told_of(
    tmp_path: Path,
) -> None:
    lines = metrics(4)
    for line in lines:
        line.pop("val_kl_nats", None)
    next(line for line in lines if line.get("epoch") == 3)["val_top1"] = 0.99
    section = _sections(write_run(tmp_path / "run", lines))["What it reached"]
    assert section.table[0][1] == "best: epoch 3"
    assert "teacher's own" not in str(section.paragraphs)
    lines[-1]["val_teacher_top1"] = 0.66
    section = _sections(write_run(tmp_path / "taught", lines))["What it reached"]
    assert "The teacher's own top-1 on the same images: 66.0%." in section.paragraphs


def test_a_run_that_has_measured_nothing_has_a_page(tmp_path: Path) -> None:
    sections = _sections(write_run(tmp_path / "run", []))
    assert sections["What it reached"].paragraphs[0].startswith("0 of 4 epochs")
    assert "Curves" not in sections
    assert len(sections["Settings"].table) > 10


def test_sessions_tell_how_often_views_are_used_and_where_a_run_went_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(2))
    starts = [{"step": 0, "views": 8}, {"step": 13, "views": 8, "device": EVIL, "versions": 5}]
    text = "\n".join([*map(json.dumps, starts), "{broken", "[]", '{"step": 99']) + "…"
    (run / "sessions.jsonl").write_text(text)
    sections = _sections(run)
    words = sections["What it reached"].paragraphs
    assert "8 stored views, each used 0.5 times in all epochs." in words
    assert "Started 2 times; it went on from step 13." in words
    assert len(sections["How it was started"].table) == 3
    assert sections["How it was started"].paragraphs == [
        "2 lines of sessions.jsonl cannot be read."
    ]


def test_checkpoints_weights_and_classes_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(2))
    (run / "checkpoints").mkdir()
    (run / "checkpoints/step-000000020.pt").write_bytes(b"x" * 2000)
    (run / ".lock").touch()
    rows = "".join(f'{n},"name {n}, <b>",5,0.35,\n' for n in range(1200))
    (run / "classes.csv").write_text("class,name,samples,top1,agreement\n" + rows)
    sections = _sections(run)
    files = [row[0] for row in sections["Files"].table]
    assert files[1:] == [
        "checkpoints/step-000000020.pt",
        "classes.csv",
        "config.json",
        "metrics.jsonl",
    ]
    assert sections["Files"].table[1][1] == "2.0 kB"
    assert len(sections["Classes"].table) == 1001
    assert sections["Classes"].table[3] == ["2", "name 2, <b>", "5", "35%", ""]


def test_long_runs_are_thinned_to_their_end(tmp_path: Path) -> None:
    lines = [{"step": n, "epoch": n, "loss": 1 + 1 / n} for n in range(1, 2001)]
    log = read_run(write_run(tmp_path / "run", lines, epochs=2000))
    (picture,) = curves([log], [""])
    assert len(picture.svg) < 30_000
    assert "1" in picture.words


def test_a_page_of_several_runs_names_them_and_their_differing_settings(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, metrics(4), seed=n) for n, name in enumerate("ab")]
    sections = compared_sections([read_run(run) for run in runs], ["a", "b"], table=[["run"]])
    assert [section.title for section in sections] == [
        *("What they reached", "Curves", "Settings that differ"),
    ]
    assert sections[2].table == [["setting", "a", "b"], ["seed", "0", "1"]]
    assert "a 0.2" in sections[1].figures[0].words


@pytest.mark.parametrize(
    "values", [(1e308,), (-1e308, 1e308), (5e-324,), (-1e60, 1e60), (-0.5, -0.25), (1e-60, 1e60)]
)
def test_odd_numbers_have_pictures_or_none(tmp_path: Path, values: tuple[float, ...]) -> None:
    names = ("loss", "val_kl_nats", "val_top1", "val_samples")
    steps = zip((1, 2**53), values, strict=False)
    lines = [{"step": n, "epoch": n} | dict.fromkeys(names, value) for n, value in steps]
    sections = _sections(write_run(tmp_path / "run", lines))
    figures = [f.name for f in sections["Curves"].figures] if "Curves" in sections else []
    assert figures == ([] if max(map(abs, values)) > 1e60 else list(names[:3]))


def test_odd_files_of_a_run_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(4), learn="\x1b[31m\u202e", epochs=10**12)
    views = ("3", "-3", "true", "1" + "0" * 400, "9" * 5000)
    starts = [f'{{"views": {text}, "step": "\\ud800\\n"}}' for text in views]
    (run / "sessions.jsonl").write_text("\n".join([*starts, ""]))
    (run / "classes.csv").write_text('class,name\n0,"' + "x" * 140_000)
    sections = _sections(run)
    words = "".join(sections["What it reached"].paragraphs)
    assert "learns from \\x1b[31m\\u202e." in words
    assert "3 stored views, each used 3.33e+11 times" in words
    assert "went on from step \\ud800\\n, " in words
    (note,) = sections["Classes"].paragraphs
    assert note.startswith("classes.csv cannot be read beyond line 1: field larger than")


def test_hostile_settings_are_shown_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics(4), student=EVIL, note="\u202e\x00")
    page = Page(render_page("t", run_sections(read_run(run))))
    assert EVIL in page.text["td"]
    assert "\\u202e\\x00" in page.text["td"]
    assert "script" not in {tag for tag, _ in page.elements}
