"""Claims about TensorBoard's events, read back by TensorBoard."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import CorruptError, UsageError
from kdcache.report.runs import parse_line
from kdcache.report.tensorboard import scalars, tensorboard_writer
from tests.report.making import metrics, write_run

Points = dict[str, list[tuple[int, float]]]


def events(folder: Path) -> Points:
    """Return the steps and values of each tag that TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def expected(lines: Sequence[dict[str, Any]]) -> Points:
    points: Points = {}
    for line in lines:
        for tag, value in scalars(parse_line(line)).items():
            points.setdefault(tag, []).append((line["step"], pytest.approx(value)))
    return points


def go_on(folder: Path, lines: Sequence[dict[str, Any]], *, kept: int) -> None:
    """Write lines as a trainer does that goes on after the lines that it keeps."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    with tensorboard_writer(folder) as write:
        for line in lines:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            write(line)


def test_each_number_has_its_tag() -> None:
    line = {"step": 30, "loss": 1.2, "learning_rate": 0.1}
    assert scalars(parse_line(line)) == {"step/loss": 1.2, "step/learning_rate": 0.1}
    line |= {"epoch": 3, "grad_norm": 0.7, "images_per_s": 800, "wait_share": 0.1}
    line |= {"memory_bytes": 5, "val_top1": 0.5, "val_kl_nats": None}
    assert scalars(parse_line(line)) == {
        "train/loss": 1.2, "train/learning_rate": 0.1, "train/grad_norm": 0.7,
        "speed/images_per_s": 800, "speed/wait_share": 0.1, "speed/memory_bytes": 5,
        "val/top1": 0.5,
    }  # fmt: skip


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", []), metrics(4)
    go_on(folder, lines, kept=0)
    assert events(folder) == expected(lines)
    assert {"step/loss", "train/loss", "val/kl_nats", "speed/images_per_s"} <= events(folder).keys()


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", []), metrics(4)
    go_on(folder, lines[:11], kept=0)  # killed within an epoch, its last checkpoint before that
    go_on(folder, lines[8:14], kept=8)
    go_on(folder, lines[12:], kept=12)
    assert events(folder) == expected(lines)


def test_a_run_that_had_no_events_gets_those_of_its_past(tmp_path: Path) -> None:
    lines = metrics(4)
    folder = write_run(tmp_path / "run", lines)
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "notes.txt").write_text("mine")
    go_on(folder, lines[8:], kept=8)
    assert events(folder) == expected(lines)
    assert (folder / "tensorboard" / "notes.txt").read_text() == "mine"


def test_events_stay_where_a_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", []), metrics(2)
    go_on(folder, lines, kept=0)
    go_on(folder, [], kept=len(lines))
    assert events(folder) == expected(lines)


def test_an_epoch_can_be_seen_as_soon_as_it_is_done(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", []), metrics(1)
    with tensorboard_writer(folder) as write:
        for line in lines:
            write(line)
        assert events(folder) == expected(lines)


def test_damaged_metrics_leave_the_events_alone(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", []), metrics(2)
    go_on(folder, lines[:4], kept=0)
    (folder / "metrics.jsonl").write_text("damaged\n")
    with pytest.raises(CorruptError), tensorboard_writer(folder) as write:
        write(lines[4])
    assert events(folder) == expected(lines[:4])


def test_without_tensorboard_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'kdcache\[tensorboard\]'"),
        tensorboard_writer(tmp_path),
    ):
        pytest.fail("it has no TensorBoard")
