"""The sharing benchmark runs end to end, and counts what it says."""

import os
import subprocess
import sys
from pathlib import Path

from pipelines.bench.record import Record
from pipelines.bench.sharing import QUICK, SPAN_VIEWS

ROOT = Path(__file__).parents[2]


def test_a_short_trial_says_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.bench.sharing", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = Record.model_validate_json((tmp_path / "sharing.json").read_text())
    bars = {bar.name: bar for bar in record.bars}
    assert bars.keys() == {
        "in_place_rows_per_s_1024",
        "requests_per_array_and_tile",
        "data_wait_share_in_place",
    }
    assert bars["requests_per_array_and_tile"].runs == (1.0,)
    tiles = record.figures["tiles"]
    assert tiles["tiles"] == QUICK.tars * SPAN_VIEWS
    assert tiles["requests"] == 3 * tiles["tiles"] + 2 * QUICK.tars  # a record, and witnesses
    assert tiles["rows_per_s_one_by_one"] < QUICK.rows / (3 * record.figures["delay_ms"] / 1e3)
    assert bars["in_place_rows_per_s_1024"].value > tiles["rows_per_s_one_by_one"]
    assert record.figures["student"]["first_batch_s"] > record.figures["delay_ms"] / 1e3
