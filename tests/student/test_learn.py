"""Claims about what a student learns from: the paper's ways, a live teacher, missing views."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdcache.cache.layout import Span
from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import DataError, IncompleteError, KdcacheError, MismatchError, UsageError
from kdcache.models.ensemble import TeacherSpec
from kdcache.models.specs import build_network
from kdcache.processes import Stopped
from kdcache.replay.open import fresh_stream
from kdcache.replay.stream import StreamOptions
from kdcache.student.checkpoint import checkpoints
from kdcache.student.loop import train
from kdcache.student.sources import Sources
from kdcache.student.world import World
from tests import tiny
from tests.student.making import (
    CENTRE,
    centre_cache,
    make_sources,
    metrics_of,
    run_of,
    weights_of,
)
from tests.worlds import in_world

PLAIN_RECIPE = tiny.make_recipe(mix=None)
TEACHER = TeacherSpec("tests.tiny:linear_teacher", None, preprocessing=tiny.PLAIN)


@pytest.fixture(scope="module")
def unmixed(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The path of a cache of views that are not mixed."""
    return tiny.precompute(tmp_path_factory.mktemp("unmixed") / "c", dataset, PLAIN_RECIPE).path


Choose = Callable[[str], Sources]


@pytest.fixture
def sources_of(dataset: Dataset, complete: Path, unmixed: Path) -> Choose:
    """What each way of learning asks for."""
    return {
        "cache": make_sources(dataset, complete),
        "function-matching": make_sources(dataset, complete),
        "consistent": make_sources(dataset, unmixed),
        "fixed": make_sources(dataset, unmixed, recipe=PLAIN_RECIPE),
        "independent": make_sources(dataset, unmixed),
        "online": make_sources(dataset, None, recipe=tiny.make_recipe(), teacher=TEACHER),
        "labels": make_sources(dataset, None, recipe=tiny.make_recipe()),
    }.__getitem__


@pytest.mark.parametrize(
    "learn", ["function-matching", "consistent", "fixed", "independent", "online", "labels"]
)
def test_each_way_of_learning_is_one_word(
    tmp_path: Path, sources_of: Choose, dataset: Dataset, learn: str
) -> None:
    run = run_of(tmp_path / "r", sources_of(learn), learn=learn, epochs=20, learning_rate=0.03)
    train(run)
    losses = [line["loss"] for line in metrics_of(tmp_path / "r")]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:3])


def test_function_matching_is_the_cache_if_it_is_mixed(tmp_path: Path, sources_of: Choose) -> None:
    for learn in ("cache", "function-matching"):
        train(run_of(tmp_path / learn, sources_of("cache"), learn=learn, epochs=2))
    assert metrics_of(tmp_path / "cache") == metrics_of(tmp_path / "function-matching")


@pytest.mark.parametrize(
    ("learn", "given", "kind", "words"),
    [
        ("function-matching", "consistent", MismatchError, "are not mixed.*learn consistent"),
        ("consistent", "cache", MismatchError, "are mixed: learn function-matching"),
        ("independent", "cache", UsageError, "independent noise has no targets for mixed"),
        ("independent", "labels", UsageError, "to learn from independent, give a cache"),
        ("online", "labels", UsageError, r"give a teacher \(--teacher\)"),
        ("online", "cache", UsageError, r"give a teacher \(--teacher\)"),
        ("labels", "online", UsageError, "--teacher: makes what a cache .* no --cache"),
        ("cache", "online", UsageError, "--teacher: makes what a cache .* no --cache"),
    ],
)
def test_sources_of_another_way_are_refused(
    tmp_path: Path, sources_of: Choose, learn: str, given: str, kind: type[KdcacheError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        run_of(tmp_path / "r", sources_of(given), learn=learn)
    assert not (tmp_path / "r").exists()


# --- a live teacher ------------------------------------------------------------------------


def test_a_live_teacher_is_the_cache_of_all_classes(tmp_path: Path, dataset: Dataset) -> None:
    """Over the same views, to the error of float16."""
    recipe = tiny.make_recipe()
    dense = tiny.precompute(tmp_path / "c", dataset, recipe, encoding="dense:f2", num_views=4).path
    options = {"epochs": 4, "temperature": 2.0}
    train(run_of(tmp_path / "cache", make_sources(dataset, dense), **options))
    online = make_sources(dataset, None, recipe=recipe, teacher=TEACHER)
    train(run_of(tmp_path / "online", online, learn="online", **options))
    for ours, theirs in zip(
        metrics_of(tmp_path / "online"), metrics_of(tmp_path / "cache"), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_labels_mix_into_the_loss_by_their_weight(
    tmp_path: Path, dataset: Dataset, direction: str
) -> None:
    """The first step's loss, against torch's own functions."""
    recipe, weight, temperature = tiny.make_recipe(), 0.3, 2.0
    sources = make_sources(dataset, None, recipe=recipe, teacher=TEACHER)
    changes = {"label_weight": weight, "temperature": temperature, "direction": direction}
    plain = {"student": "tests.student.nets:plain", "epochs": 1, "log_steps": 1}
    train(run_of(tmp_path / "r", sources, learn="online", **changes, **plain))
    options = StreamOptions(batch_size=7, seed=1, window=3, lanes=7)
    batch = next(iter(fresh_stream(dataset, options, recipe=recipe)))
    torch.manual_seed(1)
    student = build_network(plain["student"], num_classes=5)
    logits, taught = student(batch.pixels.float() / 255), tiny.make_teacher()(batch.pixels)
    ours, theirs = ((x / temperature).log_softmax(1) for x in (logits, taught))
    if direction == "reverse":
        ours, theirs = theirs, ours
    kl = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
    own = F.cross_entropy(logits, batch.labels, reduction="none")
    partner = F.cross_entropy(logits, batch.partner_labels, reduction="none")
    hard = (batch.weights * own + (1 - batch.weights) * partner).mean()
    found = metrics_of(tmp_path / "r")[0]["loss"]
    assert found == pytest.approx(((1 - weight) * kl + weight * hard).item(), rel=1e-4)


def test_labels_that_mean_something_else_have_no_weight(
    tmp_path: Path, dataset: Dataset, sources_of: Choose
) -> None:
    seven = replace(TEACHER, num_classes=7)
    sources = replace(sources_of("online"), teacher=seven)
    run_of(tmp_path / "r", sources, learn="online")
    with pytest.raises(UsageError, match="the labels are all of the loss"):
        run_of(tmp_path / "r", sources_of("labels"), learn="labels", label_weight=0.5)
    with pytest.raises(UsageError, match="--label-weight: the dataset has 5 classes, the teacher"):
        run_of(tmp_path / "r", sources, learn="online", label_weight=0.5)


# --- views that are missing ----------------------------------------------------------------


@pytest.fixture
def part(tmp_path: Path, complete: Path) -> Path:
    """A cache that lacks the second run of its views, and the first of one tar."""
    shutil.copytree(complete, tmp_path / "part")
    cache = open_cache(tmp_path / "part")
    for span in (Span(0, 1), Span(1, 1), Span(2, 1), Span(1, 0)):
        (cache.path / span.commit_name).unlink()
    return cache.path


def test_missing_views_are_named_with_what_makes_them(
    tmp_path: Path, dataset: Dataset, part: Path
) -> None:
    words = r"views 0\.\.3 are not computed for all tars .4 spans.*run kdcache precompute again"
    with pytest.raises(IncompleteError, match=words):
        run_of(tmp_path / "r", make_sources(dataset, part))


def test_the_first_student_stores_missing_views_for_all_others(
    tmp_path: Path, dataset: Dataset, complete: Path, part: Path
) -> None:
    """The student, and the cache in the end, are those of a cache computed before."""
    sources = make_sources(dataset, part, teacher=TEACHER)
    train(run_of(tmp_path / "first", sources, epochs=4, num_workers=1))
    train(run_of(tmp_path / "complete", make_sources(dataset, complete), epochs=4))
    assert weights_of(tmp_path / "first") == weights_of(tmp_path / "complete")
    assert tiny.tree(part) == tiny.tree(complete)
    train(run_of(tmp_path / "second", make_sources(dataset, part), epochs=4))
    assert weights_of(tmp_path / "second") == weights_of(tmp_path / "complete")


def test_views_are_made_only_before_they_are_needed(
    tmp_path: Path, dataset: Dataset, part: Path
) -> None:
    told: list[str] = []
    sources = make_sources(dataset, part, teacher=TEACHER)
    train(run_of(tmp_path / "r", sources, epochs=2, tell=told.append))
    assert told == [f"{part}: the teacher makes 1 spans that views 0 to 0 lack"]
    assert open_cache(part).missing() == [Span(0, 1), Span(1, 1), Span(2, 1)]


def test_a_cache_is_made_while_training(tmp_path: Path, dataset: Dataset, complete: Path) -> None:
    recipe, path = tiny.make_recipe(), tmp_path / "new"
    sources = make_sources(dataset, path, recipe=recipe, teacher=TEACHER, views=4)
    train(run_of(tmp_path / "r", sources, epochs=4))
    cache, other = open_cache(path), open_cache(complete)
    assert (cache.missing(), cache.info.recipe.id) == ([], other.info.recipe.id)
    for lacking in ({"recipe": None}, {"views": None}):
        with pytest.raises(UsageError, match="to make one while training, give --recipe and --vie"):
            run_of(tmp_path / "r2", replace(sources, cache=tmp_path / "none", **lacking))
    assert not (tmp_path / "none").exists()


def test_another_teacher_does_not_write_through(
    tmp_path: Path, dataset: Dataset, part: Path
) -> None:
    other = replace(TEACHER, spec="tests.tiny:other_teacher")
    with pytest.raises(MismatchError, match="made with teacher"):
        run_of(tmp_path / "r", make_sources(dataset, part, teacher=other))
    with pytest.raises(UsageError, match=r"has 4 views .* run kdcache extend"):
        run_of(tmp_path / "r", make_sources(dataset, part, teacher=TEACHER, views=8))


def test_a_stop_while_views_are_made_keeps_them_and_the_step(
    tmp_path: Path, dataset: Dataset, complete: Path, part: Path
) -> None:
    run = run_of(tmp_path / "r", make_sources(dataset, part, teacher=TEACHER), epochs=4)
    supply = run.stream._before
    assert supply is not None

    def interrupted(views: tuple[int, ...]) -> None:
        if views == (2,):
            os.kill(os.getpid(), signal.SIGTERM)
        supply(views)

    run.stream._before = interrupted
    with pytest.raises(Stopped):
        train(run)
    assert checkpoints(tmp_path / "r")[-1].name == "step-000000006.pt"
    assert Span(1, 0) not in open_cache(part).missing()
    train(
        run_of(tmp_path / "r", make_sources(dataset, part, teacher=TEACHER), epochs=4), resume=True
    )
    train(run_of(tmp_path / "complete", make_sources(dataset, complete), epochs=4))
    assert weights_of(tmp_path / "r") == weights_of(tmp_path / "complete")


def test_an_image_that_cannot_be_used_stops_the_run_by_name(
    tmp_path: Path, dataset: Dataset
) -> None:
    images = tiny.write_images(tmp_path / "images", 9)
    next(images.rglob("*.jpg")).write_bytes(b"no image")
    spoiled = tiny.pack_images(images, tmp_path / "data")
    recipe = tiny.make_recipe()
    sources = make_sources(spoiled, tmp_path / "c", recipe=recipe, teacher=TEACHER, views=2)
    with pytest.raises(DataError, match="not a readable JPEG"):
        train(run_of(tmp_path / "r", sources, epochs=2))


def _train(world: World, folder: Path, sources: Sources) -> None:
    train(run_of(folder, sources, world=world, batch_size=8, epochs=4))


def test_processes_share_the_making_of_views(
    tmp_path: Path, dataset: Dataset, complete: Path, part: Path
) -> None:
    sources = make_sources(dataset, part, teacher=TEACHER)
    assert in_world(2, _train, tmp_path / "r", sources) == [0, 0]
    assert tiny.tree(part) == tiny.tree(complete)


# --- first weights -------------------------------------------------------------------------


def test_first_weights_come_from_any_file_as_far_as_they_fit(
    tmp_path: Path, dataset: Dataset, complete: Path, sources_of: Choose
) -> None:
    train(run_of(tmp_path / "a", sources_of("cache"), epochs=1))
    weights = load_file(tmp_path / "a/student.safetensors")
    save_file({k: v for k, v in weights.items() if k != "6.bias"}, tmp_path / "part.safetensors")
    torch.save({"model": {**weights, "6.weight": torch.zeros(9, 72)}}, tmp_path / "other.pth")
    told: list[str] = []
    for path, left in (
        (tmp_path / "a/student.safetensors", []),
        (checkpoints(tmp_path / "a")[-1], []),
        (tmp_path / "part.safetensors", ["missing: 6.bias"]),
        (tmp_path / "other.pth", ["shaped otherwise: 6.weight (9, 72) instead of (5, 72)"]),
    ):
        told.clear()
        sources = replace(sources_of("cache"), init=path)
        run = run_of(tmp_path / path.name, sources, tell=told.append)
        found = run.network().state_dict()
        assert told == [f"{path}: {text}; the rest of the student starts from it" for text in left]
        same = {name for name in weights if torch.equal(found[name], weights[name])}
        assert weights.keys() - same <= {"6.bias", "6.weight"}
        assert len(same) >= len(weights) - (1 if left else 0)


def test_first_weights_of_which_nothing_fits_are_refused(
    tmp_path: Path, sources_of: Choose
) -> None:
    save_file({"strange": torch.zeros(3)}, tmp_path / "w.safetensors")
    for path, words in (
        (tmp_path / "w.safetensors", "nothing fits"),
        (tmp_path / "no", "no weights"),
    ):
        with pytest.raises(UsageError, match=words):
            train(run_of(tmp_path / "r", replace(sources_of("cache"), init=path)))
        assert not (tmp_path / "r").exists()


def test_other_first_weights_make_another_run(tmp_path: Path, sources_of: Choose) -> None:
    sources = sources_of("cache")
    train(run_of(tmp_path / "a", sources, epochs=1))
    begun = replace(sources, init=tmp_path / "a/student.safetensors")
    with pytest.raises(UsageError, match="holds a run with init None"):
        train(run_of(tmp_path / "a", begun, epochs=1), resume=True)


def test_a_validation_cache_is_no_source(tmp_path: Path, dataset: Dataset, complete: Path) -> None:
    """One view, used in all epochs, is what --max-reuse guards against."""
    centre = centre_cache(tmp_path / "centre", dataset)
    with pytest.raises(UsageError, match="more than --max-reuse 3"):
        run_of(tmp_path / "r", make_sources(dataset, centre), max_reuse=3)


def test_a_validation_cache_of_another_size_is_told(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    recipe = tiny.make_recipe(**{**CENTRE, "size": 10})
    other = tiny.precompute(tmp_path / "c", dataset, recipe, num_views=1, span_views=1).path
    told: list[str] = []
    for cache in (other, centre_cache(tmp_path / "centre", dataset)):
        sources = make_sources(dataset, complete, val_data=dataset.root, val_cache=cache)
        run_of(tmp_path / "run", sources, tell=told.append)
    [line] = told
    assert "measured at 10 pixels and learns at 12" in line
