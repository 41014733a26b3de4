import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.files import alone
from kdcache.models.notes import Notes
from kdcache.models.weights import weights_notes
from kdcache.student.config import TrainConfig
from tests import tiny
from tests.cli import making
from tests.cli.conftest import Outcome, Run
from tests.cli.making import PLAIN, TEACHER, check_refusal, write_recipe
from tests.student.making import UNMIXED, centre_cache
from tests.tiny import files_of

STUDENT = "tests.student.nets:small"


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The path of a cache of one central view of the dataset."""
    return centre_cache(tmp_path_factory.mktemp("centre") / "cache", dataset)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A recipe of views without mixing, as a file."""
    return write_recipe(tmp_path / "fresh.toml", tiny.make_recipe(**UNMIXED))


Train = Callable[..., Outcome]


@pytest.fixture
def train(kdcache: Run, tmp_path: Path, dataset: Dataset) -> Train:
    """A function that runs train over the dataset into tmp_path / "run"; options go last."""

    def run(*options: object) -> Outcome:
        return kdcache(
            *("train", "--data", dataset.root, "--student", STUDENT, "--epochs", "2"),
            *("--batch-size", "7", "--workers", "0", "--device", "cpu"),
            *("--out", tmp_path / "run", *options),
        )

    return run


def test_training_prints_the_reuse_the_epochs_and_the_result(
    train: Train, tmp_path: Path, complete: Path
) -> None:
    outcome = train("--cache", complete, "--epochs", "6")
    assert outcome.code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0] == (
        "6 epochs of 24 samples on cpu; 4 stored views, each used 1.5 times; "
        "at most 0 MiB of rendered blocks"
    )
    assert [line.split(":")[0] for line in lines[1:7]] == [f"epoch {n}/6" for n in range(1, 7)]
    assert all(": loss " in line and "images_per_s" in line for line in lines[1:7])
    assert lines[7] == f"student  {tmp_path / 'run' / 'student.safetensors'}"
    run, named = tmp_path / "run", f"--student {STUDENT}"
    following = f"eval {run} --data IMAGES {named}, kdcache export {run} student.pt2 {named}"
    assert outcome.stderr == f"next: kdcache {following}, kdcache show {run}\n"


def test_the_teachers_own_accuracy_is_told_once(
    train: Train, complete: Path, centre: Path, dataset: Dataset
) -> None:
    outcome = train("--cache", complete, "--val-data", dataset.root, "--val-cache", centre)
    lines = outcome.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[1:4]] == [
        "epoch 1/2", "teacher, on the same images", "epoch 2/2"
    ]  # fmt: skip
    assert "teacher" not in lines[1] + lines[3]
    assert f"--data {dataset.root} --cache {centre} --student" in outcome.stderr


def test_with_quiet_no_next_step_is_named(train: Train, complete: Path) -> None:
    assert train("--cache", complete, "--quiet").stderr == ""


def test_with_json_the_last_metrics_are_alone_on_stdout(
    train: Train, tmp_path: Path, complete: Path, centre: Path, dataset: Dataset
) -> None:
    outcome = train(
        *("--cache", complete, "--val-data", dataset.root, "--val-cache", centre, "--json")
    )
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert outcome.value == {"run": str(tmp_path / "run"), "reuse": 0.5, **json.loads(metrics[-1])}
    assert outcome.value["val_samples"] == 24
    assert len(outcome.stderr.splitlines()) == 4
    assert "next:" not in outcome.stderr


ROLLED = [f"class{n}" for n in (4, 0, 1, 2, 3)]


@pytest.mark.parametrize("learn", ["cache", "labels"])
def test_validation_of_classes_numbered_otherwise_is_refused_before_the_first_step(
    train: Train, tmp_path: Path, complete: Path, centre: Path, fresh: Path, dataset: Dataset,
    learn: str,
) -> None:  # fmt: skip
    data = tiny.relabelled(dataset, tmp_path / "shift", ROLLED)
    taught = ["--cache", complete] if learn == "cache" else ["--learn", "labels", "--recipe", fresh]
    outcome = train(*taught, "--val-data", data, "--val-cache", centre)
    words = "5 of 5 classes differ: class 0 is 'class4', 1 is 'class0', 2 is 'class1'; of the"
    check_refusal(outcome, 3, words, f"kdcache pack … --classes-of {dataset.root}")
    assert not (tmp_path / "run").exists()


def test_a_cache_serves_data_that_were_relabelled_since(
    train: Train, tmp_path: Path, complete: Path, centre: Path, dataset: Dataset
) -> None:
    data = tiny.relabelled(dataset, tmp_path / "again", ROLLED)
    given = ["--cache", complete, "--data", data]
    check_refusal(
        train(*given, "--label-weight", "0.5"), 3, f"of {complete} class 0 is 'class0'",
        "leave --label-weight out",
    )  # fmt: skip
    measured = train(*given, "--val-data", data, "--val-cache", centre)
    check_refusal(measured, 3, "of the student class 0 is 'class0'", "with --labels")
    assert train(*given).code == 0
    names = weights_notes(tmp_path / "run/student.safetensors", Notes).classes
    assert names == dataset.classes  # what the targets mean
    spelt = tiny.relabelled(dataset, tmp_path / "spelt", [f"Class {n}" for n in range(5)])
    given = ["--cache", complete, "--data", spelt, "--label-weight", "0.5"]
    assert train(*given, "--out", tmp_path / "other").code == 0


def test_mapped_classes_have_the_names_of_the_mapping(
    train: Train, tmp_path: Path, complete: Path, centre: Path, dataset: Dataset
) -> None:
    mapping = [f"{name} = [{place}]" for place, name in enumerate(ROLLED)]
    labels = tmp_path / "labels.toml"
    labels.write_text("\n".join(["[classes]", *mapping]))
    given = ["--cache", complete, "--labels", labels, "--val-cache", centre]
    outcome = train(*given, "--val-data", dataset.root)
    check_refusal(outcome, 3, "of the student class 0 is 'class4'")
    check_refusal(train(*given[:4], "--label-weight", "0.5"), 3, "of --labels class 0 is 'class4'")
    data = tiny.relabelled(dataset, tmp_path / "mapped", ROLLED)
    assert train(*given, "--val-data", data).code == 0
    assert weights_notes(tmp_path / "run/best.safetensors", Notes).classes == tuple(ROLLED)


@pytest.mark.parametrize("learn", ["fixed", "labels"])
def test_the_other_ways_of_learning_take_fresh_views(
    train: Train, centre: Path, fresh: Path, learn: str
) -> None:
    options = ["--learn", learn, "--recipe", fresh]
    options += ["--cache", centre] if learn == "fixed" else []
    outcome = train(*options, "--json")
    assert outcome.code == 0
    assert outcome.value["reuse"] is None
    assert "2 epochs of 24 samples on cpu; fresh views; at most 0 MiB" in outcome.stderr


def test_every_option_reaches_the_settings(train: Train, tmp_path: Path, complete: Path) -> None:
    deciding = {
        "learning_rate": 0.5, "weight_decay": 0.25, "momentum": 0.5, "layer_decay": 0.75,
        "optimizer": "sgd", "schedule": "linear", "warmup": 0.125, "clip": 2.0, "ema": 0.5,
        "temperature": 2.0, "direction": "reverse", "label_weight": 0.5, "learn":
        "function-matching", "seed": 9, "window": 5, "lanes": 3, "first_view": 3,
        "views_per_load": 2, "precision": "bfloat16", "eval_every": 2, "batch_size": 6,
    }  # fmt: skip
    free = {"accumulate": 2, "keep": 3, "log_steps": 2, "save_every": 2, "save_steps": 3}
    options = [str(word) for name, value in (deciding | free).items()
               for word in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    outcome = train("--cache", complete, "--mean", "0.1,0.2,0.3", "--std", "1,2,3", *options)
    assert outcome.code == 0, outcome.stderr
    found = json.loads((tmp_path / "run/config.json").read_text())
    assert {name: found[name] for name in deciding} == deciding
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [1, 2, 3])
    assert (found["student"], found["epochs"]) == (STUDENT, 2)
    session = json.loads((tmp_path / "run/sessions.jsonl").read_text())
    assert {name: session[name] for name in free} == free
    assert (session["num_workers"], session["processes"], session["step"]) == (0, 1, 0)
    assert session["versions"].keys() >= {"torch", "kdcache", "numpy"}
    named = {*deciding, *free, "student", "epochs", "mean", "std", "num_workers", "compile"}
    assert named == set(TrainConfig.model_fields)


def test_a_run_explains_itself(
    train: Train, tmp_path: Path, complete: Path, centre: Path, dataset: Dataset
) -> None:
    options = ["--val-data", dataset.root, "--val-cache", centre, "--tensorboard"]
    assert train("--cache", complete, *options).code == 0
    run = tmp_path / "run"
    found = json.loads((run / "config.json").read_text())
    cache = open_cache(complete)
    assert found["dataset"] == dataset.id
    assert found["cache"] == cache.info.id
    assert found["teacher"] == {k: cache.info.teacher[k] for k in ("id", "spec")}
    assert found["recipe"] == cache.info.recipe.canonical()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "classes.csv").read_text().startswith("class,name,samples,top1,agreement")
    assert len(list((run / "tensorboard").iterdir())) == 1
    names = {"config.json", "sessions.jsonl", "metrics.jsonl", "checkpoints", "best.safetensors"}
    names |= {"student.safetensors", "classes.csv", "curves.png", "tensorboard", ".lock"}
    assert {path.name for path in run.iterdir()} == names


def test_a_run_is_refused_resumed_and_finished(
    train: Train, tmp_path: Path, complete: Path
) -> None:
    assert train("--cache", complete).code == 0
    before = files_of(tmp_path / "run")
    check_refusal(train("--cache", complete), 2, "run: holds a run; go on with --resume")
    check_refusal(
        train("--cache", complete, "--clip", "3", "--resume"), 2, "with clip 1.0, this one has 3.0"
    )
    assert files_of(tmp_path / "run") == before
    (tmp_path / "run/student.safetensors").unlink()
    outcome = train("--cache", complete, "--resume", "--json")
    assert (outcome.code, outcome.value) == (0, {"run": str(tmp_path / "run"), "reuse": 0.5})
    assert files_of(tmp_path / "run") == before


def test_an_interrupted_run_says_how_to_go_on(
    train: Train, tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps make an epoch: the second is cut."""
    spec = ["--student", "tests.cli.making:interrupted_student"]
    monkeypatch.setattr(making, "INTERRUPT_AT", 5)
    outcome = train("--cache", complete, *spec)
    assert outcome.code == 130
    assert (
        outcome.stdout.splitlines()[-1] == f"stopped; go on from {tmp_path / 'run'} with --resume"
    )
    assert not (tmp_path / "run/student.safetensors").exists()
    assert train("--cache", complete, *spec, "--resume").code == 0  # three steps: not the fifth


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_step_and_with_its_own_code(
    train: Train, tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Three steps make an epoch: the fifth is the second of the second."""
    spec = ["--student", "tests.cli.making:signalled_student"]
    monkeypatch.setattr(making, "SIGNALLED", (5, number))
    outcome = train("--cache", complete, *spec)
    assert outcome.code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert outcome.stdout.splitlines()[-1].startswith("stopped; go on from")
    assert (tmp_path / "run/checkpoints/step-000000005.pt").exists()
    assert (tmp_path / "run/curves.png").exists()
    outcome = train("--cache", complete, *spec, "--resume")
    assert outcome.code == 0
    newest = tmp_path / "run/checkpoints/step-000000005.pt"
    assert outcome.stdout.splitlines()[1] == f"goes on from {newest}"
    assert (tmp_path / "run/student.safetensors").exists()


# --- teachers and first weights ------------------------------------------------------------


def test_a_live_teacher_needs_no_cache(train: Train, fresh: Path) -> None:
    options = ["--learn", "online", "--teacher", TEACHER, "--recipe", fresh, *PLAIN]
    outcome = train(*options)
    assert outcome.code == 0
    assert "fresh views" in outcome.stdout


def test_missing_views_are_written_through(
    train: Train, tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    """The teacher's normalisation is the cache's, if it is not given."""
    recipe = write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())
    made = ["--cache", tmp_path / "new", "--teacher", TEACHER, "--write-through"]
    check_refusal(train(*made), 2, "no cache here; to make one while training, give --recipe and")
    first = train(*made, "--recipe", recipe, "--views", "4", *PLAIN)
    assert first.code == 0, first.stderr
    assert len(open_cache(tmp_path / "new").missing()) == 0
    shutil.rmtree(tmp_path / "run")
    next((tmp_path / "new/commits").glob("1-0.json")).unlink()
    check_refusal(train("--cache", tmp_path / "new"), 4, "run kdcache precompute again")
    assert train(*made).code == 0
    shutil.rmtree(tmp_path / "run")
    assert train("--cache", tmp_path / "new").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher", TEACHER], "add one of them"),
        (["--teacher", TEACHER, "--learn", "online", "--write-through"], "add one of them"),
        (["--teacher-weights", "w.pt"], "--teacher-weights: there is no teacher; add --teacher"),
        (["--write-through"], "--write-through: there is no teacher; add --teacher"),
        (["--views", "4"], "--views: is of the cache that a --teacher makes"),
        (["--label-weight", "2"], "label_weight: .* less than or equal to 1"),
        (["--lanes", "2"], "batch_size is 7, expected a multiple of the 2 lanes"),
        (["--accumulate", "8"], "has 7 samples of a step"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    train: Train, tmp_path: Path, complete: Path, options: list[str], words: str
) -> None:
    outcome = train("--cache", complete, *options)
    assert outcome.code == 2
    assert re.search(words, outcome.stderr)
    assert not (tmp_path / "run").exists()


def test_first_weights_that_do_not_fit_are_named(
    train: Train, tmp_path: Path, complete: Path
) -> None:
    assert train("--cache", complete).code == 0
    (tmp_path / "run").rename(tmp_path / "before")
    weights = tmp_path / "before/student.safetensors"
    outcome = train("--cache", complete, "--init", weights)
    assert str(weights) not in outcome.stdout
    shutil.rmtree(tmp_path / "run")
    outcome = train("--cache", complete, "--init", weights, "--student", "tests.student.nets:plain")
    assert outcome.code == 0
    assert "shaped otherwise: 1.weight (8,) instead of" not in outcome.stdout
    assert f"{weights}: " in outcome.stdout
    assert "the rest of the student starts from it" in outcome.stdout


def _hold(folder: Path, held: Path, release: Path) -> None:
    with alone(folder, "never said"):
        held.touch()
        while not release.exists():
            time.sleep(0.02)


def test_a_folder_that_another_process_trains_in_is_refused(
    train: Train, tmp_path: Path, complete: Path
) -> None:
    assert train("--cache", complete).code == 0
    before = files_of(tmp_path / "run")
    held, release = tmp_path / "held", tmp_path / "release"
    child = tiny.start(_hold, tmp_path / "run", held, release)
    while not held.exists():
        assert child.is_alive()
        time.sleep(0.02)
    outcome = train("--cache", complete, "--resume")
    release.touch()
    child.join()
    check_refusal(outcome, 2, str(tmp_path / "run"), "another process trains there")
    assert files_of(tmp_path / "run") == before
    assert train("--cache", complete, "--resume").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["to learn from cache, give a cache"]),
        (["--cache", "/no/cache"], ["/no/cache: no cache here", "kdcache precompute"]),
        (["--cache", "CACHE", "--max-reuse", "0.4"], ["use each 0.5 times", "--max-reuse 0.4"]),
        (["--cache", "CACHE", "--data", "/no"], ["/no/dataset.json: missing"]),
        (["--cache", "CACHE", "--epochs", "0"], ["epochs: ", "found 0"]),
        (["--cache", "CACHE", "--batch-size", "0"], ["batch_size: ", "found 0"]),
        (["--cache", "CACHE", "--batch-size", "25"], ["25", "24 usable samples"]),
        (["--cache", "CACHE", "--workers", "-1"], ["num_workers: ", "found -1"]),
        (["--cache", "CACHE", "--temperature", "9"], ["temperature 9", "1 to 4"]),
        (["--cache", "CACHE", "--mean", "1"], ["--mean '1': expected three numbers"]),
        (["--cache", "CACHE", "--device", "abacus"], ["device 'abacus'"]),
        (["--cache", "CACHE", "--student", "resnet18"], ["expected torchvision:NAME"]),
        (["--cache", "CACHE", "--student", "tests.student.nets:wide"], ["(1, 6)", "5 classes"]),
        (
            ["--cache", "CACHE", "--student", "torchvision:inception_v3"],
            ["inception_v3: fails on 12 x 12"],
        ),
        (["--cache", "CACHE", "--val-cache", "CACHE"], ["name them, too (--val-data)"]),
        (["--learn", "labels"], ["give a recipe of the views"]),
        (["--learn", "labels", "--recipe", "/no.toml"], ["/no.toml: neither a file nor a preset"]),
        (["--learn", "fixed", "--cache", "CACHE"], ["give a recipe of the student's views"]),
    ],
)
def test_a_run_that_cannot_start_makes_no_folder(
    train: Train, tmp_path: Path, complete: Path, options: list[str], words: list[str]
) -> None:
    before = files_of(tmp_path)
    outcome = train(*(complete if word == "CACHE" else word for word in options))
    check_refusal(outcome, 2, *words)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_other_images_are_a_mismatch(train: Train, tmp_path: Path, complete: Path) -> None:
    fewer = tiny.make_dataset(tmp_path / "fewer", 6)
    outcome = train("--cache", complete, "--data", fewer.root)
    check_refusal(outcome, 3, "18 of the cache's 24 samples are not in this dataset")
    other = tiny.make_dataset(tmp_path / "other", 24, seed=2)
    outcome = train("--cache", complete, "--data", other.root)
    check_refusal(outcome, 3, "image file", "pass that dataset")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_the_caches_is_a_mismatch(
    train: Train, tmp_path: Path, complete: Path, fresh: Path
) -> None:
    check_refusal(train("--cache", complete, "--recipe", fresh), 3, "leave --recipe out")
    assert not (tmp_path / "run").exists()


def test_missing_views_are_incomplete(train: Train, tmp_path: Path, dataset: Dataset) -> None:
    tiny.precompute_first(tmp_path / "part", dataset, tiny.make_recipe(), spans=5)
    outcome = train("--cache", tmp_path / "part", "--epochs", "3")
    check_refusal(
        outcome, 4, str(tmp_path / "part"), "views 2", "2-1", "run kdcache precompute again"
    )
    assert not (tmp_path / "run").exists()
    assert train("--cache", tmp_path / "part", "--epochs", "2").code == 0


def test_a_damaged_tile_stops_the_run_and_names_it(
    train: Train, tmp_path: Path, complete: Path
) -> None:
    shutil.copytree(complete, tmp_path / "cache")
    path = tmp_path / "cache/tails/c/1/0/0/0"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    for workers in ("0", "2"):
        outcome = train("--cache", tmp_path / "cache", "--workers", workers)
        check_refusal(outcome, 5, str(path), "checksum differs", "run kdcache repair")
        assert not (tmp_path / "run/student.safetensors").exists()
        shutil.rmtree(tmp_path / "run")


def test_a_damaged_index_or_checkpoint_is_corrupt(
    train: Train, tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    shutil.copytree(dataset.root, tmp_path / "data")
    path = tmp_path / "data/dataset.npz"
    path.write_bytes(path.read_bytes()[:-1])
    outcome = train("--cache", complete, "--data", tmp_path / "data")
    check_refusal(outcome, 5, str(path), "run kdcache index again")
    assert train("--cache", complete).code == 0
    os.truncate(tmp_path / "run/checkpoints/step-000000006.pt", 1000)
    outcome = train("--cache", complete, "--resume")
    words = "delete it to go on from step-000000003.pt"
    check_refusal(outcome, 5, "step-000000006.pt: cannot be read", words)


def test_tars_that_are_gone_are_a_data_error(
    train: Train, tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    shutil.copytree(dataset.root, tmp_path / "data")
    (tmp_path / "data/000001.tar").unlink()
    outcome = train("--cache", complete, "--data", tmp_path / "data")
    check_refusal(outcome, 7, str(tmp_path / "data/000001.tar"))


def test_what_the_system_refuses_is_one_line_too(
    train: Train, tmp_path: Path, complete: Path
) -> None:
    """Metrics cannot be written where a folder stands."""
    assert train("--cache", complete).code == 0
    shutil.rmtree(tmp_path / "run/checkpoints")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").mkdir()
    check_refusal(train("--cache", complete, "--resume"), 2, str(tmp_path / "run/metrics.jsonl"))
