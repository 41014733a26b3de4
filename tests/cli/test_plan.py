"""Claims about `kdcache plan`: one probe, one plan, for people and for scripts."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kdcache.data.dataset import Dataset
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import PLAIN, check_refusal, teacher_option, write_recipe

Plan = Callable[..., Outcome]


@pytest.fixture
def plan(kdcache: Run, dataset: Dataset, tmp_path: Path) -> Plan:
    """A function that plans for the tiny teacher in half a second; options go last."""
    recipe = write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())

    def run(*options: object) -> Outcome:
        return kdcache(
            *("plan", "--data", dataset.root, *teacher_option(options), *PLAIN),
            *("--device", "cpu"),
            *("--recipe", recipe, "--probe-s", "0.2", *options),
        )

    return run


def test_a_plan_says_what_people_ask(plan: Plan) -> None:
    outcome = plan("--views", 4, "--gpus", 2, "--student-images-per-s", 500)
    assert outcome.code == 0, outcome.stderr
    first, *rest = outcome.stdout.splitlines()
    assert first.startswith("measuring on cpu")
    lines = {line.split()[0]: line for line in rest}
    assert list(lines) == [
        "measured", "views", "storage", "time", "student", "prices", "cached", "online",
        "break-even",
    ]  # fmt: skip
    assert "4 of each of 24 images, in spans of 4; 4 epochs use each 1 times" in lines["views"]
    assert "dense:f2" in lines["storage"]
    assert "on 2 machines with" in lines["time"]
    assert "at 500 images/s" in lines["student"]
    assert "2 a machine-hour, 0.02 a GB and month, for 12 months" in lines["prices"]


def test_json_holds_measurements_wishes_and_plan(plan: Plan, dataset: Dataset) -> None:
    outcome = plan("--epochs", 30, "--reuse", 2, "--workers", 0, "--gpus", 3, "--json")
    assert outcome.code == 0, outcome.stderr
    value = outcome.value
    assert value.keys() == {"measured", "asked", "plan"}
    assert value["measured"].keys() == {
        "device", "encoding", "teacher_s", "render_s", "target_bytes", "span_views",
        "teacher_cores", "cores", "rendered", "taught", "seconds",
    }  # fmt: skip
    asked, found, measured = value["asked"], value["plan"], value["measured"]
    assert asked["views"] == {"num_views": 16, "span_views": 8, "epochs": 30}
    assert asked["reuse"] == 30 / 16
    assert (asked["num_images"], asked["num_devices"], asked["num_workers"]) == (24, 3, 0)
    size = sum((dataset.root / tar.name).stat().st_size for tar in dataset.tars)
    assert asked["image_bytes"] == pytest.approx(size / 24)
    assert found.keys() == {
        "storage_bytes", "teacher_hours", "device_hours", "wall_hours", "limited_by",
        "views_per_s", "read_bytes", "read_mb_per_s", "precompute_cost", "storage_cost",
        "online_hours", "online_cost", "student_hours", "break_even", "cached_cost",
    }  # fmt: skip
    view_s = measured["teacher_s"] + measured["render_s"]
    assert found["wall_hours"] == pytest.approx(24 * 16 * view_s / 3 / 3600)
    assert found["break_even"] == pytest.approx(found["cached_cost"] / found["online_cost"])


def test_without_workers_asked_for_there_is_at_least_one(plan: Plan) -> None:
    assert plan("--views", 4, "--json").value["asked"]["num_workers"] >= 1


def test_free_machines_never_pay_for_a_cache(plan: Plan) -> None:
    outcome = plan("--views", 4, "--gpu-price", 0)
    assert "break-even  never" in outcome.stdout
    assert plan("--views", 4, "--gpu-price", 0, "--json").value["plan"]["break_even"] is None


def test_dear_storage_is_paid_off_after_many_runs(plan: Plan) -> None:
    outcome = plan("--views", 4, "--storage-price", 1e6)
    assert "runs on" in outcome.stdout.splitlines()[-1]
    assert "first run" not in outcome.stdout.splitlines()[-1]


def test_a_picture_is_drawn(plan: Plan, tmp_path: Path) -> None:
    assert plan("--views", 4, "--out", tmp_path / "plan.png").code == 0
    with Image.open(tmp_path / "plan.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["Missing --views, or --epochs"]),
        (["--views", "4", "--epochs", "8"], ["--views 4 and --epochs 8", "give one of them"]),
        (["--views", "5", "--span-views", "2"], ["5 views in spans of 2"]),
        (["--views", "4", "--reuse", "0"], ["reuse 0"]),
        (["--views", "4", "--reuse", "1e308"], ["reuse 1e+308 makes inf epochs of 4 views"]),
        (["--epochs", "10", "--reuse", "5e-324"], ["reuse 5e-324 makes inf views", "--reuse"]),
        (["--epochs", "1" + "0" * 400], ["epochs: expected 1 to 1,000,000,000,000"]),
        (["--epochs", "10", "--span-views", "9" * 400], ["expected up to 1,000,000 views"]),
        (["--views", "4", "--encoding", "auto"], ["encoding 'auto'"]),
        (["--views", "4", "--out", "plan.jpg"], ["--out plan.jpg", ".png"]),
    ],
)
def test_wishes_that_make_no_plan_are_refused(
    plan: Plan, options: list[str], words: list[str]
) -> None:
    check_refusal(plan(*options), 2, *words)


@pytest.mark.parametrize(
    "options",
    [
        *(["--gpus", "0"], ["--gpu-price", "-1"], ["--storage-price", "-0.1"], ["--runs", "0"]),
        *(["--gpus", "1" + "0" * 24], ["--gpu-price", "1e308"], ["--storage-price", "1e308"]),
        *(["--runs", "1" + "0" * 26], ["--months", "1e308"], ["--workers", "1" + "0" * 24]),
        *(["--student-images-per-s", "-1"], ["--student-images-per-s", "nan"]),
        *(["--student-images-per-s", "5e-324"],),
    ],
)
def test_options_out_of_range_are_named(plan: Plan, options: list[str]) -> None:
    outcome = plan("--views", "4", *options)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert options[0] in outcome.stderr


def test_a_teacher_of_other_classes_is_another_teacher(plan: Plan) -> None:
    seven = ["--teacher", "tests.cli.making:seven_classes", "--views", 4]
    check_refusal(plan(*seven), 3, "has 7 classes")
    assert plan(*seven, "--teacher-classes", 7).code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher", "torchvision:resnet50"], ["resnet50: without weights", "give --weights"]),
        (["--weights", "no.pt"], ["no.pt: no such weights file"]),
        (["--data", "nowhere"], ["nowhere/dataset.json: missing"]),
        (["--recipe", "no.toml"], ["no.toml"]),
    ],
)
def test_what_is_missing_is_said_before_torch_is_imported(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, options: list[str], words: list[str]
) -> None:
    for module in ("kdcache.data.blocks", "kdcache.models.ensemble", "kdcache.report.plan"):
        monkeypatch.setitem(sys.modules, module, None)  # importing one of these now fails
    check_refusal(plan("--views", 4, *options), 2, *words)
