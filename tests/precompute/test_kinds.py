"""Claims about every kind of teacher, from its logits to the student's targets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.models.steadiness import measure_steadiness
from kdcache.models.teacher import Teacher, load_teacher
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from tests import tiny

RECIPE = tiny.make_recipe()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.make_dataset(tmp_path_factory.mktemp("kinds"), 12)


def teacher_of(name: str, num_classes: int | None = None) -> Teacher:
    spec = f"tests.models.kinds:{name}"
    return load_teacher(spec, None, num_classes=num_classes, preprocessing=tiny.PLAIN)


def fill(path: Path, dataset: Dataset, teacher: Teacher, encoding: str | None = None) -> Cache:
    options: dict[str, Any] = {"num_views": 2, "other_classes": True, "encoding": encoding}
    return tiny.precompute(path, dataset, RECIPE, teacher=teacher, **options)


def targets(cache: Cache, dataset: Dataset, temperature: float = 1.0) -> Tensor:
    stream = replay_stream(cache, dataset, StreamOptions(batch_size=6, num_epochs=2, shuffle=False))
    classes = cache.info.num_classes
    return torch.cat([batch.target(temperature).dense(classes) for batch in stream])


def taught(dataset: Dataset, teacher: Teacher, path: Path) -> Tensor:
    """Return the teacher's own log-probabilities of the pixels that a stream hands over."""
    cache = fill(path, dataset, tiny.make_teacher())
    options = StreamOptions(batch_size=6, num_epochs=2, shuffle=False)
    pixels = [batch.pixels.clone() for batch in replay_stream(cache, dataset, options)]
    return teacher(torch.cat(pixels)).log_softmax(1)


@pytest.mark.parametrize(
    ("name", "within"),
    [("plain", 0.0), ("gives_dict", 0.0), ("gives_tuple", 0.0), ("half", 0.02), ("brain", 0.2)],
)
def test_logits_may_be_half_or_among_other_outputs(
    tmp_path: Path, dataset: Dataset, name: str, within: float
) -> None:
    teacher = teacher_of(name)
    found = targets(fill(tmp_path / "c", dataset, teacher, "dense:f2"), dataset)
    exact = taught(dataset, teacher_of("plain"), tmp_path / "plain")
    assert teacher(torch.zeros(1, 3, 12, 12, dtype=torch.uint8)).dtype == torch.float32
    assert float((found - exact).abs().max()) <= within + 0.02


@pytest.mark.parametrize("encoding", [None, "packed:8", "topk:8", "adaptive:1e-05"])
def test_a_teacher_of_100_000_classes_is_stored_and_read(
    tmp_path: Path, dataset: Dataset, encoding: str | None
) -> None:
    teacher = teacher_of("plain", 100_000)
    cache = fill(tmp_path / "c", dataset, teacher, encoding)
    index = cache.info.specs[0]
    assert (index.name, index.dtype) in (("gaps", "u4"), ("indices", "u4"))
    found = targets(cache, dataset)
    exact = taught(dataset, teacher, tmp_path / "exact")
    assert found.shape == (24, 100_000)
    assert torch.equal(found.argmax(1), exact.argmax(1))
    assert int(exact.topk(8).indices.max()) > 65_535, "classes that two bytes do not hold"
    kept = exact.topk(8).indices
    assert float((found.gather(1, kept) - exact.gather(1, kept)).abs().max()) < 0.2
    assert float((found.exp().sum(1) - 1).abs().max()) < 1e-3


@pytest.mark.parametrize("encoding", [None, "packed:2", "topk:1", "dense:u1"])
def test_two_classes_are_enough(tmp_path: Path, dataset: Dataset, encoding: str | None) -> None:
    teacher = teacher_of("plain", 2)
    found = targets(fill(tmp_path / "c", dataset, teacher, encoding), dataset)
    exact = taught(dataset, teacher, tmp_path / "exact")
    assert float((found.exp() - exact.exp()).abs().max()) < 0.02


def test_one_class_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="has 1 class, distillation needs two"):
        fill(tmp_path / "c", dataset, teacher_of("plain", 1))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("stuck", "training mode"), ("untracked", "keeps no running statistics")]
)
def test_targets_of_a_batch_instead_of_an_image_are_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        teacher_of(name)


def test_an_untrained_batch_norm_is_told_of() -> None:
    assert any("untrained" in sentence for sentence in teacher_of("untrained").warnings)
    assert teacher_of("plain").warnings == ()


# --- steadiness ----------------------------------------------------------------------------


def test_an_exact_teacher_is_steady() -> None:
    found = measure_steadiness(teacher_of("plain"), 12)
    assert (found.repeat_nats, found.batch_nats) == (0, 0)
    assert found.steady
    assert "deterministic" in str(found)


def test_noise_and_influence_of_the_batch_are_measured() -> None:
    noisy, mixed = (measure_steadiness(teacher_of(name), 12) for name in ("noisy", "of_batch"))
    assert noisy.repeat_nats > 0.1
    assert not noisy.steady
    assert (mixed.repeat_nats, mixed.steady) == (0, False)
    assert mixed.batch_nats > 0.1
    assert "NOT STEADY" in str(mixed)
    assert "with the batch, and not from call to call" in str(mixed)
    assert "nats from call to call, " in str(noisy)
