from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing
from kdcache.replay.open import label_stream, replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.student.metrics import Score, evaluate
from tests import tiny
from tests.student.making import CENTRE, contrast_teacher
from tests.student.nets import contrast, noisy

CPU = torch.device("cpu")
OPTIONS = StreamOptions(batch_size=7, shuffle=False)


@pytest.fixture(scope="module", params=["topk:2", "topk:5", "dense:f2"])
def centre(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dataset: Dataset
) -> Cache:
    """A cache of one central view of the dataset's 24 images: three batches of 7, and 3 more."""
    path = tmp_path_factory.mktemp("centre") / "cache"
    recipe = tiny.make_recipe(**CENTRE)
    options = {"teacher": contrast_teacher(), "encoding": request.param}
    return tiny.precompute(path, dataset, recipe, num_views=1, span_views=1, **options)


def _rows(cache: Cache, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each view's pixels and the teacher's probabilities of the kept classes and the rest."""
    source = dataset_source(dataset, cache.info.recipe)
    for tar in range(source.num_tars):
        fields = {
            k: v.numpy().astype(np.float64) for k, v in cache.read_tile(tar, 0).fields.items()
        }
        for rows in source.blocks(tar):
            pixels = source.render(tar, rows, views=[0]).pixels_GNHW3[0]
            for row in range(rows.start, rows.stop):
                probs = np.zeros(6)  # the sixth is the tail
                if "logits" in fields:
                    probs[:5] = np.exp(fields["logits"][row])
                    probs /= probs.sum()
                else:
                    classes = fields["indices"][row].astype(int)
                    kept = np.exp(-32 * (fields["values"][row] / 255) ** 2)
                    tail = np.exp(fields["tails"][row, 0]) if len(classes) < 5 else 0.0
                    probs[classes] = kept / kept.sum() * (1 - tail)
                    probs[5] = tail
                yield pixels[row - rows.start], probs


def _reference(cache: Cache, dataset: Dataset, labels: np.ndarray) -> Score:
    """Return the noisy student's score, in float64 NumPy."""
    network = noisy(5)
    right, known, kl, agree = 0, 0, 0.0, 0
    for number, (pixels, p) in enumerate(_rows(cache, dataset)):
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        logits = network(image)[0].double().numpy()
        q = np.exp(logits - logits.max())
        q = np.append(q / q.sum(), 0.0)
        if p[5]:
            outside = p[:5] == 0
            q[5] = q[:5][outside].sum()
        kept = p > 0
        kl += float((p[kept] * np.log(p[kept] / q[kept])).sum())
        agree += int(logits.argmax() == p[:5].argmax())
        if labels[number] >= 0:
            known += 1
            right += int(logits.argmax() == labels[number])
    count = dataset.num_samples
    return Score(
        count,
        top1=right / known if known else None,
        kl_nats=kl / count,
        agreement=agree / count,
    )


def _evaluate(cache: Cache, dataset: Dataset, network: nn.Module) -> Score:
    stream = replay_stream(cache, dataset, OPTIONS)
    return evaluate(network, stream, preprocessing=tiny.PLAIN, device=CPU)


def _assert_equal(found: Score, expected: Score) -> None:
    assert found.samples == expected.samples
    assert found.top1 == (None if expected.top1 is None else pytest.approx(expected.top1))
    assert found.kl_nats == pytest.approx(expected.kl_nats, rel=1e-5, abs=1e-5)
    assert found.agreement == pytest.approx(expected.agreement)


def test_top1_kl_and_agreement_are_those_of_numpy(centre: Cache, dataset: Dataset) -> None:
    expected = _reference(centre, dataset, dataset.labels)
    assert 0 < expected.agreement < 1  # type: ignore[operator]
    assert 0 < expected.top1 < 1  # type: ignore[operator]
    found = _evaluate(centre, dataset, noisy(5))
    assert found.samples == 24
    _assert_equal(found, expected)


def test_samples_without_label_count_for_the_teacher_alone(centre: Cache, dataset: Dataset) -> None:
    """All samples of one batch, and some of others, have no label."""
    labels = dataset.labels.copy()
    labels[7:14] = -1
    labels[::5] = -1
    relabelled = replace(dataset, labels=labels)
    found = _evaluate(centre, relabelled, noisy(5))
    _assert_equal(found, _reference(centre, dataset, labels))


def test_without_labels_there_is_no_top1(centre: Cache, dataset: Dataset) -> None:
    unlabelled = replace(dataset, labels=np.full(24, -1, np.int32), num_classes=None, classes=None)
    found = _evaluate(centre, unlabelled, noisy(5))
    assert found.top1 is None
    _assert_equal(found, _reference(centre, dataset, unlabelled.labels))


def test_labels_of_other_classes_are_not_compared(centre: Cache, dataset: Dataset) -> None:
    other = replace(dataset, num_classes=9, classes=None)
    assert _evaluate(centre, other, noisy(5)).top1 is None


def test_without_targets_there_is_neither_kl_nor_agreement(dataset: Dataset) -> None:
    stream = label_stream(dataset, OPTIONS, recipe=tiny.make_recipe(**CENTRE))
    score = evaluate(noisy(5), stream, preprocessing=tiny.PLAIN, device=CPU)
    assert (score.kl_nats, score.agreement) == (None, None)
    assert score.samples == 24
    assert score.top1 is not None


def test_the_teacher_itself_agrees_and_has_no_kl(tmp_path: Path, dataset: Dataset) -> None:
    recipe = tiny.make_recipe(**CENTRE)
    path = tmp_path / "cache"
    options = {"teacher": contrast_teacher(), "encoding": "dense:f2"}
    cache = tiny.precompute(path, dataset, recipe, num_views=1, span_views=1, **options)
    found = _evaluate(cache, dataset, contrast(5))
    assert found.agreement == 1
    assert abs(found.kl_nats or 0) < 1e-4


def test_every_share_of_the_samples_counts_the_same_whatever_the_batches(
    centre: Cache, dataset: Dataset
) -> None:
    scores = []
    for batch_size in (1, 5, 23, 24, 100):
        stream = replay_stream(centre, dataset, replace(OPTIONS, batch_size=batch_size))
        scores.append(evaluate(noisy(5), stream, preprocessing=tiny.PLAIN, device=CPU))
    for score in scores[1:]:
        _assert_equal(score, scores[0])


def test_the_student_is_measured_in_evaluation_mode_without_gradients(
    centre: Cache, dataset: Dataset
) -> None:
    network = build_network("tests.student.nets:small", num_classes=5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scores = [_evaluate(centre, dataset, network.train()) for _ in range(2)]
    assert scores[0] == scores[1]
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_pixels_are_normalised_first(centre: Cache, dataset: Dataset) -> None:
    shift = Preprocessing((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    stream = replay_stream(centre, dataset, OPTIONS)
    found = evaluate(noisy(5), stream, preprocessing=shift, device=CPU)
    assert found.kl_nats != pytest.approx(_evaluate(centre, dataset, noisy(5)).kl_nats)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wide", r"gave .*\(7, 6\).* expected .*5 classes"),
        ("flat", r"gave .*\(3024,\).* expected .*5 classes"),
        ("no_numbers", "logits that are not finite"),
    ],
)
def test_a_student_without_logits_of_the_teachers_classes_is_refused(
    centre: Cache, dataset: Dataset, name: str, words: str
) -> None:
    network = build_network(f"tests.student.nets:{name}", num_classes=5)
    with pytest.raises(UsageError, match=words):
        _evaluate(centre, dataset, network)


def test_the_score_of_a_cache_read_again_is_the_same(centre: Cache, dataset: Dataset) -> None:
    again = open_cache(centre.path)
    network = noisy(5)
    assert _evaluate(again, dataset, network) == _evaluate(centre, dataset, network)
