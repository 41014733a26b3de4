"""The student benchmark runs end to end, and its arms do the same work."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.bench.material import Material, make_material
from pipelines.bench.photos import SETS, make_photos
from pipelines.bench.record import Record
from pipelines.bench.student import ENCODING, _by_labels
from pipelines.bench.training import Plan, cached_run, gflops, our_loop, usual_loop

ROOT = Path(__file__).parents[2]
BARS = {"step_with_cached_targets_over_labels", "loop_images_per_cpu_second_vs_imagefolder"}
POOLED = "pipelines.bench.material:pooled_teacher"
PLAN = Plan(POOLED, "float32", batch=8, workers=0, epochs=2, stretch=2)


@pytest.mark.slow
def test_a_trial_has_every_bar_and_figure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.bench.student", "--quick", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = Record.model_validate_json((tmp_path / "student.json").read_text())
    assert {bar.name for bar in record.bars} == BARS
    assert record.figures["quick"] is True
    teachers = record.figures["a_teacher_in_the_loop"]
    assert teachers["heavy"]["forward_gflops"] > teachers["light"]["forward_gflops"]
    assert all(teachers[name]["cached_is_faster"] > 0 for name in ("light", "heavy"))
    assert record.figures["the_stream"]["views and targets"]["images_per_s"] > 0


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Sixteen photographs, packed, with a cache."""
    folder = tmp_path_factory.mktemp("material")
    make_photos(SETS["imagenet"], folder / "photos", count=16)
    return make_material(folder, folder / "photos", rows_per_tar=16, encoding=ENCODING, num_views=2)


def test_both_loops_train_on_as_many_images(material: Material) -> None:
    ours = list(our_loop(cached_run(material, PLAN), PLAN))
    usual = list(usual_loop(material.image_folder, PLAN, size=224))
    assert ours == usual == [16, 16]


def test_both_arms_of_a_step_take_the_same_pixels_and_other_losses(material: Material) -> None:
    run = cached_run(material, PLAN)
    batch = next(itertools.islice(run.stream, 1, None))
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    assert _by_labels(run).stream is run.stream
    taught, labelled = (r.objective(logits, batch).mean() for r in (run, _by_labels(run)))
    assert taught.isfinite()
    assert labelled.isfinite()
    assert taught != labelled


def test_operations_are_counted_as_the_literature_counts_them() -> None:
    """ResNet-18 has 1.8 billion products and sums."""
    assert gflops("torchvision.models:resnet18", size=224) == pytest.approx(3.64, rel=0.02)
