"""Claims about kdcache train under a real torchrun, in a network of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcache.data.dataset import Dataset
from tests.student.making import centre_cache
from tests.worlds import ISOLATED, can_isolate

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not can_isolate(), reason="no network namespaces here, which need root"),
]


def _start(*options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", "29511", "--no-python"]
    command += [str(Path(sys.executable).with_name("kdcache")), "train"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*ISOLATED, *command, *map(str, options)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_train_are_stopped_and_go_on(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    """Each line is printed once; SIGTERM to torchrun reaches both after the same step."""
    centre = centre_cache(tmp_path / "centre", dataset)
    options = ["--data", dataset.root, "--cache", complete, "--student", "tests.student.nets:small"]
    options += ["--batch-size", "8", "--device", "cpu", "--workers", "1", "--out", tmp_path / "run"]
    options += ["--val-data", dataset.root, "--val-cache", centre, "--epochs", "100000"]
    first = _start(*options)
    metrics = tmp_path / "run/metrics.jsonl"
    while first.poll() is None and not (metrics.exists() and len(metrics.read_text()) > 500):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    out, errors = first.communicate(timeout=120)
    assert first.returncode != 0
    lines = out.splitlines()
    assert lines[0].startswith("100000 epochs of 24 samples on 2 processes; ")
    [taught] = [line for line in lines if line.startswith("teacher, on the same images: top-1 ")]
    lines.remove(taught)
    epochs = [re.match(r"epoch (\d+)/", line) for line in lines[1:-1]]
    assert [int(found[1]) for found in epochs if found] == list(range(1, len(epochs) + 1)), errors
    assert lines[-1] == f"stopped; go on from {tmp_path / 'run'} with --resume"
    newest = max((tmp_path / "run/checkpoints").iterdir()).name
    second = _start(*options, "--resume")
    while (
        second.poll() is None
        and len((tmp_path / "run/sessions.jsonl").read_text().splitlines()) < 2
    ):
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=120)
    sessions = [json.loads(x) for x in (tmp_path / "run/sessions.jsonl").read_text().splitlines()]
    assert [session["processes"] for session in sessions] == [2, 2]
    assert f"step-{sessions[1]['step']:09d}.pt" == newest
