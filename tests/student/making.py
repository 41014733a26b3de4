"""Runs of tiny students over tiny caches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdcache.data.dataset import Dataset
from kdcache.models.teacher import Teacher, load_teacher
from kdcache.student.checkpoint import METRICS, checkpoints
from kdcache.student.config import make_config
from kdcache.student.folder import WEIGHTS
from kdcache.student.run import MEASURED, Run
from kdcache.student.setup import make_run
from kdcache.student.sources import Sources
from kdcache.student.world import World
from tests import tiny

CENTRE = {"crop": {"law": "centre", "resize": 14}, "flip": None, "mix": None}
UNMIXED = {"mix": None}


def contrast_teacher() -> Teacher:
    """Return a teacher whose classes differ from image to image."""
    spec = "tests.student.nets:contrast"
    return load_teacher(spec, None, num_classes=tiny.NUM_CLASSES, preprocessing=tiny.PLAIN)


def centre_cache(path: Path, dataset: Dataset, **options: Any) -> Path:
    """Return a new cache of one central view, for validation and fixed teachers."""
    recipe = tiny.make_recipe(**CENTRE)
    return tiny.precompute(path, dataset, recipe, num_views=1, span_views=1, **options).path


def make_sources(dataset: Dataset, cache: Path | None, **other: Any) -> Sources:
    """Return where a run's data lie."""
    return Sources(dataset.root, cache=cache, **other)


def run_of(
    folder: Path,
    sources: Sources,
    *,
    world: World | None = None,
    max_reuse: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
    **changes: Any,
) -> Run:
    """Return a short run of the small student."""
    values = {
        "student": "tests.student.nets:small",
        "epochs": 5,
        "batch_size": 7,
        "learning_rate": 0.01,
        "seed": 1,
        "window": 3,
        **changes,
    }
    config = make_config(**values)
    return make_run(config, sources, folder=folder, world=world, max_reuse=max_reuse, tell=tell)


class KilledError(Exception):
    """Stands for the death of a run."""


def kill_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    """Return a report callback that raises after an epoch, from 1, its metrics written."""

    def report(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == epoch:
            raise KilledError

    return report


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, but for what they measure of the machine."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def state_of(folder: Path) -> dict[str, Any]:
    """Return a run's newest checkpoint, but for the length of its metrics, which hold speeds."""
    state: dict[str, Any] = torch.load(checkpoints(folder)[-1], weights_only=True)
    state.pop("metrics_bytes")
    return state


def weights_of(folder: Path) -> bytes:
    """Return the bytes of a run's final weights."""
    return (folder / WEIGHTS).read_bytes()


def assert_equal(found: Any, expected: Any) -> None:
    """Compare nested states, tensors bit for bit."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            assert_equal(found[key], expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal(ours, theirs)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
