"""Claims about caches of several teachers read as one, and about targets in the student's classes.

The measure is always the cache that is made of the averaged, or mapped, teacher itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.errors import IncompleteError, MismatchError, UsageError
from kdcache.models.ensemble import average_teachers, map_teacher
from kdcache.models.teacher import Teacher
from kdcache.replay.open import fixed_stream, independent_stream, replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.replay.targets import Targets, join_targets
from kdcache.student.losses import sparse_kl
from kdcache.targets.combine import Average
from kdcache.targets.labels import LabelMap
from tests import tiny

RECIPE = tiny.make_recipe()
LABELS = LabelMap(
    ("even", "odd", "other"), ((range(1), range(2, 3)), (range(1, 2),), ()), rest="other"
)


@dataclass(frozen=True, eq=False)
class Made:
    """A dataset, and caches by the name of their teachers and encoding."""

    dataset: Dataset
    cache: Callable[..., Cache]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("joined")
    dataset = tiny.make_dataset(root, 24)
    caches: dict[tuple[Any, ...], Cache] = {}

    def cache(name: str, teacher: Teacher, *, encoding: str, **options: Any) -> Cache:
        key = (name, encoding, *sorted(options.items()))
        if key not in caches:
            path = root / f"{len(caches)}"
            caches[key] = tiny.precompute(
                path,
                dataset,
                RECIPE,
                teacher=teacher,
                encoding=encoding,
                other_classes="labels" in teacher.parts,
                **options,
            )
        return caches[key]

    return Made(dataset, cache)


def both(made: Made, encoding: str) -> list[Cache]:
    return [
        made.cache(name, tiny.make_teacher(name), encoding=encoding)
        for name in ("linear_teacher", "other_teacher")
    ]


def mean_teacher(average: Average, shares: tuple[float, float] = (0.5, 0.5)) -> Teacher:
    members = [tiny.make_teacher(name) for name in ("linear_teacher", "other_teacher")]
    return average_teachers(members, shares, average=average)


def log_probs(targets: Cache | Targets, dataset: Dataset, temperature: float) -> Tensor:
    """Return what a stream's targets are over all classes (views x samples, C)."""
    options = StreamOptions(batch_size=8, num_epochs=4, shuffle=False)
    stream = replay_stream(targets, dataset, options)
    rows = []
    for batch in stream:
        assert batch.format is not None
        rows.append(batch.target(temperature).dense(batch.format.num_classes))
    return torch.cat(rows)


@pytest.mark.parametrize("temperature", [1.0, 1.7, 4.0])
@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("shares", [None, (0.7, 0.3)])
def test_dense_caches_read_together_are_the_averaged_cache(
    made: Made, average: Average, temperature: float, shares: tuple[float, float] | None
) -> None:
    """Both within half precision of the logits, so twice that apart."""
    joined = join_targets(both(made, "dense:f2"), shares=shares, average=average)
    teacher = mean_teacher(average, shares or (0.5, 0.5))
    name = f"mean {average} {shares}"
    averaged = made.cache(name, teacher, encoding="dense:f2")
    ours = log_probs(joined, made.dataset, temperature)
    theirs = log_probs(averaged, made.dataset, temperature)
    assert ours.shape == (24 * 4, tiny.NUM_CLASSES)
    assert float((ours - theirs).abs().max()) < 0.02
    alone = log_probs(both(made, "dense:f2")[0], made.dataset, temperature)
    assert float((ours - alone).abs().mean()) > 0.1, "the teachers should differ"


@pytest.mark.parametrize("encoding", ["topk:4", "packed:4", "adaptive:1e-06"])
def test_sparse_caches_read_together_are_near_it(made: Made, encoding: str) -> None:
    joined = join_targets(both(made, encoding))
    exact = log_probs(join_targets(both(made, "dense:f2")), made.dataset, 2.0)
    ours = log_probs(joined, made.dataset, 2.0)
    kl = (exact.exp() * (exact - ours)).sum(1)
    assert float(kl.mean()) < 1e-3


def test_one_encoding_may_be_read_beside_another(made: Made) -> None:
    (first, _), (_, other) = both(made, "dense:f2"), both(made, "topk:4")
    exact = log_probs(join_targets(both(made, "dense:f2")), made.dataset, 1.0)
    ours = log_probs(join_targets([first, other]), made.dataset, 1.0)
    assert float((exact.exp() * (exact - ours)).sum(1).mean()) < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_targets_mapped_when_read_are_those_of_the_mapped_teacher(
    made: Made, temperature: float
) -> None:
    teacher = map_teacher(tiny.make_teacher(), LABELS)
    stored = made.cache("mapped", teacher, encoding="dense:f2")
    assert stored.info.num_classes == 3
    assert stored.info.classes == ("even", "odd", "other")
    (plain, _) = both(made, "dense:f2")
    mapped = join_targets([plain], labels=LABELS)
    assert mapped.format.num_classes == 3
    ours, theirs = (log_probs(t, made.dataset, temperature) for t in (mapped, stored))
    assert float((ours - theirs).abs().max()) < 0.02
    sparse = join_targets([both(made, "topk:3")[0]], labels=LABELS)
    near = log_probs(sparse, made.dataset, temperature)
    assert float((theirs.exp() * (theirs - near)).sum(1).mean()) < 5e-3
    with pytest.raises(UsageError, match="mapped by it already"):
        join_targets([stored], labels=LABELS)


def test_teachers_may_be_averaged_and_mapped_at_once(made: Made) -> None:
    joined = join_targets(both(made, "dense:f2"), labels=LABELS)
    mean = mean_teacher("logits")
    stored = made.cache("both", map_teacher(mean, LABELS), encoding="dense:f2")
    ours, theirs = (log_probs(t, made.dataset, 2.0) for t in (joined, stored))
    assert float((ours - theirs).abs().max()) < 0.02


def test_a_student_learns_from_joined_targets(made: Made) -> None:
    stream = replay_stream(
        join_targets(both(made, "packed:3"), labels=LABELS),
        made.dataset,
        StreamOptions(batch_size=8, num_workers=0),
    )
    logits = torch.zeros(8, 3, requires_grad=True)
    for batch in stream:
        loss = sparse_kl(logits, batch.target(2.0), temperature=2.0).mean()
        loss.backward()
        assert bool(loss > 0)
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
        moved = batch.to("cpu").parts(2)[0]
        assert len(moved.target(1.0).log_tail_N) == 4


def test_fixed_and_independent_targets_may_be_joined(made: Made, tmp_path: Path) -> None:
    plain = tiny.make_recipe(mix=None)
    caches = [
        tiny.precompute(tmp_path / n, made.dataset, plain, teacher=tiny.make_teacher(n))
        for n in ("linear_teacher", "other_teacher")
    ]
    options = StreamOptions(batch_size=8, num_epochs=2)
    targets = join_targets(caches)
    for stream in (
        fixed_stream(targets, made.dataset, options, recipe=plain),
        independent_stream(targets, made.dataset, options),
    ):
        assert sum(len(batch.target(1.0).log_tail_N) for batch in stream) == 48


# --- what is refused -----------------------------------------------------------------------


def test_a_state_names_all_caches_shares_and_labels(made: Made) -> None:
    caches, options = both(made, "dense:f2"), StreamOptions(batch_size=8)
    choices = [
        join_targets(caches),
        join_targets(caches[::-1]),
        join_targets(caches, shares=(0.7, 0.3)),
        join_targets(caches, average="probabilities"),
        join_targets(caches, labels=LABELS),
        join_targets(caches[:1], labels=LABELS),
        join_targets(caches[:1]),
    ]
    assert len({targets.id for targets in choices}) == len(choices)
    state = replay_stream(choices[0], made.dataset, options).state_dict()
    replay_stream(join_targets(caches), made.dataset, options).load_state_dict(state)
    for other in choices[1:]:
        with pytest.raises(MismatchError, match="a stream with other cache"):
            replay_stream(other, made.dataset, options).load_state_dict(state)


def test_caches_of_other_views_images_or_classes_are_not_joined(made: Made, tmp_path: Path) -> None:
    first = both(made, "dense:f2")[0]
    images = tiny.make_dataset(tmp_path, 8, seed=9)
    five = tiny.make_teacher()
    others = {
        "dataset": tiny.precompute(tmp_path / "d", images, RECIPE, teacher=five),
        "recipe of the student's views": tiny.precompute(
            tmp_path / "r", made.dataset, tiny.make_recipe(seed=6), teacher=five
        ),
        "names of classes": made.cache(
            "renamed", map_teacher(five, _renaming()), encoding="dense:f2"
        ),
        "number of classes": made.cache("mapped", map_teacher(five, LABELS), encoding="dense:f2"),
    }
    for what, other in others.items():
        with pytest.raises(MismatchError, match=f"its {what} is"):
            join_targets([first, other])


def _renaming() -> LabelMap:
    """Return a map of each class to one of another name."""
    return LabelMap(tuple("abcde"), tuple((range(n, n + 1),) for n in range(5)))


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.5, 0.5), (0.0, 1.0), (-1.0, 2.0)])
def test_shares_are_as_many_as_caches_and_positive(made: Made, shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="share"):
        join_targets(both(made, "dense:f2"), shares=shares)


def test_views_that_one_of_them_lacks_are_missed(made: Made, tmp_path: Path) -> None:
    part = tiny.precompute_first(tmp_path / "part", made.dataset, RECIPE, spans=1)
    whole = made.cache("other_teacher", tiny.make_teacher("other_teacher"), encoding="topk:3")
    with pytest.raises(IncompleteError, match=f"{part.path}: views 0..3 are not computed"):
        replay_stream(
            join_targets([whole, part]), made.dataset, StreamOptions(batch_size=8, num_epochs=4)
        )


def test_both_caches_prove_the_pixels(made: Made, tmp_path: Path) -> None:
    """A cache whose witnesses are of other pixels is found, though it comes second."""
    other = tiny.precompute(
        tmp_path / "c", made.dataset, RECIPE, teacher=tiny.make_teacher("other_teacher")
    )
    first = made.cache("linear_teacher", tiny.make_teacher(), encoding="topk:3")
    changed = tiny.make_recipe(seed=6)
    false = tiny.precompute(tmp_path / "f", made.dataset, changed)
    for span in false.grid.spans():
        name = f"witness/c/{span.tar}/{span.run}/0"
        assert (other.path / name).read_bytes() != (false.path / name).read_bytes()
    targets = Targets((first, _Lying(other, false)), join_targets([first, other]).format)  # type: ignore[arg-type]
    stream = replay_stream(targets, made.dataset, StreamOptions(batch_size=8))
    with pytest.raises(MismatchError, match="the pixels made here differ"):
        list(stream)


class _Lying:
    """A cache with the witnesses of another."""

    def __init__(self, cache: Cache, other: Cache) -> None:
        self._cache, self._other = cache, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other if name == "read_witness" else self._cache, name)
