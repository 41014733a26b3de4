import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from kdcache.errors import UsageError
from kdcache.files import alone
from kdcache.identity import digest
from pipelines import paper
from pipelines.study import data, kept, work
from pipelines.study.cases import Unit, columns, grid, seed_units, tuning_units
from pipelines.study.design import ARMS, FULL, QUICK, Design, Setting
from pipelines.study.kept import Task, unit_file
from pipelines.study.made import origins
from pipelines.study.progress import Progress, costs
from pipelines.study.run import study_folder
from tests.tiny import FORK

TINY = Design(
    budgets=(2, 3, 4),
    seeds=(0, 1),
    side_seeds=(0, 1),
    tuning_seeds=(100,),
    tuning_epochs=2,
    learning_rates=(3e-3, 1e-2),
    temperatures=(1.0, 2.0),
    weight_decays=(1e-4,),
    view_counts=(1, 2, 8),
    kept=(1, None),
    mild_views=2,
    teacher_epochs=1,
    small_teacher_epochs=1,
)
TUNED = {arm: grid(TINY, arm)[0] for arm in ARMS}
SCORES = {"kl", "agreement", "accuracy"}

Result = dict[str, Any]


def _run(out: Path) -> Result:
    threads = torch.get_num_threads()
    study = paper.run_study(TINY, out, workers=0)
    torch.set_num_threads(threads)
    return paper.write_result(TINY, study, out / "results", quick=True)


def _run_apart(out: Path) -> int | None:
    """Return the exit code of a study in a process of its own."""
    process = FORK.Process(target=_run, args=(out,))
    process.start()
    process.join()
    return process.exitcode


def _killed_at(call: int, module: Any, name: str, out: Path) -> bool:
    """Return whether a study was killed in its n-th call of a function."""
    original: Callable[..., Any] = getattr(module, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, counted)
        return _run_apart(out) == -signal.SIGKILL


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a study that ran undisturbed, and of one that was killed three times.

    Both have the same tars and teachers, which take longest.
    """
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    assert _run_apart(whole) == 0
    ignored = shutil.ignore_patterns("units", "cache-*", "results", "seconds.json")
    shutil.copytree(whole, killed, ignore=ignored, dirs_exist_ok=True)
    assert _killed_at(3, data, "precompute", killed)
    assert _killed_at(2, work, "train_bank", killed)
    assert _killed_at(6, work, "train_bank", killed)
    assert _run_apart(killed) == 0
    return whole, killed


def _result(out: Path) -> Result:
    value: Result = json.loads((out / "results" / "digits.json").read_text())
    return value


def test_a_study_that_was_killed_goes_on_and_ends_with_the_same_numbers(
    folders: tuple[Path, Path],
) -> None:
    whole, killed = map(_result, folders)
    for result in (whole, killed):
        assert result.pop("seconds") > 0
        result.pop("date")
    assert killed == whole


def test_a_study_that_is_done_is_not_trained_again(
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(work, "run_seed")
    before = _result(folders[0])
    again = paper.run_study(TINY, folders[0], workers=2)
    assert again["runs"] == before["runs"]
    assert again["small_teachers"] == before["small_teachers"]
    assert again["seconds"] == before["seconds"]
    told = capsys.readouterr().out.splitlines()
    assert told == [f"all is done, and only the report is made ({_folder(folders[0])})"]


def _folder(out: Path) -> Path:
    return out / digest(asdict(TINY))[:12]


def test_a_study_says_how_much_was_done_before_and_guesses_no_rest_too_early(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [Task(0, tuple(seed_units(TINY, 0, tuned=TUNED)), "test")]
    units = sorted(tasks[0].units, key=lambda unit: unit.passes)  # the first has no views to make
    cost = costs(tmp_path, TINY, tasks[0])
    share = cost[unit_file(tmp_path, units[0]).path] / sum(cost.values())

    def done(unit: Unit) -> None:
        path = unit_file(tmp_path, unit).path
        path.parent.mkdir(exist_ok=True)
        shutil.copy(unit_file(_folder(folders[0]), unit).path, path)

    Progress(tmp_path, TINY, tasks).start()
    done(units[0])
    progress = Progress(tmp_path, TINY, tasks)
    progress.start()
    progress.work()
    progress.tell()
    for unit in units[1:]:
        done(unit)
    progress.tell()
    starts, goes_on, _, early, late = capsys.readouterr().out.splitlines()
    assert starts == f"starts ({tmp_path})"
    before = f"{share:.0%}"
    assert goes_on == f"goes on: {before} was done before ({tmp_path})"
    assert early.endswith(f"{before} of the work")
    assert late.endswith("of the work, about 1 min left")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_study_is_stopped_without_a_word_too_much(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "pipelines.paper", "--quick", "--out", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starts (")
        assert process.stdout.readline().endswith("starting workers\n")
        # A terminal sends Ctrl-C to the workers, too, which have just begun to start.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.stdout.read() == "stopped; the same command goes on\n"
    assert process.returncode == code


# --- the files of rows ---------------------------------------------------------------------

UNIT = next(unit for unit in seed_units(TINY, 0, tuned=TUNED) if unit.section == "runs")
MADE = {"commit": "0123abc", "machine": {"cpu": "a CPU"}, "versions": {}}


def _rows(kl: float) -> list[Result]:
    scores = {"kl": kl, "agreement": 0.5, "accuracy": 1.0}
    return [{**columns(UNIT, case), **scores} for case in UNIT.cases]


def _keep(folder: Path, kl: float, unit: Unit = UNIT) -> float:
    """Return the KL that a unit's file holds; made with this one where it must be."""
    (folder / "units").mkdir(exist_ok=True)
    found = kept.keep_rows(kept.unit_file(folder, unit), lambda: _rows(kl), made=MADE)
    assert found.made == MADE
    value: float = found.rows[0]["kl"]
    return value


def test_rows_of_other_settings_are_not_used(tmp_path: Path) -> None:
    first, *others = UNIT.cases
    case = first._replace(setting=replace(first.setting, learning_rate=1.0))
    other = replace(UNIT, cases=(case, *others))
    assert [_keep(tmp_path, kl) for kl in (0.5, 0.9)] == [0.5, 0.5]
    assert [_keep(tmp_path, kl, other) for kl in (0.7, 0.9)] == [0.7, 0.7]


def _swapped(content: Result) -> None:
    one, two, *_ = content["rows"]
    one["arm"], two["arm"] = two["arm"], one["arm"]


POSSIBLE = "ten times the KL"  # only its digest shows that this is not what was measured
CHANGES: dict[str, Callable[[Result], object]] = {
    POSSIBLE: lambda content: content["rows"][0].update(kl=5.0),
    "a KL below zero": lambda content: content["rows"][0].update(kl=-5),
    "a KL of text": lambda content: content["rows"][0].update(kl="0.5"),
    "two arms swapped": _swapped,
    "a row doubled": lambda content: content["rows"].append(content["rows"][0]),
    "a row missing": lambda content: content["rows"].pop(),
    "no rows": lambda content: content.update(rows=[]),
    "null": lambda content: content.update(rows=None),
    "text": lambda content: content.update(rows="abc"),
    "rows of numbers": lambda content: content.update(rows=[1] * len(content["rows"])),
    "another seed": lambda content: content["settings"].update(seed=7),
}


@pytest.mark.parametrize(
    ("change", "digested"),
    [(name, own) for name in CHANGES for own in (False, True) if (name, own) != (POSSIBLE, True)],
)
def test_a_file_whose_rows_were_changed_is_made_anew_and_named(
    tmp_path: Path, change: str, digested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    _keep(tmp_path, 0.5)
    path = kept.unit_file(tmp_path, UNIT).path
    content = json.loads(path.read_text())
    CHANGES[change](content)
    if digested:
        content.pop("digest")
        content["digest"] = digest(content)
    path.write_text(json.dumps(content))
    assert [_keep(tmp_path, kl) for kl in (0.7, 0.9)] == [0.7, 0.7]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: ")
    assert line.endswith("; made anew")


@pytest.mark.parametrize(
    "damaged", ["", '{"settings": {"lr": 1}', "[]", '{"rows": []}', "[" * 200_000]
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damaged: str) -> None:
    path = kept.unit_file(tmp_path, UNIT).path
    path.parent.mkdir()
    path.write_text(damaged)
    assert not kept.is_whole(path)
    assert [_keep(tmp_path, kl) for kl in (0.7, 0.9)] == [0.7, 0.7]
    assert kept.is_whole(path)


def test_a_folder_in_the_place_of_a_file_is_made_anew(tmp_path: Path) -> None:
    path = kept.unit_file(tmp_path, UNIT).path
    (path / "more").mkdir(parents=True)
    assert [_keep(tmp_path, kl) for kl in (0.7, 0.9)] == [0.7, 0.7]


def test_a_teacher_is_not_that_of_another_seed(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    one, two = (kept.teacher_file(tmp_path, seed, part="test", small=False) for seed in (0, 1))
    for file in (one, two):
        kept.keep_rows(file, lambda: [{**file.named[0], "accuracy": 0.5}], made=MADE)  # noqa: B023
    assert kept.read_rows(one) is not None
    one.path.write_bytes(two.path.read_bytes())
    assert kept.read_rows(one) is None


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_student_that_diverged_has_no_kl_and_is_kept(tmp_path: Path, kl: float) -> None:
    assert math.isnan(_keep(tmp_path, kl))
    assert math.isnan(_keep(tmp_path, 0.5))
    content = json.loads(kept.unit_file(tmp_path, UNIT).path.read_text())
    assert content["rows"][0]["kl"] is None


@pytest.mark.parametrize("clock", ["", "[]", "NaN", "-1e9", "true", "[" * 200_000])
def test_a_clock_that_says_nothing_starts_at_zero(tmp_path: Path, clock: str) -> None:
    (tmp_path / "seconds.json").write_text(clock)
    assert Progress(tmp_path, TINY, []).seconds == 0


def test_the_result_counts_the_units_of_each_origin() -> None:
    other = {**MADE, "commit": "fed"}
    assert origins([other, MADE, dict(MADE)]) == [{**MADE, "units": 2}, {**other, "units": 1}]


def _broken(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "truncated weights": ("runs/teacher/*.safetensors", _cut),
    "a truncated tar": ("data/student/*.tar", _cut),
    "a flipped bit": ("cache-student-consistent-dense/logits/c/0/0/0/0", _broken),
    "an empty data folder": ("data/student", lambda path: (shutil.rmtree(path), path.mkdir())[1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_students_learn_from_is_made_anew_where_it_is_damaged(
    folders: tuple[Path, Path], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "seed-0"
    shutil.copytree(_folder(folders[0]) / "seed-0", own)
    (tmp_path / "units").mkdir()
    pattern, change = DAMAGES[damage]
    (path,) = (own / "large").glob(pattern)
    change(path)
    arms = [case for case in UNIT.cases if case.arm == "consistent"]
    task = Task(0, (replace(UNIT, cases=tuple(arms)),), "test")
    threads = torch.get_num_threads()
    (row,) = work.run_seed(TINY, tmp_path, task).units[0]
    torch.set_num_threads(threads)
    told = f"{own}: damaged; made anew" in capsys.readouterr().out
    assert told == (damage != "an empty data folder")  # which is as one that is not there
    assert row["kl"] > 0


@pytest.mark.parametrize("place", ["", "units", ".lock"])
def test_a_place_that_cannot_be_written_is_named_in_a_line(tmp_path: Path, place: str) -> None:
    path = study_folder(QUICK, tmp_path / "out") / place
    path.parent.mkdir(parents=True)
    path.mkdir() if place == ".lock" else path.write_text("")
    found = CliRunner().invoke(_app(), ["--quick", "--out", str(tmp_path / "out")])
    assert (found.exit_code, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"{path}: ")
    assert line.endswith("run again")


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(paper.main)
    return app


def test_two_studies_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / digest(asdict(TINY))[:12]
    folder.mkdir()

    def run() -> None:
        with pytest.raises(UsageError, match="another process runs this study"):
            paper.run_study(TINY, tmp_path, workers=0)

    with alone(folder, "held by this test"):
        process = FORK.Process(target=run)
        process.start()
        process.join()
    assert process.exitcode == 0


# --- the result ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(folders: tuple[Path, Path]) -> Result:
    """The result of the undisturbed study."""
    return _result(folders[0])


def _num_units() -> int:
    seeds = [Task(seed, tuple(seed_units(TINY, seed, tuned=TUNED)), "test") for seed in (0, 1)]
    tuning = Task(100, tuple(tuning_units(TINY, 100)), "validation")
    return sum(len(kept.files(Path(), task)) for task in [*seeds, tuning])


def test_the_result_says_how_where_and_what(result: Result) -> None:
    assert result["command"] == "make paper-quick"
    assert result["quick"] is True
    assert {"python", "torch", "numpy", "scipy", "kdcache"} <= set(result["versions"])
    assert result["machine"]["cores"] > 0
    assert result["design"]["budgets"] == [2, 3, 4]
    assert result["design"]["student_parameters"] == 14_458
    assert result["design"]["teacher_parameters"] == 390_890
    assert list(result["design"]["arms"]) == list(ARMS)
    (made,) = result["made"]
    assert made["commit"] == result["commit"]
    assert made["units"] == _num_units()
    assert [t["seed"] for t in result["teachers"]] == [0, 1]
    assert [t["seed"] for t in result["small_teachers"]] == [0, 1]
    teachers = result["teachers"] + result["small_teachers"]
    assert all(0 < t["accuracy"] < 1 for t in teachers)
    assert len({t["accuracy"] for t in teachers}) > 2


def test_every_arm_runs_at_every_budget_and_seed_and_no_two_learn_alike(result: Result) -> None:
    rows = result["runs"]
    assert {(r["arm"], r["epochs"], r["seed"]) for r in rows} == {
        (arm, epochs, seed) for arm in ARMS for epochs in TINY.budgets for seed in TINY.seeds
    }
    assert len(rows) == len({(r["kl"], r["epochs"], r["seed"]) for r in rows})
    assert all(r.keys() == {"arm", "epochs", "seed"} | SCORES for r in rows)


def test_each_arm_has_a_setting_of_its_grid(result: Result) -> None:
    assert list(result["tuned"]) == list(ARMS)
    for arm, chosen in result["tuned"].items():
        assert chosen.pop("kl") > 0
        assert Setting(**chosen) in grid(TINY, arm)
        assert (chosen["temperature"] is None) == arm.startswith("labels")


def test_the_curve_over_stored_views_ends_in_the_live_teacher(result: Result) -> None:
    rows = result["views"]
    found = {(r["views"], r["mixed"], r["epochs"]) for r in rows}
    assert found == {
        (count, mixed, epochs)
        for mixed in (True, False)
        for epochs in TINY.budgets
        for count in (1, 2, None)
        if count is None or count < epochs
    }
    live = {(r["epochs"], r["seed"]): r["kl"] for r in rows if r["views"] is None and r["mixed"]}
    runs = {
        (r["epochs"], r["seed"]): r["kl"] for r in result["runs"] if r["arm"] == "function matching"
    }
    assert live == runs


def test_encodings_wrong_replays_and_the_small_teacher_are_measured_at_the_middle_budget(
    result: Result,
) -> None:
    encodings, wrong, small = (
        result[name] for name in ("encodings", "wrong_replay", "small_teacher")
    )
    assert {(r["k"], r["temperature"]) for r in encodings} == {
        (k, t) for k in (1, None) for t in (1.0, 2.0)
    }
    assert {(r["fault"], r["recipe"]) for r in wrong} == {
        ("none", "funmatch"),
        ("seed shifted by one", "funmatch"),
        ("crop moved by one pixel", "funmatch"),
        ("partner swapped", "funmatch"),
        ("none", "consistent"),
        ("seed shifted by one", "consistent"),
        ("crop moved by one pixel", "consistent"),
    }
    assert {r["arm"] for r in small} == set(ARMS)
    for rows in (encodings, wrong, small):
        assert {r["seed"] for r in rows} == {0, 1}
        assert {r["epochs"] for r in rows} == {3}
        assert all(r.keys() >= SCORES for r in rows)
        assert len({r["kl"] for r in rows}) == len(rows)
    sizes = {r["k"]: r["bytes_per_view"] for r in encodings}
    assert 0 < sizes[1] < sizes[None]


def test_the_registered_tests_stand_first_and_are_corrected_together(result: Result) -> None:
    registered = [t for t in result["tests"] if t["registered"]]
    assert result["tests"][: len(registered)] == registered
    assert [t["name"] for t in registered[:4]] == [
        "consistent < fixed",
        "consistent < independent",
        "function matching < consistent",
        "function matching < labels",
    ]
    assert {t["epochs"] for t in registered[:4]} == {4}
    reversal = registered[4:]
    assert {t["name"] for t in reversal} == {"function matching worst at 2 epochs"}
    assert {t["better"] for t in reversal} == set(ARMS) - {"function matching"}
    assert {(t["worse"], t["epochs"]) for t in reversal} == {("function matching", 2)}
    assert min(t["p_holm"] / t["p"] for t in registered if t["p_holm"] < 1) >= 1
    assert all(t["p_holm"] is None for t in result["tests"][len(registered) :])
    kl = {(r["arm"], r["seed"]): r["kl"] for r in result["runs"] if r["epochs"] == 4}
    first = [kl["consistent", seed] - kl["fixed", seed] for seed in (0, 1)]
    assert registered[0]["difference"] == pytest.approx(sum(first) / 2)


# --- the designs ---------------------------------------------------------------------------


@pytest.mark.parametrize("design", [FULL, QUICK])
def test_tuning_has_seeds_of_its_own_and_side_studies_have_none(design: Design) -> None:
    assert not set(design.tuning_seeds) & set(design.seeds)
    assert set(design.side_seeds) <= set(design.seeds)


def test_the_full_design_is_the_registered_one() -> None:
    assert FULL.budgets == (100, 600, 3000)
    assert FULL.seeds == tuple(range(10))
    assert FULL.view_counts == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert FULL.kept == (1, 2, 3, 5, None)
    assert FULL.margin_nats == 0.03


def test_no_two_units_share_a_file() -> None:
    tuned = {arm: grid(FULL, arm)[0] for arm in ARMS}
    units = [u for seed in FULL.tuning_seeds for u in tuning_units(FULL, seed)]
    units += [u for seed in FULL.seeds for u in seed_units(FULL, seed, tuned=tuned)]
    assert len({unit.name for unit in units}) == len(units)
    assert all(1 <= len(unit.cases) <= 10 for unit in units)


def test_another_design_has_another_folder(tmp_path: Path) -> None:
    other = replace(TINY, teacher_epochs=2)
    assert digest(asdict(other)) != digest(asdict(TINY))
