"""Claims about the precompute benchmark: a trial of it runs and keeps a whole record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.bench.record import Record

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_trial_keeps_every_bar_and_figure(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.bench.precompute", "--quick", "--out", tmp_path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "precompute.json").read_text()
    record = Record.model_validate(json.loads(text))
    assert [bar.name for bar in record.bars] == [
        "heavy_teacher_utilisation",
        "job_of_its_renderers_limit",
        "two_processes_over_one",
        "memory_growth_with_images",
        "memory_growth_with_views",
    ]
    assert all(bar.value > 0 for bar in record.bars[:3])
    assert record.figures["quick"] is True
    assert set(record.figures["several_views"]) >= {"G = 1", "G = 16", "G = 8, rendering alone"}
    assert str(tmp_path) not in text
