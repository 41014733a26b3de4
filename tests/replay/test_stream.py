"""Claims about the stream: what a batch holds, and that it goes on from any state exactly."""

import itertools
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.recipe.schema import Recipe
from kdcache.replay.batch import Batch
from kdcache.replay.blocks import BlockRenderer
from kdcache.replay.epochs import EpochStream
from kdcache.replay.open import fixed_stream, independent_stream, label_stream, replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from tests import tiny
from tests.replay.streaming import digests, names

PLAIN_RECIPE = tiny.make_recipe(mix=None)


@pytest.fixture(scope="module")
def read_only(complete: Path) -> Cache:
    """The complete cache of the dataset, 4 views."""
    return open_cache(complete)


def replay(cache: Cache, dataset: Dataset, **options: Any) -> ReplayStream:
    options = {"batch_size": 5, "num_epochs": 2, "window": 2} | options
    return replay_stream(cache, dataset, StreamOptions(**options))


# --- state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stream_resumes_after_any_batch(
    read_only: Cache, dataset: Dataset, shuffle: bool
) -> None:
    """24 samples in batches of 5, two epochs: states after none, each, and the last batch."""
    stream = replay(read_only, dataset, shuffle=shuffle)
    states, batches = [stream.state_dict()], []
    for batch in stream:
        batches.append(digests([batch]))
        states.append(stream.state_dict())
    assert len(batches) == (8 if shuffle else 10)
    assert (states[0]["epoch"], states[0]["batch"]) == (0, 0)
    assert (states[-1]["epoch"], states[-1]["batch"]) == (2, 0)
    for done, state in enumerate(states):
        resumed = replay(read_only, dataset, shuffle=shuffle)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
        assert [digests([batch]) for batch in resumed] == batches[done:]


def test_a_stream_left_in_the_middle_goes_on_when_iterated_again(
    read_only: Cache, dataset: Dataset
) -> None:
    whole, stream = digests(replay(read_only, dataset)), replay(read_only, dataset)
    head = []
    for batch in stream:
        head += digests([batch])
        if len(head) >= 15:
            break
    assert head + digests(stream) == whole
    assert digests(stream) == []


def test_more_epochs_go_on_where_fewer_ended(read_only: Cache, dataset: Dataset) -> None:
    short, long = replay(read_only, dataset), replay(read_only, dataset, num_epochs=3)
    head = digests(short)
    long.load_state_dict(short.state_dict())
    assert head + digests(long) == digests(replay(read_only, dataset, num_epochs=3))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch size"),
        ({"window": 3}, "window"),
        ({"shuffle": False}, "shuffle"),
        ({"first_view": 1}, "first view"),
        ({"lanes": 5}, "lanes"),
        ({"world": 2, "rank": 1, "batch_size": 4}, "batch size, lanes"),
    ],
)
def test_the_state_of_another_order_is_refused(
    read_only: Cache, dataset: Dataset, change: dict[str, Any], reason: str
) -> None:
    state = replay(read_only, dataset).state_dict()
    other = replay(read_only, dataset, **change)
    with pytest.raises(MismatchError, match=f"a stream with other {reason}; resume with"):
        other.load_state_dict(state)
    assert (other.state_dict()["epoch"], other.state_dict()["batch"]) == (0, 0)


def test_the_state_of_another_stream_is_refused(
    read_only: Cache, dataset: Dataset, tmp_path: Path
) -> None:
    stream = replay(read_only, dataset)
    options = StreamOptions(batch_size=5, num_epochs=2, window=2)
    other_cache = tiny.precompute(tmp_path / "c", dataset, PLAIN_RECIPE)
    others = [
        label_stream(dataset, options, recipe=tiny.make_recipe()),
        fixed_stream(other_cache, dataset, options, recipe=PLAIN_RECIPE),
        replay_stream(other_cache, dataset, options),
    ]
    for other in others:
        with pytest.raises(MismatchError, match=r"a stream with other .*(cache|recipe|views)"):
            stream.load_state_dict(other.state_dict())


def test_the_state_of_other_samples_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    """Without a cache, too: equal keys of other images are other samples."""
    other = tiny.make_dataset(tmp_path, 24, seed=8)
    assert other.uids.tolist() == dataset.uids.tolist()
    options = StreamOptions(batch_size=5)
    state = label_stream(dataset, options, recipe=PLAIN_RECIPE).state_dict()
    with pytest.raises(MismatchError, match="other samples"):
        label_stream(other, options, recipe=PLAIN_RECIPE).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"stream": {}}, {"epoch": 1, "batch": 0}])
def test_what_is_no_state_is_refused(
    read_only: Cache, dataset: Dataset, state: dict[str, Any]
) -> None:
    with pytest.raises(MismatchError, match="the saved state is of a stream with other"):
        replay(read_only, dataset).load_state_dict(state)


# --- epochs and ranks ----------------------------------------------------------------------


def test_epochs_go_through_the_views_and_begin_again(read_only: Cache, dataset: Dataset) -> None:
    stream = replay(read_only, dataset, num_epochs=7, first_view=2)
    views = [batch.views.unique().tolist() for batch in stream]
    expected = [[view] for view in (2, 3, 0, 1, 2, 3, 0) for _ in range(4)]
    assert views == expected
    assert [stream.view(epoch) for epoch in range(7)] == [2, 3, 0, 1, 2, 3, 0]


def test_the_same_view_has_another_order_in_another_epoch(
    read_only: Cache, dataset: Dataset
) -> None:
    found = digests(replay(read_only, dataset, num_epochs=5, batch_size=24))
    first, last = found[:24], found[-24:]
    assert [name for name, _ in first] != [name for name, _ in last]
    assert sorted(first) == sorted(last)


def test_ranks_hand_over_different_samples_in_equally_many_batches(
    read_only: Cache, dataset: Dataset
) -> None:
    by_rank = [
        [names([batch]) for batch in replay(read_only, dataset, batch_size=6, rank=r, world=3)]
        for r in range(3)
    ]
    assert {len(batch) for batches in by_rank for batch in batches} == {2}
    assert len({len(batches) for batches in by_rank}) == 1
    handed = [name for batches in by_rank for batch in batches for name in batch]
    assert len(set(handed)) == len(handed) == 48


def test_a_run_goes_on_with_other_ranks_and_no_sample_twice_or_never(
    read_only: Cache, dataset: Dataset
) -> None:
    """Four ranks for three steps, one for two, then two to the end: as one from start to end."""
    options = {"batch_size": 4, "lanes": 4, "num_epochs": 2, "window": 3}
    expected = [digests([batch]) for batch in replay(read_only, dataset, **options)]
    state, found = None, []
    for world, num_steps in ((4, 3), (1, 2), (2, None)):
        steps: list[list[Any]] = []
        for rank in range(world):
            stream = replay(read_only, dataset, **options, rank=rank, world=world)
            if state is not None:
                stream.load_state_dict(state)
            batches = list(itertools.islice(stream, num_steps))
            steps = steps or [[] for _ in batches]
            for step, batch in zip(steps, batches, strict=True):
                step += digests([batch])
        found += steps
        state = stream.state_dict()
    assert found == expected


def test_ranks_share_a_stream_that_is_not_shuffled(read_only: Cache, dataset: Dataset) -> None:
    options = {"shuffle": False, "num_epochs": 1}
    whole = digests(replay(read_only, dataset, **options))
    shares = [
        [
            digests([batch])
            for batch in replay(read_only, dataset, **options, rank=rank, world=7, batch_size=14)
        ]
        for rank in range(7)
    ]
    assert [view for share in shares for batch in share for view in batch] == whole
    assert {len(batch) for share in shares for batch in share} == {1, 2}
    assert list(replay(read_only, dataset, **options, rank=0, world=99)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_at_a_time_is_the_whole_stream(
    read_only: Cache, dataset: Dataset, workers: int
) -> None:
    whole = [digests([batch]) for batch in replay(read_only, dataset, num_epochs=3)]
    stream = EpochStream(replay(read_only, dataset, num_epochs=3, num_workers=workers))
    loader: DataLoader[Batch] = DataLoader(stream, batch_size=None)
    assert len(loader) == 4
    first = [digests([batch]) for batch in loader]
    head = [digests([batch]) for batch in itertools.islice(loader, 2)]
    state = stream.state_dict()
    rest = [digests([batch]) for batch in loader]
    last = [digests([batch]) for batch in loader]
    assert [*first, *head, *rest, *last] == whole
    assert list(loader) == []
    stream.load_state_dict(state)
    assert [digests([batch]) for batch in loader] == rest


@pytest.mark.parametrize("window", [1, 2, 3])
def test_memory_holds_the_blocks_of_the_window(
    read_only: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """7 blocks an epoch; beside the window, the one that gave the last view is alive."""
    blocks: list[weakref.ref[Any]] = []
    render = BlockRenderer.__getitem__

    def noted(self: BlockRenderer, request: Any) -> Any:
        block = render(self, request)
        blocks.append(weakref.ref(block))
        return block

    monkeypatch.setattr(BlockRenderer, "__getitem__", noted)
    stream = replay(read_only, dataset, window=window, batch_size=1)
    alive = [sum(ref() is not None for ref in blocks) for _ in stream]
    assert len(blocks) == 14
    assert max(alive) <= window + 1


# --- what a batch holds --------------------------------------------------------------------


def test_a_batch_holds_uint8_pixels_with_channels_last_in_memory(
    read_only: Cache, dataset: Dataset
) -> None:
    batch = next(iter(replay(read_only, dataset)))
    assert (batch.pixels.dtype, tuple(batch.pixels.shape)) == (torch.uint8, (5, 3, 12, 12))
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    for tensor in (batch.labels, batch.partner_labels, batch.tars, batch.rows, batch.views):
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.int64, (5,))
    assert batch.weights.dtype == torch.float32
    assert len(batch) == 5


def test_targets_are_what_the_teacher_says_of_the_pixels(dataset: Dataset, tmp_path: Path) -> None:
    """With all classes kept; the error is that of the encoding, below 0.13 nats of 32."""
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), encoding="topk:5")
    teacher = tiny.make_teacher()
    for batch in replay(cache, dataset, num_epochs=4):
        for temperature in (1.0, 2.0):
            logits = teacher(batch.pixels) / temperature
            truth = logits.log_softmax(1)
            found = batch.target(temperature).dense(5)
            near = truth > -16
            assert (found - truth)[near].abs().max() < 0.13
            assert (found.argmax(1) == truth.argmax(1)).all()


def test_labels_partners_and_weights_tell_how_the_pixels_were_mixed(
    read_only: Cache, dataset: Dataset
) -> None:
    """Blended here from views rendered without mixing, the pixels come out the same."""
    plain = dataset_source(dataset, PLAIN_RECIPE)
    mixed = 0
    for batch in replay(read_only, dataset, num_epochs=4):
        for n, (tar, row, view) in enumerate(names([batch])):
            rows = next(r for r in plain.blocks(tar) if r.start <= row < r.stop)
            alone = plain.render(tar, rows, views=[view]).pixels_GNHW3[0]
            labels = plain.labels(tar, rows)
            own = row - rows.start
            assert batch.labels[n] == labels[own]
            weight = round(float(batch.weights[n]) * 256)
            pixels = batch.pixels[n].permute(1, 2, 0).numpy()
            blends = {
                int(labels[other])
                for other in range(len(alone))
                if (_blend(alone[own], alone[other], weight) == pixels).all()
            }
            assert int(batch.partner_labels[n]) in blends
            mixed += weight < 256
    assert mixed > 70


def _blend(own: Any, other: Any, weight: int) -> Any:
    total = own.astype(int) * weight + other.astype(int) * (256 - weight)
    return (total + 128) // 256


def test_unmixed_views_are_all_their_own(dataset: Dataset, tmp_path: Path) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, PLAIN_RECIPE)
    for batch in replay(cache, dataset):
        assert (batch.weights == 1).all()
        assert torch.equal(batch.partner_labels, batch.labels)


def test_a_batch_moves_with_all_that_training_reads(read_only: Cache, dataset: Dataset) -> None:
    batch = next(iter(replay(read_only, dataset)))
    moved = batch.to(torch.device("meta"))
    tensors = [moved.pixels, moved.labels, moved.partner_labels, moved.weights]
    assert {t.device.type for t in [*tensors, *(moved.fields or {}).values()]} == {"meta"}
    for same in (batch.to(torch.device("cpu")), batch.to("cpu")):
        assert digests([same]) == digests([batch])


def test_temperatures_that_the_encoding_does_not_serve_are_refused(
    read_only: Cache, dataset: Dataset
) -> None:
    batch = next(iter(replay(read_only, dataset)))
    with pytest.raises(UsageError, match="temperature 8 with topk:3"):
        batch.target(8.0)


# --- fixed targets and labels --------------------------------------------------------------


def _labels_right(batches: list[Batch], dataset: Dataset) -> bool:
    return all(
        batch.labels.tolist()
        == [
            int(dataset.labels[dataset.starts[tar] + row])
            for tar, row in zip(batch.tars.tolist(), batch.rows.tolist(), strict=True)
        ]
        for batch in batches
    )


def test_a_fixed_teacher_says_the_same_of_fresh_views(dataset: Dataset, tmp_path: Path) -> None:
    centre = tiny.make_recipe(crop={"law": "centre", "resize": 12}, flip=None, mix=None)
    cache = tiny.precompute(tmp_path / "c", dataset, centre, num_views=1, span_views=1)
    options = StreamOptions(batch_size=6, num_epochs=3)
    batches = list(fixed_stream(cache, dataset, options, recipe=PLAIN_RECIPE))
    source, seen = dataset_source(dataset, PLAIN_RECIPE), 0
    for batch in batches:
        assert batch.fields is not None
        for n, (tar, row, view) in enumerate(names([batch])):
            stored = cache.read_tile(tar, 0).fields
            assert all(torch.equal(batch.fields[k][n], stored[k][row]) for k in stored)
            rows = next(r for r in source.blocks(tar) if r.start <= row < r.stop)
            expected = source.render(tar, rows, views=[view]).pixels_GNHW3[0][row - rows.start]
            assert (batch.pixels[n].permute(1, 2, 0).numpy() == expected).all()
            seen += 1
    assert seen == 3 * 24
    assert {view for batch in batches for view in batch.views.tolist()} == {0, 1, 2}
    assert _labels_right(batches, dataset)


@pytest.fixture(scope="module")
def unmixed(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Cache:
    """A complete cache of views that are not mixed."""
    return tiny.precompute(tmp_path_factory.mktemp("unmixed") / "c", dataset, PLAIN_RECIPE)


@pytest.mark.parametrize("recipe", [None, PLAIN_RECIPE, tiny.make_recipe(mix=None, seed=77)])
def test_independent_noise_has_the_targets_of_other_crops(
    unmixed: Cache, dataset: Dataset, recipe: Recipe | None
) -> None:
    options = StreamOptions(batch_size=6, num_epochs=6)
    stream = independent_stream(unmixed, dataset, options, recipe=recipe)
    assert stream.recipe.seed != unmixed.info.recipe.seed
    assert stream.recipe.crop == unmixed.info.recipe.crop
    teacher, same, seen = tiny.make_teacher(), 0, 0
    for batch in stream:
        assert batch.fields is not None
        own = unmixed.info.encoding.encode(teacher(batch.pixels))
        for n, (tar, row, view) in enumerate(names([batch])):
            stored = unmixed.read_tile(tar, view % 4).fields
            found = {name: field[n].tolist() for name, field in batch.fields.items()}
            assert found == {name: field[row].tolist() for name, field in stored.items()}
            same += found == {name: field[n].tolist() for name, field in own.items()}
            seen += 1
    assert seen == 6 * 24
    assert same < seen / 10
    assert {view for b in stream_views(unmixed, dataset, options) for view in b} == set(range(6))


def stream_views(cache: Cache, dataset: Dataset, options: StreamOptions) -> list[list[int]]:
    return [batch.views.tolist() for batch in independent_stream(cache, dataset, options)]


def test_targets_of_one_crop_are_not_for_mixed_images(
    read_only: Cache, unmixed: Cache, dataset: Dataset
) -> None:
    options, mixed = StreamOptions(batch_size=5), tiny.make_recipe()
    for cache, recipe in ((read_only, PLAIN_RECIPE), (unmixed, mixed)):
        for open_stream in (fixed_stream, independent_stream):
            with pytest.raises(UsageError, match=r"no targets for mixed images; take a recipe wit"):
                open_stream(cache, dataset, options, recipe=recipe)


@pytest.mark.parametrize("recipe", [PLAIN_RECIPE, tiny.make_recipe()])
def test_a_label_stream_has_labels_and_no_targets(dataset: Dataset, recipe: Recipe) -> None:
    stream = label_stream(dataset, StreamOptions(batch_size=6, num_epochs=6), recipe=recipe)
    batches = list(stream)
    assert _labels_right(batches, dataset)
    assert [batch.views.unique().tolist() for batch in batches] == [
        [e] for e in range(6) for _ in range(4)
    ]
    assert len({digest for _, digest in digests(batches)}) > 140, "each epoch has views of its own"
    assert all(batch.fields is None for batch in batches)
    with pytest.raises(UsageError, match="this stream has no targets; open it with a cache"):
        batches[0].target(1.0)


def test_a_label_stream_leaves_out_rows_known_to_be_bad(dataset: Dataset) -> None:
    bad = {0: frozenset({0, 3}), 2: frozenset({0, 1, 2, 3})}
    options = StreamOptions(batch_size=3, num_epochs=2)
    stream = label_stream(dataset, options, recipe=tiny.make_recipe(), known_bad=bad)
    assert (stream.num_samples, stream.batches_per_epoch) == (18, 6)
    handed = {name[:2] for name in names(stream)}
    assert len(handed) == 18
    assert not handed & {(tar, row) for tar, rows in bad.items() for row in rows}


def test_samples_without_label_have_minus_one(tmp_path: Path) -> None:
    images = tmp_path / "images"
    tiny.write_images(tmp_path / "classes", 6)
    images.mkdir()
    for path in (tmp_path / "classes").rglob("*.*"):
        path.rename(images / path.name)
    dataset = tiny.pack_images(images, tmp_path / "data")
    assert dataset.num_classes is None
    with pytest.raises(UsageError, match="6 of 6 samples have no label"):
        label_stream(dataset, StreamOptions(batch_size=6), recipe=tiny.make_recipe())
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe())
    assert next(iter(replay(cache, dataset))).labels.tolist() == [-1] * 5


# --- loaders -------------------------------------------------------------------------------


def test_a_data_loader_without_workers_hands_the_stream_through(
    read_only: Cache, dataset: Dataset
) -> None:
    loader = DataLoader(replay(read_only, dataset), batch_size=None, collate_fn=lambda batch: batch)
    assert digests(loader) == digests(replay(read_only, dataset))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_data_loader_pins_what_training_reads_of_a_batch(
    read_only: Cache, dataset: Dataset
) -> None:
    loader = DataLoader(replay(read_only, dataset), batch_size=None, pin_memory=True)
    batches = list(loader)
    for batch in batches:
        tensors = [batch.pixels, batch.labels, batch.partner_labels, batch.weights]
        assert all(t.is_pinned() for t in [*tensors, *(batch.fields or {}).values()])
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        moved = batch.to("cuda")
        assert torch.equal(moved.pixels.cpu(), batch.pixels)
    assert digests(batches) == digests(replay(read_only, dataset))


def test_a_data_loader_with_workers_is_refused(read_only: Cache, dataset: Dataset) -> None:
    loader = DataLoader(replay(read_only, dataset), batch_size=None, num_workers=2)
    with pytest.raises(UsageError, match=r"its own workers: .*set StreamOptions\.num_workers"):
        next(iter(loader))
