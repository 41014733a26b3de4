"""Claims about batches: the fastest is found, and memory that runs out makes them smaller."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdcache.cache.layout import Span
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.models.ensemble import TeacherSpec
from kdcache.models.teacher import Teacher
from kdcache.precompute import batching
from kdcache.precompute.batching import LEAST, fit_batch_size
from kdcache.precompute.engines import run_inline
from tests import tiny


class Narrow(nn.Module):
    """A network on a device whose memory holds `most` images."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most, self.seen = network, most, []

    def forward(self, images_N3HW: Tensor) -> Tensor:
        if len(images_N3HW) > self.most:
            raise torch.OutOfMemoryError("no room")
        self.seen.append(len(images_N3HW))
        logits: Tensor = self.network(images_N3HW)
        return logits


def _narrow(teacher: Teacher, most: int) -> tuple[Teacher, list[int]]:
    network = Narrow(teacher.network, most)
    return replace(teacher, network=network), network.seen


def test_batches_are_halved_where_memory_runs_out(dataset: Dataset, tmp_path: Path) -> None:
    whole = tiny.precompute(tmp_path / "whole", dataset, tiny.make_recipe(), batch_size=16)
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe(), batch_size=16)
    teacher, seen = _narrow(job.teacher, 5)
    run_inline(replace(job, teacher=teacher))
    assert max(seen) == 4
    assert tiny.tree(tmp_path / "c") == tiny.tree(tmp_path / "whole")
    assert {job.cache.commit(span).versions["batch_size"] for span in job.cache.grid.spans()} == {
        "4"
    }
    assert whole.commit(Span(0, 0)).versions["batch_size"] == "16"


def test_one_image_that_does_not_fit_sets_its_span_aside(dataset: Dataset, tmp_path: Path) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe(), batch_size=16)
    teacher, _ = _narrow(job.teacher, 0)
    with pytest.raises(UsageError, match="out of memory on 1 images"):
        run_inline(replace(job, teacher=teacher))
    assert len(job.cache.missing()) == len(list(job.cache.grid.spans()))


def test_the_batch_size_is_the_least_that_is_nearly_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {16: 100.0, 32: 180.0, 64: 250.0, 128: 255.0, 256: 900.0}
    monkeypatch.setattr(batching, "_views_per_s", lambda _, __, count: rates[count])
    assert fit_batch_size(tiny.make_teacher(), 8) == 64
    assert fit_batch_size(tiny.make_teacher(), 8, most=32) == 32


def test_the_batch_size_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WORTH", 0.0)  # however fast
    teacher, seen = _narrow(tiny.make_teacher(), 100)
    assert fit_batch_size(teacher, 8) == 64
    assert set(seen) == {16, 32, 64}
    teacher, _ = _narrow(tiny.make_teacher(), LEAST - 1)
    with pytest.raises(UsageError, match="out of memory on 16 images"):
        fit_batch_size(teacher, 8)


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same_targets_and_says_so(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = TeacherSpec("tests.tiny:linear_teacher", None, compiled=True)
    teacher = spec.load("cpu")
    plain = replace(spec, compiled=False).load("cpu")
    assert teacher.description == plain.description
    pixels = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(teacher(pixels), plain(pixels))
    assert (teacher.settings["compiled"], plain.settings["compiled"]) == ("true", "false")
