"""Claims about runs that must not go on: two in one folder, changed labels, broken networks."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset, save_dataset
from kdcache.errors import UsageError
from kdcache.files import alone
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.student.checkpoint import checkpoints
from kdcache.student.loop import train
from tests import tiny
from tests.student.making import KilledError, kill_after, make_sources, run_of


class FailsLater(nn.Module):
    """Works on one image, fails on a batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3, num_classes)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        if len(images_N3HW) > 1:
            raise RuntimeError("no more than one")
        logits: Tensor = self.inner(images_N3HW.mean((2, 3)))
        return logits


def fails_later(num_classes: int) -> nn.Module:
    return FailsLater(num_classes)


class OneRow(FailsLater):
    """Gives the logits of one image, whatever it is given."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        return super().forward(images_N3HW[:1])


def one_row(num_classes: int) -> nn.Module:
    return OneRow(num_classes)


class Steep(FailsLater):
    """Gives finite logits, whose gradient is not."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        logits: Tensor = self.inner(images_N3HW.mean((2, 3)))
        return logits + torch.sqrt(self.inner.bias * 0)


def steep(num_classes: int) -> nn.Module:
    return Steep(num_classes)


def nothing_to_train(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(num_classes))


def hold(folder: Path, seconds: float) -> None:
    with alone(folder, "held"):
        (folder / "held").touch()
        time.sleep(seconds)


def test_two_runs_in_one_folder_do_not_mix(
    complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    sources = make_sources(dataset, complete)
    with pytest.raises(KilledError):
        train(run_of(tmp_path / "run", sources), report=kill_after(1))
    other = tiny.start(hold, tmp_path / "run", 60.0)
    try:
        while not (tmp_path / "run/held").exists():
            time.sleep(0.01)
        before = (tmp_path / "run/metrics.jsonl").read_bytes()
        with pytest.raises(UsageError, match="another process trains there"):
            train(run_of(tmp_path / "run", sources), resume=True)
        assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    finally:
        other.kill()
        other.join()
    train(run_of(tmp_path / "run", sources), resume=True)


def test_changed_labels_are_not_resumed_with(dataset: Dataset, tmp_path: Path) -> None:
    plain = tiny.make_recipe()
    options: dict[str, Any] = {"learn": "labels", "epochs": 2}
    copy = replace(dataset, labels=dataset.labels.copy())
    save_dataset(copy, tmp_path / "data")
    sources = replace(make_sources(dataset, None, recipe=plain), data=tmp_path / "data")
    with pytest.raises(KilledError):
        train(run_of(tmp_path / "run", sources, **options), report=kill_after(1))
    changed = replace(dataset, labels=np.zeros_like(dataset.labels))
    save_dataset(changed, tmp_path / "data")
    assert load_dataset(tmp_path / "data").id == dataset.id
    with pytest.raises(UsageError, match="holds a run with labels"):
        train(run_of(tmp_path / "run", sources, **options), resume=True)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("fails_later", "7 images at once: RuntimeError.*no more than one"),
        ("one_row", r"gave \(1, 5\) for 7 images"),
        ("nothing_to_train", "no parameters to train"),
    ],
)
def test_a_network_that_cannot_be_trained_is_named(
    network: str, words: str, complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    run = run_of(
        tmp_path / "run",
        make_sources(dataset, complete),
        student=f"tests.student.test_refusals:{network}",
    )
    with pytest.raises(UsageError, match=words):
        train(run)


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 1e-30}, {"clip": float("inf")}, {"learning_rate": float("nan")}],
)
def test_settings_that_teach_nothing_are_refused(
    changes: dict[str, float], complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        run_of(tmp_path / "run", make_sources(dataset, complete), **changes)


def test_a_reuse_that_is_no_number_is_refused(
    complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--max-reuse nan"):
        run_of(tmp_path / "run", make_sources(dataset, complete), max_reuse=float("nan"))


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_a_dead_renderer_is_told_in_words(complete: Path, dataset: Dataset) -> None:
    options = StreamOptions(batch_size=4, num_epochs=500, num_workers=1, window=1)
    batches = iter(replay_stream(open_cache(complete), dataset, options))
    next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"resource_tracker" not in command and b"forkserver" not in command:
            os.kill(int(child), signal.SIGKILL)
    with pytest.raises(UsageError, match="a process that renders views died"):
        for _ in batches:
            pass


def test_a_gradient_that_is_not_finite_is_not_saved(
    complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """The loss of an epoch's only step is finite: the weights after it are not."""
    run = run_of(
        tmp_path / "run",
        make_sources(dataset, complete),
        student="tests.student.test_refusals:steep",
        batch_size=20,
        epochs=1,
    )
    with pytest.raises(
        UsageError, match=r"a gradient is not finite by step 1; .* lower learning rate"
    ):
        train(run)
    assert checkpoints(tmp_path / "run") == []
