"""Claims about the scale benchmark: a trial of it runs every span and keeps a whole record."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.bench.record import Record
from pipelines.bench.scale import QUICK, main


def test_a_trial_keeps_every_bar_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of the other tests, too
    main(["--quick", "--out", str(tmp_path)])
    text = (tmp_path / "scale.json").read_text()
    record = Record.model_validate(json.loads(text))
    assert [bar.name for bar in record.bars] == ["overhead_of_a_span", "memory_growth_with_spans"]
    assert record.figures["spans"] == QUICK.spans == 80
    assert len(record.figures["resident_mb_by_tenths"]) == 10
    assert record.figures["record_bytes"] > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]
