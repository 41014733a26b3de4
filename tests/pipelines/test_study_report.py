"""Claims about the study's report: what it says follows from the numbers, both ways."""

import json
import math
import re
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.report.figures import Picture
from kdcache.report.page import Section
from pipelines.study import figures, sentences, tables, words
from pipelines.study.design import FULL
from pipelines.study.markdown import render_markdown
from pipelines.study.report import json_text, make_sections, write_results
from pipelines.study.results import equivalence, make_tests
from pipelines.study.summary import Estimate, difference, mean_over_seeds, select
from tests.cli.making import ROOT
from tests.pipelines.study_result import ARMS, BUDGETS, make_result

HOLDING, FAILING = make_result(holds=True), make_result(holds=False)


def _rows(*values: float, **keys: Any) -> list[dict[str, Any]]:
    return [{**keys, "seed": seed, "kl": value} for seed, value in enumerate(values)]


# --- summaries -----------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 5), min_size=4, max_size=12))
def test_a_mean_lies_in_the_middle_of_its_interval(values: list[float]) -> None:
    found = mean_over_seeds(_rows(*values))
    assert found.mean == pytest.approx(mean(values))
    assert found.low <= found.mean <= found.high
    assert found.mean - found.low == pytest.approx(found.high - found.mean, abs=1e-9)


def test_an_interval_is_as_wide_as_the_spread_of_means() -> None:
    values = np.random.Generator(np.random.PCG64(1)).normal(size=200)
    found = mean_over_seeds(_rows(*values))
    error = values.std() / math.sqrt(200)
    assert found.high - found.mean == pytest.approx(1.97 * error, rel=0.01)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_few_seeds_have_a_mean_and_prove_nothing(seeds: int) -> None:
    found = mean_over_seeds(_rows(*[0.5] * seeds))
    assert (found.mean, found.sign) == (0.5, 0)
    assert words.with_interval(found) == "0.500"


def test_a_difference_is_taken_seed_by_seed() -> None:
    rows, others = _rows(1.0, 2.0, 3.0, 4.0), list(reversed(_rows(0.9, 1.9, 2.9, 3.9, 50.0)))
    found = difference(rows, others)
    assert found == pytest.approx((0.1, 0.1, 0.1))
    assert difference(rows, []) is None


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(-2.0, -1.0, -1), (-1.0, 1.0, 0), (1.0, 2.0, 1), (0.0, 1.0, 0)]
)
def test_an_interval_has_a_side_where_it_leaves_zero_out(
    low: float, high: float, sign: int
) -> None:
    assert Estimate((low + high) / 2, low, high).sign == sign


# --- words ---------------------------------------------------------------------------------


def test_numbers_have_true_minus_signs_and_no_negative_zero() -> None:
    assert words.signed_nats(-0.1) == "−0.100"
    assert words.signed_nats(-0.0001) == "+0.000"
    assert words.nats(0.08349) == "0.083"
    assert words.points(0.0256) == "+2.6"
    assert [words.p_value(p) for p in (0.0004, 0.0451, None)] == ["<\xa00.001", "0.045", ""]
    assert [words.number(n) for n in (3000, 0.0001, None)] == ["3,000", "0.0001", "–"]


def test_one_is_counted_without_an_s() -> None:
    assert [words.plural(n, "seed") for n in (1, 2, 3000)] == ["1 seed", "2 seeds", "3,000 seeds"]


def test_names_are_listed_and_arms_quoted_unless_they_are_all() -> None:
    assert [words.listed(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert words.arms_named(["a", "b, c"], of=3) == "“a” and “b, c”"
    assert words.arms_named(["a", "b, c"], of=2) == "all 2 arms"


# --- sentences, in both directions ---------------------------------------------------------


def test_the_best_and_the_worst_arm_are_those_of_the_means() -> None:
    runs = [
        row
        for arm, kl in (("x", 0.3), ("y", 0.1), ("z", 0.2))
        for row in _rows(kl, arm=arm, epochs=9)
    ]
    assert sentences.best_and_worst(runs, 9) == (
        "After 9 epochs y has the lowest mean KL to the teacher, 0.100 nats, before z with 0.200; "
        "x has the highest, 0.300."
    )


def test_the_place_of_an_arm_is_told_for_each_budget() -> None:
    said = sentences.places(HOLDING["runs"], "function matching")
    assert said == (
        "By mean KL, function matching is number 7 of 9 after 100 epochs, 1 of 9 after 600 epochs "
        "and 1 of 9 after 3,000 epochs."
    )


def test_patience_pays_costs_or_does_neither_as_the_seeds_have_it() -> None:
    runs = [
        row
        for arm, change in (("a", -0.5), ("b", 0.5), ("c", 0.0))
        for epochs, shift in ((1, 0.0), (2, change))
        for row in _rows(*[1 + shift] * 3, 1.1 + 0.9 * shift, arm=arm, epochs=epochs)
    ]
    assert sentences.patience(runs, short=1, long=2) == (
        "From 1 to 2 epochs the KL falls for “a”; it rises for “b”; it does not separate for “c”."
    )


def test_enough_views_are_told_or_that_there_are_none() -> None:
    base = HOLDING["equivalence"][0]
    (row,) = select(base["rows"], views=32)
    row = {**row, "difference": 0.0104, "ratio": 1.149}
    some = {**base, "epochs": 600, "rows": [row], "smallest_views": 32, "smallest_views_ratio": 128}
    none = {**base, "epochs": 3000, "smallest_views": None, "smallest_views_ratio": None}
    unmixed = {**some, "mixed": False}
    assert sentences.enough_views([some, none, unmixed], mixed=True) == (
        "Mixed views from which on the KL is shown to be within 0.03 nats of a live teacher's: "
        "32 (+0.010 nats, 1.15 times) in 600 epochs; not reached by 64 in 3,000 epochs. Within 10% "
        "of it: 128 in 600 and not reached by 64 in 3,000."
    )
    assert sentences.enough_views([unmixed, none], mixed=False).startswith("Unmixed views")


def test_what_costs_nothing_clear_is_said_to() -> None:
    rows = [
        row
        for k, kl in ((1, 0.3), (3, 0.1), (5, 0.05), (None, 0.1))
        for row in _rows(kl, kl + 0.01, kl + 0.02, kl + 0.03, k=k, stored_temperature=None)
    ]
    assert sentences.encodings_found(rows, 2.0) == (
        "With a loss at T = 2, against keeping all classes, k = 1 costs "
        f"{words.with_interval(Estimate(0.2, 0.2, 0.2))} nats; not separating: k = 3; "
        "better: k = 5."
    )


def test_the_dearest_fault_of_a_replay_comes_first() -> None:
    funmatch = select(HOLDING["wrong_replay"], recipe="funmatch")
    said = sentences.replay_found(funmatch, "funmatch")
    assert said.index("partner swapped") < said.index("seed shifted") < said.index("crop moved")
    free = [row for fault in ("none", "x") for row in _rows(0.1, 0.2, 0.1, 0.2, fault=fault)]
    assert sentences.replay_found(free, "r").endswith("not separating: x.")


def test_the_gain_with_a_small_teacher_stands_beside_the_usual_one() -> None:
    start, said = sentences.small_teacher_found(HOLDING)
    assert start.endswith("names 88.0 (88.0\xa0to\xa088.0) per cent of the test digits.")
    small = _points(said)
    assert len(small) == 2
    assert 0 < small[0] < small[1]
    assert max(map(abs, _points(sentences.small_teacher_found(FAILING)[1]))) < 5


@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.9, "above"), (0.8, "not shown to be above"), (0.7, "below")]
)
def test_function_matching_stands_beside_the_most_accurate_other_arm(
    ours: float, verdict: str
) -> None:
    rows = [
        {"arm": arm, "epochs": 600, "seed": seed, "accuracy": accuracy + 0.01 * seed * sign}
        for arm, accuracy, sign in (
            ("labels", 0.5, 1), ("x", 0.8, -1), ("function matching", ours, 1)
        )
        for seed in (-2, -1, 1, 2)
    ]  # fmt: skip
    *_, said = sentences.small_teacher_found({**HOLDING, "small_teacher": rows})
    assert f"It is {verdict} “x”, the most accurate of the other arms" in said


def _points(said: str) -> list[float]:
    parts = said.split("labels in accuracy by ")[1].split(" and ")
    return [float(part.split(" ")[0].replace("−", "-")) for part in parts]


def test_settings_at_an_end_of_what_was_tried_are_named() -> None:
    design = HOLDING["design"]
    inner = {"learning_rate": 0.01, "temperature": None, "weight_decay": 0.0}
    assert sentences.at_edges({"a": inner}, design).startswith("Every chosen setting lies inside")
    edge = {**inner, "learning_rate": 0.03, "temperature": 1.0}
    assert sentences.at_edges({"a": inner, "b": edge}, design).endswith(
        "beyond: learning rate 0.03 of “b”; temperature 1 of “b”."
    )


# --- tables --------------------------------------------------------------------------------


def test_the_report_is_the_same_in_whatever_order_the_rows_came() -> None:
    lists = {name: HOLDING[name][::-1] for name in ("runs", "views", "encodings", "small_teacher")}
    assert make_sections({**HOLDING, **lists}) == make_sections(HOLDING)


def test_the_main_table_has_a_row_an_arm_and_a_column_a_budget() -> None:
    heads, *body = tables.by_budget(HOLDING["runs"], "kl")
    assert heads == ["arm", "100 epochs", "600 epochs", "3,000 epochs"]
    assert tuple(row[0] for row in body) == ARMS
    rows = select(HOLDING["runs"], arm="consistent", epochs=600)
    shown = dict(zip(ARMS, body, strict=True))["consistent"][2]
    assert shown.startswith(f"{mean(row['kl'] for row in rows):.3f} (")


def test_tests_that_were_not_registered_have_their_own_table() -> None:
    registered = tables.tests(HOLDING["tests"], registered=True)
    beside = tables.tests(HOLDING["tests"], registered=False)
    assert (len(registered), len(beside)) == (1 + 5, 1 + 1)
    assert registered[1][0] == "consistent < fixed"
    assert "p after Holm" in registered[0]
    assert "p after Holm" not in beside[0]


@pytest.mark.parametrize("result", [HOLDING, FAILING], ids=["holding", "failing"])
def test_every_row_of_a_table_has_all_its_cells(result: dict[str, Any]) -> None:
    found = [section.table for section in make_sections(result) if section.table]
    assert len(found) >= 12
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}
        assert all(row[0] for row in table)


def test_only_what_is_shown_equivalent_is_called_so() -> None:
    cells = [cell for row in tables.equivalence(HOLDING["equivalence"]) for cell in row]
    rows = [row for part in HOLDING["equivalence"] for row in part["rows"]]
    for margin, name in (("0.03 nats", "equivalent"), ("10%", "equivalent_ratio")):
        shown = [margin in cell for cell in cells]
        claimed = [row[name] for row in rows]
        assert 0 < sum(shown) == sum(claimed) < len(claimed)
    assert not any(
        "within" in cell for row in tables.equivalence(FAILING["equivalence"]) for cell in row
    )


def test_the_fewest_views_stand_beside_what_they_lack() -> None:
    heads, first, *_ = tables.enough(HOLDING["equivalence"])
    part = HOLDING["equivalence"][0]
    (row,) = select(part["rows"], views=part["smallest_views"])
    found = dict(zip(heads, first, strict=True))
    assert found["fewest within 0.03 nats"] == str(part["smallest_views"])
    assert found["fewest within 10%"] == str(part["smallest_views_ratio"])
    assert found["times live"] == f"{row['ratio']:.2f}"
    assert float(found["live KL, nats"]) == pytest.approx(part["live_kl"], abs=0.001)
    assert "not reached by 512" in tables.enough(FAILING["equivalence"])[-1]


# --- pictures ------------------------------------------------------------------------------


def test_a_picture_names_all_its_lines_in_itself_and_in_words() -> None:
    picture = figures.arms(HOLDING["runs"])
    for arm in ARMS:
        assert f">{arm}</text>" in picture.svg
        assert f"{arm}: " in picture.words


def test_a_live_teacher_has_a_view_for_each_epoch_and_uses_it_once() -> None:
    views = figures.views(HOLDING["views"], reuse=False)
    uses = figures.views(HOLDING["views"], reuse=True)
    assert (views.name, uses.name) == ("digits-views", "digits-reuse")
    live = {
        (mixed, epochs): mean(row["kl"] for row in rows)
        for mixed in (True, False)
        for epochs in BUDGETS
        if (rows := select(HOLDING["views"], mixed=mixed, epochs=epochs, views=None))
    }
    for (mixed, epochs), kl in live.items():
        name = f" {'mixed' if mixed else 'unmixed'}, {epochs:,} epochs: "
        for words_of, end in ((views.words, "live"), (uses.words, "1")):
            last = words_of.split(name)[1].split(";")[0].split(", 0")[1].rstrip(".")
            assert f"0{last}" == f"{kl:.3f} at {end}"
    assert "at 3,000, " in uses.words
    assert "e+0" not in views.words + uses.words


# --- the files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "new"
    write_results(HOLDING, path)
    return path


def test_equal_results_make_equal_files(folder: Path, tmp_path: Path) -> None:
    write_results(make_result(holds=True), tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()} == {
        "digits.json", "digits.md", "digits.html", "digits-arms.svg", "digits-views.svg",
        "digits-reuse.svg", "digits-encodings.svg",
    }  # fmt: skip
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_numbers_are_kept_a_row_a_line(folder: Path) -> None:
    text = (folder / "digits.json").read_text()
    assert json.loads(text) == HOLDING
    assert text.count('\n {"arm"') == len(HOLDING["runs"]) + len(HOLDING["small_teacher"])


def test_a_number_that_is_none_is_written_as_null() -> None:
    found = json.loads(json_text({"runs": [{"kl": math.nan, "k": None}], "kl": -math.inf}))
    assert found == {"runs": [{"kl": None, "k": None}], "kl": None}


def test_a_student_that_diverged_is_told_as_such_and_decides_nothing(tmp_path: Path) -> None:
    base = {row["epochs"]: row for row in HOLDING["equivalence"]}
    runs = [
        {"arm": arm, "epochs": e, "seed": s, "agreement": 0.9, "accuracy": 0.9,
         "kl": math.nan if (arm, s) == ("consistent", 1) else 0.5 + (n * s) % 5 / 100}
        for n, arm in enumerate(ARMS) for e in FULL.budgets for s in FULL.seeds
    ]  # fmt: skip
    views = [
        {**row, "views": count, "mixed": arm == "function matching"}
        for row in runs
        for count in (8, None)
        if (arm := row["arm"]) in ("consistent", "function matching")
        and row["seed"] in FULL.side_seeds
    ]
    views = [{name: value for name, value in row.items() if name != "arm"} for row in views]
    equal = [
        equivalence(FULL, views, mixed=mixed, epochs=e) for mixed in (True, False) for e in base
    ]
    tests = make_tests(FULL, runs)
    found = {"runs": runs, "tests": tests, "views": views, "equivalence": equal}
    for name in ("encodings", "wrong_replay", "small_teacher"):
        found[name] = [
            {**row, "kl": math.nan} if row["seed"] == 0 else row for row in HOLDING[name]
        ]
    write_results({**HOLDING, **found}, tmp_path)
    text = (tmp_path / "digits.md").read_text()
    assert re.search(r"\| consistent \| diverged \| diverged \| diverged \|", text)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    kept = json.loads((tmp_path / "digits.json").read_text())
    assert {row["kl"] for row in select(kept["runs"], arm="consistent", seed=1)} == {None}
    touched = [t for t in kept["tests"] if "consistent" in (t["better"], t["worse"])]
    assert touched
    assert {(t["p"], t["separates"], t["contradicted"]) for t in touched} == {(None, False, False)}
    assert not any(row["equivalent"] for part in equal if not part["mixed"] for row in part["rows"])
    assert all(row["equivalent"] for part in equal if part["mixed"] for row in part["rows"])


def test_the_text_shows_every_picture_that_lies_beside_it(folder: Path) -> None:
    text = (folder / "digits.md").read_text()
    for picture in folder.glob("*.svg"):
        assert text.count(f"]({picture.name})") == 1
    assert "![](" not in text


def test_the_page_and_the_text_say_what_was_run(folder: Path) -> None:
    for name in ("digits.md", "digits.html"):
        text = (folder / name).read_text()
        for part in (
            "make paper",
            "2031-05-06",
            "at commit 0123abc",
            "30 at commit 4567def",
            "torch 2.11.0",
            "a CPU",
            *ARMS,
        ):
            assert part in text


def test_the_decision_that_a_report_names_says_where_tests_were_registered(folder: Path) -> None:
    text = (folder / "digits.md").read_text()
    assert text.count("[docs/decisions.md, number 84](../decisions.md)") == 1
    decisions = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    (decision,) = re.findall(r"^84\. .*?(?=^85\. )", decisions, re.MULTILINE | re.DOTALL)
    assert "What was registered stands in pipelines/study/design.py" in decision


def _said(result: dict[str, Any]) -> str:
    return " ".join(text for section in make_sections(result) for text in section.paragraphs)


def test_results_that_fail_are_not_told_as_if_they_held() -> None:
    held, failed = _said(HOLDING), _said(FAILING)
    assert "function matching has the lowest mean KL" in held
    assert "5 registered comparisons, all separate" in held
    assert "5 registered comparisons, 0 separate" in failed
    assert "epochs” is not shown" in failed
    assert "epochs” is shown" in held
    assert "the KL falls for" in held
    assert "the KL falls for" not in failed
    assert "a live teacher's: not reached by 64 in 100 epochs; not reached by 512 in" in failed
    assert "a live teacher's: not reached" not in held


def test_a_short_trial_says_so_first() -> None:
    quick = {**HOLDING, "quick": True}
    assert make_sections(quick)[0].paragraphs[0].startswith("This was a short trial")
    assert "short trial" not in _said(HOLDING)


def test_what_was_not_run_is_left_out() -> None:
    absent: dict[str, list[Any]] = {
        name: []
        for name in ("tests", "views", "equivalence", "encodings", "wrong_replay", "small_teacher")
    }
    titles = [section.title for section in make_sections({**HOLDING, **absent})]
    assert len(titles) == len(make_sections(HOLDING)) - 8
    assert titles[-1] == "Limits"


def test_a_trial_of_one_seed_and_budget_is_reported(tmp_path: Path) -> None:
    one = make_result(holds=True, seeds=1)
    runs = [row for row in one["runs"] if row["epochs"] == BUDGETS[0]]
    unknown = {"low": None, "high": None, "p": None, "p_holm": None, "separates": False}
    found = [{**test, **unknown} for test in one["tests"]]
    write_results({**one, "runs": runs, "tests": found, "quick": True}, tmp_path)
    text = (tmp_path / "digits.md").read_text()
    assert "nan" not in text
    assert " 1 seeds" not in text
    assert "decisions.md)" not in text  # it does not lie beside a trial


def test_markdown_takes_text_as_it_is() -> None:
    picture = Picture("p", "<svg/>", "[a] | b")
    section = Section("a_b_", paragraphs=["*x* <b> `c`"], table=[["h|"], ["1"]], figures=[picture])
    assert render_markdown("T", [section]) == (
        "# T\n\n## a\\_b\\_\n\n\\*x\\* \\<b> \\`c\\`\n\n![\\[a\\] \\| b](p.svg)\n\n"
        "| h\\| |\n|---|\n| 1 |\n"
    )
