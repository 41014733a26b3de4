"""Claims about several views a load: the same views, each once, shuffled together; exact resume."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import BlockSource
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.pixels import render
from kdcache.precompute.span import Job, run_span
from kdcache.replay.open import label_stream, replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from tests import tiny
from tests.replay.streaming import digests, names

NUM_SAMPLES, NUM_VIEWS = 24, 4


@pytest.fixture(scope="module")
def read_only(complete: Path) -> Cache:
    """The complete cache of the dataset, 4 views."""
    return open_cache(complete)


def replay(cache: Cache, dataset: Dataset, **options: Any) -> ReplayStream:
    options = {"batch_size": 5, "num_epochs": NUM_VIEWS, "window": 2} | options
    return replay_stream(cache, dataset, StreamOptions(**options))


@pytest.mark.parametrize("views_per_load", [2, 4])
def test_every_view_is_handed_over_once_with_its_target(
    read_only: Cache, dataset: Dataset, views_per_load: int
) -> None:
    one = dict(digests(replay(read_only, dataset, batch_size=4)))
    many = digests(replay(read_only, dataset, batch_size=4, views_per_load=views_per_load))
    assert len(many) == len(one) == NUM_SAMPLES * NUM_VIEWS
    assert dict(many) == one


def test_a_load_holds_all_its_views_of_each_sample_shuffled_together(
    read_only: Cache, dataset: Dataset
) -> None:
    found = names(replay(read_only, dataset, batch_size=4, views_per_load=2, window=16))
    for load, first_view in enumerate((0, 2)):
        part = found[load * 2 * NUM_SAMPLES : (load + 1) * 2 * NUM_SAMPLES]
        assert {view for _, _, view in part} == {first_view, first_view + 1}
        assert set(Counter((tar, row) for tar, row, _ in part).values()) == {2}
        first_half = Counter(view for _, _, view in part[:NUM_SAMPLES])
        assert min(first_half.values()) > 4, "views of a load should be shuffled together"


def test_an_image_is_read_once_a_load_and_decoded_once_a_scale(
    read_only: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = render.decode_image, []

    def count(data: bytes, header: Any, **options: Any) -> Any:
        decoded.append((data, options["scale"]))
        return decode(data, header, **options)

    monkeypatch.setattr(render, "decode_image", count)
    list(replay(read_only, dataset, batch_size=4, views_per_load=4))
    assert len(decoded) == len(set(decoded)) < NUM_SAMPLES * 2
    assert len({data for data, _ in decoded}) == NUM_SAMPLES
    list(replay(read_only, dataset, batch_size=4))
    assert len(decoded) > NUM_SAMPLES * 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_sequence_depends_on_no_worker(read_only: Cache, dataset: Dataset) -> None:
    sequences = [
        digests(replay(read_only, dataset, views_per_load=2, num_workers=workers))
        for workers in (0, 1, 3)
    ]
    assert sequences[0] == sequences[1] == sequences[2]


def test_steps_are_as_many_as_with_one_view_a_load(read_only: Cache, dataset: Dataset) -> None:
    streams = [replay(read_only, dataset, views_per_load=views) for views in (1, 2, 4)]
    assert {stream.batches_per_epoch for stream in streams} == {4}
    assert {len(list(stream)) for stream in streams} == {16}


def test_a_stream_resumes_after_any_batch(read_only: Cache, dataset: Dataset) -> None:
    stream = replay(read_only, dataset, views_per_load=2)
    states, batches = [stream.state_dict()], []
    for batch in stream:
        batches.append(digests([batch]))
        states.append(stream.state_dict())
    assert [(s["epoch"], s["batch"]) for s in states] == [divmod(n, 4) for n in range(17)]
    for done, state in enumerate(states):
        resumed = replay(read_only, dataset, views_per_load=2)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert [digests([batch]) for batch in resumed] == batches[done:]


def test_ranks_share_the_samples_of_a_load(read_only: Cache, dataset: Dataset) -> None:
    shares = [
        names(replay(read_only, dataset, views_per_load=4, rank=rank, world=2, batch_size=4))
        for rank in (0, 1)
    ]
    assert len(shares[0]) == len(shares[1]) == NUM_SAMPLES * NUM_VIEWS // 2
    assert len({*shares[0], *shares[1]}) == NUM_SAMPLES * NUM_VIEWS


def test_views_of_rows_that_only_some_spans_could_use_are_replayed(tmp_path: Path) -> None:
    """A row without targets in the first span, but not in the second, mixes as its teacher saw."""
    dataset = tiny.make_dataset(tmp_path, count=8, rows_per_tar=8)
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe(block=8), skip_bad=True)
    bad = dict(zip(job.cache.grid.spans(), ({3}, set()), strict=True))
    for span, rows in bad.items():
        _run_span_without(job, span, rows)
    stream = replay_stream(
        open_cache(tmp_path / "c"),
        dataset,
        StreamOptions(batch_size=7, num_epochs=4, views_per_load=4),
    )
    assert len(names(stream)) == 7 * 4


def _run_span_without(job: Job, span: Span, rows: set[int]) -> None:
    class Damaged(BlockSource):
        def read(self, tar: int, where: slice) -> list[bytes]:
            files = super().read(tar, where)
            return [b"" if n + where.start in rows else f for n, f in enumerate(files)]

    source = job.source
    damaged = Damaged(source.dataset, source.recipe, source.starts, source.uids, source.places)
    run_span(replace(job, source=damaged), span)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views_per_load": 3}, "views_per_load is 3, expected a divisor of the 4 epochs"),
        ({"views_per_load": 0}, "views_per_load is 0, expected 1 or more"),
        ({"views_per_load": 2, "shuffle": False}, "views_per_load is 2, expected 1"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StreamOptions(batch_size=4, num_epochs=4, **options)


def test_streams_of_labels_load_several_views_too(dataset: Dataset) -> None:
    recipe = tiny.make_recipe()
    options = {"batch_size": 4, "num_epochs": 4}
    one = label_stream(dataset, StreamOptions(**options), recipe=recipe)
    many = label_stream(dataset, StreamOptions(**options, views_per_load=2), recipe=recipe)
    assert dict(digests(one)) == dict(digests(many))
