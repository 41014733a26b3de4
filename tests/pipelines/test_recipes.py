"""Ready recipes run on a few images, and their heads say what kdcache plans."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from kdcache.cli.output import human_bytes
from kdcache.data.document import load_dataset
from kdcache.data.sources import open_source
from kdcache.errors import UsageError
from kdcache.precompute.prepare import default_encoding
from kdcache.precompute.probe import WITNESS_BYTES, ViewCosts
from kdcache.recipe.schema import load_recipe
from kdcache.report.plan import Plan, Wishes, make_plan, views_of_epochs
from kdcache.student.config import TrainConfig, make_config
from kdcache.targets.encoding import parse_encoding
from pipelines import recipe_run
from pipelines.recipe_run import (
    READY,
    TRIAL,
    Command,
    Options,
    Place,
    Ready,
    Step,
    commands,
    load_ready,
    main,
    parse,
)
from tests.cli.conftest import Run, kdcache
from tests.docs.blocks import lines_of, words_of
from tests.pipelines.layouts import LAYOUTS, Laid, lay_imagenet
from tests.pipelines.papers import PAPER, SIZES
from tests.pipelines.test_make import ROOT, _make, shell_words

__all__ = ["kdcache"]

TEACHER_VIEWS_PER_S, BLOCK = 1000, 64
RESULTS = ROOT / "pipelines/bench/results"
STUDENT_IMAGES_PER_S = json.loads((RESULTS / "gpu/student.json").read_text())["figures"][
    "a_teacher_in_the_loop"
]["cached"]["images_per_s"]
EVERY = [(name, schedule) for name, schedules in PAPER.items() for schedule in schedules]
NAMES = sorted(PAPER)
STEPS = ["pack", "pack", "plan", "precompute", "precompute", "verify", "train", "eval"]


def _ready(name: str) -> Ready:
    return load_ready(READY / f"{name}.toml")


def _head(name: str) -> list[str]:
    """Return the comment that a recipe begins with."""
    lines = (READY / f"{name}.toml").read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return lines[:end]


def _config(name: str, schedule: str) -> TrainConfig:
    options = _ready(name).training(schedule)
    names = {key: key.replace("-", "_") for key in options} | {"workers": "num_workers"}
    return make_config(**{names[key]: value for key, value in options.items()})


def test_every_dataset_has_a_recipe_and_every_recipe_is_tested() -> None:
    assert {path.stem for path in READY.glob("*.toml")} == set(NAMES) == set(LAYOUTS)
    for name in NAMES:
        assert set(_ready(name).schedule) == set(PAPER[name])


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "schedule"), EVERY)
def test_settings_are_the_papers_in_torchs_convention(name: str, schedule: str) -> None:
    """Torch multiplies the decay by the learning rate; warm-up is a share of the steps."""
    paper, config = PAPER[name][schedule], _config(name, schedule)
    assert (config.epochs, config.learning_rate) == (paper.epochs, paper.learning_rate)
    assert config.weight_decay * config.learning_rate == pytest.approx(paper.decay, rel=2e-3)
    assert config.temperature == paper.temperature
    assert config.batch_size == pytest.approx(paper.batch_size, rel=4e-3)
    steps = config.epochs * (SIZES[name][0] // config.batch_size)
    assert config.warmup * steps == pytest.approx(paper.warmup_steps, rel=2e-3)
    assert (config.optimizer, config.schedule, config.clip) == ("adamw", "cosine", 1.0)
    assert (config.direction, config.label_weight) == ("forward", 0)
    assert config.epochs % config.views_per_load == 0
    place = Place(Path("d"), "t:n", None, Path("o"))
    assert [c.step for c in commands(_ready(name), schedule, place=place)] == STEPS


@pytest.mark.parametrize(("name", "schedule"), EVERY)
def test_targets_are_kept_so_that_the_students_temperature_is_served(
    name: str, schedule: str
) -> None:
    ready, (_, classes) = _ready(name), SIZES[name]
    encoding = str(ready.precompute.get("encoding", default_encoding(classes)))
    parse_encoding(encoding, classes).check_temperature(_config(name, schedule).temperature)


@pytest.mark.parametrize("name", NAMES)
def test_views_are_the_papers_at_the_size_that_they_are_measured_at(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    views, central = (load_recipe(recipe) for recipe in (_ready(name).views, _ready(name).central))
    assert views.size == central.size
    assert views.model_copy(update={"size": 224}).id == load_recipe("funmatch").id
    assert (central.crop.law, central.mix, central.flip) == ("centre", None, None)


# --- heads ---------------------------------------------------------------------------------


def _target_bytes(name: str) -> float:
    """Return the bytes of a stored view: as measured; of dense targets as they are uncompressed."""
    ready, (_, classes) = _ready(name), SIZES[name]
    if "encoding" not in ready.precompute:
        measured = json.loads((RESULTS / "cache.json").read_text())["figures"]
        return float(measured["a_view_of_ce"][default_encoding(classes)]["bytes"])
    encoding = parse_encoding(str(ready.precompute["encoding"]), classes)
    return float(sum(s.width * np.dtype(s.dtype).itemsize for s in encoding.specs(classes)))


def _plan(name: str, schedule: str, reuse: float | None) -> tuple[int, Plan]:
    views = _ready(name).num_views(schedule, reuse=reuse)
    assert views == views_of_epochs(PAPER[name][schedule].epochs, reuse=reuse)
    images = SIZES[name][0]
    costs = ViewCosts(
        teacher_s=1 / TEACHER_VIEWS_PER_S,
        render_s=1e-3,
        target_bytes=_target_bytes(name) + WITNESS_BYTES / BLOCK,
        span_views=views.span_views,
        teacher_cores=1,
        cores=8,
    )
    speed = STUDENT_IMAGES_PER_S
    tars = -(-images // 1024)
    wishes = Wishes(images, tars, 1e5, views, student_images_per_s=speed)
    return views.num_views, make_plan(costs, wishes)


def _row(name: str, schedule: str) -> str:
    """Return the line of a schedule: views, bytes and teacher's hours by the rule, at reuse 3."""
    paper = PAPER[name][schedule]
    cells, hours = "", 0.0
    for reuse in (None, 3):
        views, plan = _plan(name, schedule, reuse)
        cells += f"{views:>9,} {human_bytes(plan.storage_bytes):>8} {plan.teacher_hours:>8,.1f}"
        hours = plan.student_hours or 0.0
    top1 = "-" if paper.top1 is None else f"{paper.top1:.2f}%"
    return f"# {schedule:<7} {paper.epochs:>9,}{cells} {hours:>9,.1f} {top1:>7}"


@pytest.mark.parametrize(("name", "schedule"), EVERY)
def test_the_head_says_what_kdcache_plans(name: str, schedule: str) -> None:
    assert _row(name, schedule) in _head(name)


@pytest.mark.parametrize("schedule", PAPER["imagenet1k"])
@pytest.mark.parametrize(("more", "reuse"), [("", None), (", `REUSE=3`", 3)])
def test_the_page_of_imagenet_says_what_kdcache_plans(
    schedule: str, more: str, reuse: float | None
) -> None:
    paper, (views, plan) = PAPER["imagenet1k"][schedule], _plan("imagenet1k", schedule, reuse)
    cells = [
        f"{paper.epochs:,}{more}",
        f"{views:,}",
        human_bytes(plan.storage_bytes),
        f"{plan.teacher_hours:,.0f}",
        f"{plan.student_hours:,.0f}",
        "" if more else f"{paper.top1:.2f}%",
    ]
    page = (ROOT / "docs/how-to/imagenet.md").read_text()
    assert f"| {' | '.join(cells).strip()} |" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_how_large_the_dataset_is_and_at_which_speeds(name: str) -> None:
    head, (images, classes) = " ".join(line.lstrip("# ") for line in _head(name)), SIZES[name]
    assert f"{images:,} training images, {classes:,} classes" in head
    assert f"{TEACHER_VIEWS_PER_S:,} views/s" in head
    assert f"{STUDENT_IMAGES_PER_S:,.0f} images/s" in head
    assert "measured on digits up to 3,000 epochs; nobody has measured it on photographs" in head


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_the_head_makes_commands_that_kdcache_takes(name: str) -> None:
    text = "\n".join(line.removeprefix("#") for line in _head(name)).replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("make recipe"))
    given = [*shlex.split(line)[1:], "SHOW=1"]
    done = _make("-n", *given)
    assert done.returncode == 0, done.stderr
    script = re.search(r"recipe_run (.*?)\)\s*&&", done.stdout.replace("\\\n", " "), re.DOTALL)
    assert script is not None
    printed = _print(*shell_words(script[1], given))
    assert [words[0] for words in printed] == STEPS
    for words in printed:
        parse(Command(Step(words[0]), tuple(words)))


def _invoke(*words: str) -> Any:
    script = typer.Typer()
    script.command()(main)
    return CliRunner().invoke(script, words)


def _print(*words: str) -> list[list[str]]:
    """Return the kdcache commands that the script prints, without what stands around them."""
    done = _invoke(*words)
    assert done.exit_code == 0, done.output
    lines = [words_of(line.removesuffix("; }")) for line in done.stdout.splitlines()]
    return [line[line.index("kdcache") + 1 :] for line in lines]


# --- runs ----------------------------------------------------------------------------------


def _small(ready: Ready) -> Ready:
    """Return a recipe with a small student, rendered in turn; all else is as it was."""
    tiny: Options = {"workers": 0}
    return ready.model_copy(
        update={
            "precompute": {**ready.precompute, **tiny},
            "student": {**ready.student, **tiny, "student": "timm:test_resnet"},
        }
    )


def _trial(name: str, tmp_path: Path) -> list[Command]:
    """Return the commands of a recipe's trial for a few images."""
    teacher, more = "tests.tiny:linear_teacher", ("--batch-size", "4")
    place = Place(tmp_path / "data", teacher, None, tmp_path / "out", train=more)
    return commands(_small(_ready(name)), TRIAL, place=place)


def _run(kdcache: Run, command: Command) -> Any:
    assert command.launcher == ()
    words = [*command.words, "--json", *(["--probe-s", 0] if command.step is Step.plan else [])]
    outcome = kdcache(*words)
    assert outcome.code == 0, (command, outcome.stderr)
    return outcome.value


def _labels(folder: Path) -> list[int]:
    return [int(label) for label in load_dataset(folder).labels]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_from_the_datasets_own_files_to_a_measured_student(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdcache: Run
) -> None:
    monkeypatch.chdir(ROOT)
    laid: Laid = LAYOUTS[name](tmp_path / "data", monkeypatch)
    out, found = tmp_path / "out", _trial(name, tmp_path)
    values = [_run(kdcache, command) for command in found]
    assert [command.step.value for command in found] == STEPS

    assert [command.packing.done.is_file() for command in found if command.packing] == [True] * 2
    assert sorted(_labels(out / "train")) == sorted(laid.train)
    assert _labels(out / "val") == list(laid.val) or name == "sun397"  # its order is the disk's
    assert sorted(_labels(out / "val")) == sorted(laid.val)
    assert load_dataset(out / "train").num_classes == laid.num_classes
    plan, cached, central, verified, trained, measured = values[2:]
    assert plan["asked"]["views"] == {"num_views": 2, "span_views": 2, "epochs": 2}
    assert (cached["views"], cached["rows_unusable"], central["views"]) == (2, 0, 1)
    assert (verified["damaged"], verified["replay"]) == ([], {"blocks": 1, "differing": []})
    assert (trained["epoch"], trained["reuse"]) == (2, 1)
    assert measured["samples"] == len(laid.val)
    config = json.loads((out / "trial" / "run-2-views" / "config.json").read_text())
    assert config["batch_size"] == 4
    kept = {"learning_rate", "weight_decay", "temperature", "warmup"}
    expected = _config(name, next(iter(PAPER[name]))).model_dump(include=kept)
    assert {key: config[key] for key in kept} == expected


def test_a_recipe_that_was_run_computes_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdcache: Run
) -> None:
    monkeypatch.chdir(ROOT)
    LAYOUTS["cifar100"](tmp_path / "data", monkeypatch)
    left = [command for command in _trial("cifar100", tmp_path) if command.step is not Step.plan]
    first = [_run(kdcache, command) for command in left]
    again = [_run(kdcache, command) for command in left if command.packing is None]
    assert [value["spans_computed"] for value in first[2:4]] == [1, 1]
    assert [value["spans_computed"] for value in again[:2]] == [0, 0]
    assert again[2] == first[4]
    assert "loss" in first[5]
    assert "loss" not in again[3]
    assert again[4] == first[6]
    assert str(left[0]).startswith(f"test -e {tmp_path}/out/train/dataset.json || {{ mkdir ")


def test_imagenet_packs_as_torchvision_lays_it_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay_imagenet(tmp_path, monkeypatch)
    source = open_source("torchvision:ImageNet", root=tmp_path, split="val")
    assert [source.read(row).label for row in range(len(source.keys))] == list(laid.val)
    assert source.classes is not None
    assert source.classes[0] == "name of n01440764, another"


# --- choices -------------------------------------------------------------------------------


def test_several_gpus_compute_and_train_together() -> None:
    place = Place(Path("d"), "t:n", Path("w"), Path("o"), gpus=8)
    found = commands(_ready("imagenet1k"), "300", place=place)
    trained = next(command for command in found if command.step is Step.train)
    assert str(trained).startswith("torchrun --no-python --nproc-per-node 8 kdcache train ")
    (job, central) = (command for command in found if command.step is Step.precompute)
    assert parse(job)["engine"].value == "processes"
    assert parse(central)["engine"].value == "inline"
    assert (parse(job)["weights"], parse(job)["views"]) == (Path("w"), 56)


GIVEN = ["--data", "d", "--teacher", "t:n"]


def test_reuse_and_step_are_choices() -> None:
    (job, central) = _print("pets", "long", *GIVEN, "--reuse", "12", "--step", "precompute")
    assert job[job.index("--views") + 1] == "2504"
    assert central[central.index("--views") + 1] == "1"


def test_other_views_are_another_cache_and_another_run_and_all_else_is_shared() -> None:
    places = []
    for reuse in ([], ["--reuse", "3"]):
        found = _print("pets", "fast", *GIVEN, *reuse)
        places.append({word for words in found for word in words if "build/recipes" in word})
    own, other = (places[0] - places[1], places[1] - places[0])
    folder = "build/recipes/pets/fast"
    assert own == {f"{folder}/cache-96-views", f"{folder}/run-96-views"}
    assert other == {f"{folder}/cache-336-views", f"{folder}/run-336-views"}


def test_more_options_of_train_win_over_the_recipes() -> None:
    (words,) = _print("pets", "fast", *GIVEN, "--step", "train", "--train-args=--batch-size 64")
    assert parse(Command(Step.train, tuple(words)))["batch_size"] == 64
    done = _invoke("pets", "fast", *GIVEN, '--train-args="')
    assert (done.exit_code, done.stdout) == (2, "")
    assert "TRAIN_ARGS '\"': No closing quotation" in done.stderr


@pytest.mark.parametrize(
    ("cores", "gpus", "workers"), [(1, 1, 1), (4, 1, 3), (64, 1, 8), (64, 8, 7)]
)
def test_workers_are_as_many_as_the_cores_allow(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, workers: int
) -> None:
    monkeypatch.setattr(recipe_run, "num_cores", lambda: cores)
    found = _print("pets", "fast", *GIVEN, "--gpus", str(gpus))
    given = [words[words.index("--workers") + 1] for words in found if "--workers" in words]
    assert given == [str(workers)] * 4


def test_a_name_alone_prints_the_head_and_what_is_missing() -> None:
    done = _invoke("pets")
    assert (done.exit_code, done.stdout) == (2, "")
    *shown, last = done.stderr.splitlines()
    assert shown == [*(line[2:] for line in _head("pets")), ""]
    said, example = last.split("; for example: ")
    assert said == "recipe pets: SCHEDULE, DATA, TEACHER missing"
    words = shlex.split(example)
    assert words[:3] == ["make", "recipe", "NAME=pets"]
    assert {word.split("=")[0] for word in words[3:]} == {"SCHEDULE", "DATA", "TEACHER", "WEIGHTS"}
    assert _make("-n", *words[1:]).returncode == 0
    done = _invoke("pets", "fast", "--data", "d")
    assert "recipe pets: TEACHER missing; " in done.stderr


def test_a_recipe_of_ones_own_is_made_in_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((READY / "pets.toml").read_text())
    (words,) = _print(str(path), "fast", *GIVEN, "--out", "there", "--step", "eval")
    assert words[1] == "there/mine/fast/run-96-views"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("views = 3", "views: "),
        ("[schedule]", "schedule: .* at least 1 item"),
        ("views =", "not a TOML file"),
        (None, "b.toml: no such file; ready recipes are cifar100, flowers102"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text or "")
    with pytest.raises(UsageError, match=words):
        load_ready(path if text is not None else tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../runs/flowers102", "a ready recipe's name has no slash"),
        ("mine/nowhere.toml", "mine/nowhere.toml: no such file"),
        ("flowers", "flowers.toml: no such file; ready recipes are cifar100"),
        ("f" * 5000, "File name too long"),
        ("docs.toml/../..toml", "no such file"),
    ],
)
def test_a_name_that_is_no_recipes_is_refused_in_a_line(name: str, said: str) -> None:
    done = _invoke(name, "fast", *GIVEN)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert len(done.stderr) < 600


@pytest.mark.parametrize("reuse", ["5e-324", "1e-9"])
def test_a_reuse_that_wants_too_many_views_is_named(reuse: str) -> None:
    done = _invoke("pets", "fast", *GIVEN, "--reuse", reuse)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"reuse {float(reuse)} makes" in done.stderr
    assert "REUSE" in done.stderr


def test_a_typing_error_shows_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = (READY / "pets.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("learning-rate", "learning-rat"))
    monkeypatch.setattr(recipe_run, "READY", tmp_path)
    for schedule, said in (
        ("fast", "No such option: --learning-rat"),
        ("slow", "schedule 'slow': choose one of fast, medium, long, trial"),
    ):
        done = _invoke("mine", schedule, *GIVEN)
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr


def _programs(folder: Path, **lines: str) -> str:
    """Return make's word for a folder with this python, and commands that are these lines."""
    for name, line in {"python": f'exec {sys.executable} "$@"', **lines}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return f"BIN={os.path.relpath(folder, ROOT)}"


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "Ready recipes"),
        ("docs/how-to/imagenet.md", None),
        ("pipelines/recipes/runs/README.md", None),
    ],
)
def test_the_line_of_a_page_prints_the_commands(
    page: str, heading: str | None, tmp_path: Path
) -> None:
    [line] = lines_of(page, heading=heading)
    done = _make("-o", "setup", *words_of(line)[1:], _programs(tmp_path))
    assert done.returncode == 0, done.stderr
    note, *script = done.stdout.splitlines()
    assert note.startswith(f"# kdcache is in {ROOT}/")
    assert note.endswith(": put that into PATH")
    printed = [shlex.split(line) for line in script]
    assert [words[words.index("kdcache") + 1] for words in printed] == STEPS


NOTING = 'case $1 in pack) mkdir -p "$3" && : > "$3/dataset.json";; esac'


def test_images_of_another_source_are_refused(tmp_path: Path) -> None:
    """With a kdcache that only makes what tells that images were packed."""
    programs, out = _programs(tmp_path, kdcache=NOTING), tmp_path / "it's $out {data}"
    given = ["NAME=pets", "SCHEDULE=fast", "DATA=a", "TEACHER=t:n", f"OUT={out}", "STEP=pack"]
    done = _make("-o", "setup", "recipe", *given, programs)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (out / "pets").iterdir()} == {
        *("train", "train.packed", "val", "val.packed")
    }

    def asked(*more: str) -> Any:
        return _invoke("pets", "fast", "--teacher", "t:n", "--out", str(tmp_path), *more)

    (out / "pets").rename(tmp_path / "pets")
    assert asked("--data", f"{ROOT}/a").exit_code == 0
    for more in (["--data", "b"], ["--data", "a", "--pack-args=--quality 10"]):
        done = asked(*more, "--step", "train")
        assert (done.exit_code, done.stdout) == (3, "")
    assert f"pets/train: packed of torchvision:OxfordIIITPet --root {ROOT}/a --split" in done.stderr
    assert "--quality 10; give another OUT=" in done.stderr
    for part in ("train", "val"):
        (tmp_path / f"pets/{part}.packed").unlink()
    assert asked("--data", "b").exit_code == 0  # packed elsewhere, and copied


def test_more_options_of_pack_and_precompute_reach_both_parts() -> None:
    more = ["--pack-args=--skip-bad", "--precompute-args=--skip-bad --batch-size=8 --device cpu"]
    for words in _print("pets", "fast", *GIVEN, *more):
        found = parse(Command(Step(words[0]), tuple(words)))
        if words[0] in ("pack", "precompute"):
            assert found["skip_bad"]
        if words[0] in ("plan", "precompute"):
            assert (words[-3:], found["device"]) == (["--batch-size=8", "--device", "cpu"], "cpu")
    (plan,) = _print("pets", "fast", *GIVEN, "--precompute-args=--batch-size auto", "--step=plan")
    assert "--batch-size" not in plan


def test_validation_images_of_folders_have_the_classes_of_training() -> None:
    _, val = _print("imagenet1k", "300", *GIVEN, "--out", "{data}", "--step", "pack")
    assert val == [
        *("pack", "d/val", "{data}/imagenet1k/val"),
        *("--classes-of", "{data}/imagenet1k/train"),
    ]


@pytest.mark.parametrize(("show", "runs"), [("1", False), ("0", True)])
def test_show_only_prints(show: str, runs: bool, tmp_path: Path) -> None:
    programs = _programs(tmp_path, kdcache=f"touch {tmp_path}/ran")
    given = ["NAME=pets", "SCHEDULE=fast", "DATA=d", "TEACHER=t:n", "STEP=verify"]
    done = _make("-o", "setup", "recipe", *given, programs, f"SHOW={show}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").exists() == runs


def test_make_runs_the_commands_until_one_fails(tmp_path: Path) -> None:
    """With a kdcache that notes its words, and fails to verify."""
    notes, out = tmp_path / "notes", tmp_path / "my out"
    (out / "pets/val").mkdir(parents=True)
    (out / "pets/val/dataset.json").touch()
    programs = _programs(tmp_path, kdcache=f'echo "$1" >> {notes}; test "$1" != verify')
    given = ["NAME=pets", "SCHEDULE=fast", "DATA=d", "TEACHER=t:n", f"OUT={out}"]
    done = _make("-o", "setup", "recipe", *given, programs)
    assert done.returncode == 2, done.stderr
    assert notes.read_text().split() == ["pack", "plan", "precompute", "precompute", "verify"]
