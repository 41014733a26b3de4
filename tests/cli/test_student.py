import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.data.dataset import Dataset
from kdcache.files import alone
from tests import tiny
from tests.cli import making
from tests.cli.conftest import Outcome, Run
from tests.cli.making import check_refusal, files_of, write_recipe
from tests.student.making import UNMIXED, centre_cache

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
            *("--batch-size", "7", "--workers", "0", "--out", tmp_path / "run", *options),
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
    assert outcome.stderr == ""


def test_with_json_the_last_metrics_are_alone_on_stdout(
    train: Train, tmp_path: Path, complete: Path, centre: Path, dataset: Dataset
) -> None:
    outcome = train(
        *("--cache", complete, "--val-data", dataset.root, "--val-cache", centre, "--json")
    )
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert outcome.value == {"run": str(tmp_path / "run"), "reuse": 0.5, **json.loads(metrics[-1])}
    assert outcome.value["val_samples"] == 24
    assert len(outcome.stderr.splitlines()) == 3


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
    given = {
        "learning_rate": 0.5, "weight_decay": 0.25, "warmup": 0.125, "clip": 2.0,
        "temperature": 2.0, "seed": 9, "window": 5, "first_view": 3, "precision": "bfloat16",
        "eval_every": 2, "save_every": 2, "batch_size": 6,
    }  # fmt: skip
    options = [str(word) for name, value in given.items()
               for word in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    outcome = train("--cache", complete, "--mean", "0.1,0.2,0.3", "--std", "1,2,3", *options)
    assert outcome.code == 0
    found = json.loads((tmp_path / "run/config.json").read_text())
    assert {name: found[name] for name in given} == given
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [1, 2, 3])
    assert (found["student"], found["epochs"], found["learn"]) == (STUDENT, 2, "cache")


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
        (["--cache", "CACHE", "--val-cache", "CACHE"], ["needs both --val-data and --val-cache"]),
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
    os.truncate(tmp_path / "run/checkpoint.pt", 1000)
    outcome = train("--cache", complete, "--resume")
    check_refusal(outcome, 5, "checkpoint.pt: cannot be read", "train again")


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
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run/metrics.jsonl").mkdir()
    check_refusal(train("--cache", complete, "--resume"), 2, str(tmp_path / "run/metrics.jsonl"))
