import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from kdcache.cache.audit import check_objects
from kdcache.cache.store import open_cache
from kdcache.data.document import load_dataset
from kdcache.models.specs import build_network
from kdcache.models.weights import load_weights
from pipelines import demo, demo_table
from pipelines.demo import ARMS, Demo
from pipelines.demo_table import rows, verdicts
from tests.report.browser import Browser
from tests.report.reading import faults

# --- a short demo, through everything ------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo of six epochs, made in the place of an older one."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("demo") / "out"
    (folder / "arrays").mkdir(parents=True)
    (folder / "old.html").write_text("old")
    demo.main(seed=0, out=folder, epochs=6, teacher_epochs=2, views=8, num_workers=0)
    torch.set_num_threads(threads)
    return folder


def _result(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "result.json").read_text())
    return value


def test_the_result_has_the_documented_schema(out: Path) -> None:
    result = _result(out)
    assert result["seed"] == 0
    assert list(result["arms"]) == ["labels", "fixed", "cache"]
    for score in result["arms"].values():
        assert score.keys() == {"accuracy", "kl"}
        assert 0 <= score["accuracy"] <= 100
        assert score["kl"] > 0
    assert 10 < result["teacher"]["accuracy"] <= 100
    assert (result["epochs"], result["views"]) == (6, 8)


def test_an_older_demo_is_replaced(out: Path) -> None:
    assert not (out / "old.html").exists()


def test_the_cache_holds_every_view_of_the_hundred_digits_and_is_sound(out: Path) -> None:
    cache = open_cache(out / "cache")
    assert cache.info.dataset["num_samples"] == 100
    assert cache.grid.num_views == 8
    assert cache.missing() == []
    assert list(check_objects(cache)) == []
    assert cache.info.recipe.mix is not None
    assert cache.info.dataset["id"] == load_dataset(out / "data/student").id


def test_the_tars_hold_the_split(out: Path) -> None:
    counts = {name: load_dataset(out / "data" / name).num_samples
              for name in ("teacher", "student", "test")}  # fmt: skip
    assert counts == {"teacher": 1000, "student": 100, "test": 797}


def test_all_arms_take_the_same_steps_with_the_same_settings(out: Path) -> None:
    configs = {arm: json.loads((out / "runs" / arm / "config.json").read_text()) for arm in ARMS}
    own = {"learn", "cache", "recipe", "labels", "teacher"}
    for arm in ARMS:
        assert configs[arm]["learn"] == arm
        shared = {name: value for name, value in configs[arm].items() if name not in own}
        assert shared == {k: v for k, v in configs["labels"].items() if k not in own}
        lines = (out / "runs" / arm / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 6
        last = json.loads(lines[-1])
        assert _result(out)["arms"][arm] == {
            "accuracy": 100 * last["val_top1"],
            "kl": last["val_kl_nats"],
        }
        assert last["val_samples"] == 797


def test_the_arms_differ_in_what_they_learn_from_and_not_in_their_start(out: Path) -> None:
    results = {str(score) for score in _result(out)["arms"].values()}
    assert len(results) == 3
    weights = [out / "runs" / arm / "student.safetensors" for arm in ARMS]
    for path in weights:
        load_weights(build_network("pipelines.digits:student", num_classes=None), path)
    assert len({path.read_bytes() for path in weights}) == 3


def test_the_page_shows_the_results_the_curves_and_the_views(out: Path) -> None:
    page = (out / "report.html").read_text()
    for arm in ARMS:
        assert f"{_result(out)['arms'][arm]['accuracy']:.1f}%" in page
        assert f"{_result(out)['arms'][arm]['kl']:.3f}" in page
    assert page.count("<svg") == 2
    assert page.count('<img src="data:image/png;base64,') == 4 * 6
    assert page.count("<meter") == 3 * 4 * 6
    assert "<script" not in page


def test_the_page_has_no_fault_in_a_browser(out: Path, browser: Browser) -> None:
    assert faults(browser, out / "report.html") == []


def test_the_page_says_what_the_comparison_does_not_show(out: Path) -> None:
    page = " ".join(re.sub(r"<[^>]+>", " ", (out / "report.html").read_text()).split())
    assert "share one recipe of training" in page
    assert "Tuning each one narrows the gaps" in page
    assert "94.3%" in page
    assert "96.7%" in page
    assert "the teacher knows more than the student's 100 images" in page.replace("&#39;", "'")


def test_the_table_of_a_demo_has_a_line_for_each_arm(out: Path) -> None:
    lines = demo.table(_result(out)).splitlines()
    assert [line.split()[0] for line in lines] == ["student", *ARMS, "(teacher)"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(typer.BadParameter, match="holds something else"):
        demo.main(seed=0, out=tmp_path, epochs=1, teacher_epochs=1, views=1, num_workers=0)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- the table over seeds ------------------------------------------------------------------


def _scores(seed: int, *accuracy: float, kl: tuple[float, float] = (0.25, 0.1)) -> dict[str, Any]:
    """Return a demo's result. accuracy: of labels, fixed, cache. kl: of fixed, cache."""
    scores = zip(ARMS, accuracy, (0.9, *kl), strict=True)
    arms = {arm: {"accuracy": share, "kl": nats} for arm, share, nats in scores}
    return {"seed": seed, "arms": arms}


KL, LABELS, FIXED = (
    "on each seed KL(cache) <= 0.6 KL(fixed)",
    "on each seed accuracy cache - labels >= 5 points",
    "on the mean accuracy cache - fixed >= 2 points",
)


@pytest.mark.parametrize(
    ("results", "failing"),
    [
        ([_scores(0, 85, 90, 95), _scores(1, 86, 91, 96)], set()),
        ([_scores(0, 85, 90, 95), _scores(1, 85, 90, 95, kl=(0.25, 0.16))], {KL}),
        ([_scores(0, 85, 90, 95, kl=(0.5, 0.3))], set()),
        ([_scores(0, 85, 90, 95), _scores(1, 91, 91, 95.5)], {LABELS}),
        ([_scores(0, 90, 90, 95)], set()),
        ([_scores(0, 85, 94, 95), _scores(1, 85, 92, 95)], set()),
        ([_scores(0, 85, 94, 95), _scores(1, 85, 92.1, 95)], {FIXED}),
        ([_scores(0, 95, 95, 90, kl=(0.25, 0.3))], {KL, LABELS, FIXED}),
    ],
)
def test_each_claim_fails_when_and_only_when_it_does_not_hold(
    results: list[dict[str, Any]], failing: set[str]
) -> None:
    found = verdicts(results)
    assert set(found) == {KL, LABELS, FIXED}
    assert {claim for claim, holds in found.items() if not holds} == failing


def test_the_table_shows_each_seed_then_mean_and_deviation() -> None:
    lines = rows([_scores(0, 84, 90, 95), _scores(3, 86, 91, 96)])
    assert [line.split()[0] for line in lines] == ["seed", "0", "3", "mean", "sd"]
    assert lines[1].split()[1:] == ["84.0", "0.900", "90.0", "0.250", "95.0", "0.100"]
    assert lines[3].split()[1:] == ["85.0", "0.900", "90.5", "0.250", "95.5", "0.100"]
    assert lines[4].split()[1] == "1.4"
    assert len({len(line) for line in lines[1:]}) == 1


def test_one_seed_has_a_mean_and_no_deviation() -> None:
    assert [line.split()[0] for line in rows([_scores(0, 84, 90, 95)])] == ["seed", "0", "mean"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Demo]:
    """Demos that were run; each succeeds at once, in an empty place."""
    seen: list[Demo] = []

    def run(demo: Demo) -> dict[str, Any]:
        assert not demo.out.exists()
        seen.append(demo)
        return _scores(demo.seed, 85, 90, 95)

    monkeypatch.setattr(demo_table, "run_demo", run)
    return seen


def test_seeds_that_are_done_are_not_run_again(
    tmp_path: Path, runs: list[Demo], capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "900-epochs/1"
    done.mkdir(parents=True)
    (done / "result.json").write_text(json.dumps(_scores(1, 80, 90, 99)))
    demo_table.main(seeds=3, out=tmp_path, epochs=900, num_workers=0)
    assert [demo.seed for demo in runs] == [0, 2]
    shown = capsys.readouterr().out
    assert shown.count("holds: ") == 3
    assert "99.0" in shown


def test_a_seed_that_was_interrupted_starts_afresh(tmp_path: Path, runs: list[Demo]) -> None:
    (tmp_path / "300-epochs/0/data/student").mkdir(parents=True)
    demo_table.main(seeds=1, out=tmp_path, epochs=300, num_workers=0)
    assert [demo.out for demo in runs] == [tmp_path / "300-epochs/0"]


def test_a_claim_that_fails_fails_the_script(
    tmp_path: Path, runs: list[Demo], capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "900-epochs/0"
    done.mkdir(parents=True)
    (done / "result.json").write_text(json.dumps(_scores(0, 95, 94, 95)))
    with pytest.raises(typer.Exit) as caught:
        demo_table.main(seeds=1, out=tmp_path, epochs=900, num_workers=0)
    assert caught.value.exit_code == 1
    assert f"FAILS: {LABELS}" in capsys.readouterr().out
    assert runs == []
