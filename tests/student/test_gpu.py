"""Claims about training on a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from kdcache.data.dataset import Dataset
from kdcache.models.ensemble import TeacherSpec
from kdcache.models.running import NoMemoryError
from kdcache.student.config import OptimizerName
from kdcache.student.loop import train
from kdcache.student.sources import Sources
from kdcache.student.world import World, alone_on
from tests import tiny
from tests.student.making import (
    KilledError,
    centre_cache,
    kill_after,
    make_sources,
    metrics_of,
    run_of,
)
from tests.worlds import in_world, note

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEACHER = TeacherSpec("tests.tiny:linear_teacher", None, preprocessing=tiny.PLAIN)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, complete: Path) -> Sources:
    """Replayed views, and a validation set."""
    centre = centre_cache(tmp_path_factory.mktemp("centre") / "cache", dataset)
    return make_sources(dataset, complete, val_data=dataset.root, val_cache=centre)


def _train(folder: Path, sources: Sources, **changes: Any) -> list[dict[str, Any]]:
    train(run_of(folder, sources, world=alone_on("cuda"), **changes))
    return metrics_of(folder)


def _assert_close(found: Path, expected: Path, tolerance: float) -> None:
    ours, theirs = (load_file(f / "student.safetensors") for f in (found, expected))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"precision": "bfloat16", "compile": True, "accumulate": 2, "ema": 0.9},
        {"num_workers": 2, "label_weight": 0.5},
    ],
)
def test_a_gpu_follows_the_cpu(tmp_path: Path, sources: Sources, changes: dict[str, Any]) -> None:
    plain = {"student": "tests.student.nets:plain", "epochs": 4}
    ours = _train(tmp_path / "gpu", sources, **plain, **changes)
    train(run_of(tmp_path / "cpu", sources, **plain, **changes | {"compile": False}))
    theirs = metrics_of(tmp_path / "cpu")
    tolerance = 0.05 if "precision" in changes else 1e-3
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert mine["val_kl_nats"] == pytest.approx(other["val_kl_nats"], rel=tolerance)


def test_the_memory_of_the_gpu_is_told(tmp_path: Path, sources: Sources) -> None:
    lines: list[dict[str, Any]] = []
    train(run_of(tmp_path / "r", sources, world=alone_on("cuda")), report=lines.append)
    assert all(0 < line["memory_bytes"] < 2**30 for line in lines)


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_every_optimizer_learns_and_resumes_on_a_gpu(
    tmp_path: Path, sources: Sources, optimizer: str
) -> None:
    changes = {"optimizer": optimizer, "epochs": 6, "learning_rate": 0.02}
    losses = [line["loss"] for line in _train(tmp_path / "whole", sources, **changes)]
    assert np.mean(losses[-2:]) < losses[0]
    run = run_of(tmp_path / "r", sources, world=alone_on("cuda"), **changes)
    with pytest.raises(KilledError):
        train(run, report=kill_after(3))
    run = run_of(tmp_path / "r", sources, world=alone_on("cuda"), **changes)
    train(run, resume=True)
    _assert_close(tmp_path / "r", tmp_path / "whole", 5e-3)


def test_a_teacher_on_the_gpu_teaches_online_and_writes_through(
    tmp_path: Path, dataset: Dataset
) -> None:
    recipe = tiny.make_recipe()
    online = make_sources(dataset, None, recipe=recipe, teacher=TEACHER)
    ours = _train(tmp_path / "online", online, learn="online", epochs=4)
    made = make_sources(dataset, tmp_path / "c", recipe=recipe, teacher=TEACHER, views=4)
    theirs = _train(tmp_path / "made", made, epochs=4)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-2)


def test_memory_that_runs_out_is_told_with_advice(tmp_path: Path, sources: Sources) -> None:
    changes = {"student": "tests.student.nets:large", "epochs": 1}
    run = run_of(tmp_path / "r", sources, world=alone_on("cuda"), **changes)
    network = run.network
    torch.cuda.empty_cache()

    def greedy() -> Any:
        built = network()
        built.register_forward_pre_hook(lambda *_: torch.empty(2**50, device="cuda"))
        return built

    with pytest.raises(NoMemoryError, match="out of memory on"):
        train(replace(run, network=greedy))


def _train_in(world: World, folder: Path, sources: Sources) -> None:
    train(run_of(folder, sources, world=world, epochs=2, accumulate=2))
    note(folder.parent, world, f"{world.device} {dist.get_backend()}")


def test_one_process_of_torchruns_uses_nccl(tmp_path: Path, sources: Sources) -> None:
    assert in_world(1, _train_in, tmp_path / "r", sources, device="cuda") == [0]
    assert (tmp_path / "told-0").read_text() == "cuda:0 nccl"
    _train(tmp_path / "alone", sources, epochs=2, accumulate=2)
    _assert_close(tmp_path / "r", tmp_path / "alone", 5e-3)
