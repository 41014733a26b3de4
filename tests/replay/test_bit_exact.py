"""The claim of the whole library: the student gets the very bytes that the teacher saw and said.

500 JPEG and PNG images of many sizes, cropped, flipped and mixed, in 4 views. The digests of pixels
and targets are taken where the teacher is called, and again where the stream hands them over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import Job
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.targets.encoding import to_arrays
from tests import tiny
from tests.replay.streaming import Name, digests

NUM_IMAGES, NUM_VIEWS = 500, 4
RECIPE = tiny.make_recipe(size=16, block=32)

# torch warns of more workers than cores, which is what is wanted here
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@dataclass(frozen=True, eq=False)
class Made:
    """A dataset, the same images in other tars, a cache, and the digest of each of its views."""

    dataset: Dataset
    resharded: Dataset
    cache: Cache
    taught: dict[Name, str]

    def stream(self, *, resharded: bool = False, **options: Any) -> ReplayStream:
        options = {"batch_size": 64, "num_epochs": NUM_VIEWS} | options
        dataset = self.resharded if resharded else self.dataset
        return replay_stream(self.cache, dataset, StreamOptions(**options))


def _names(job: Job) -> Iterator[Name]:
    """Yield the views in the order in which a job gives them to its teacher."""
    for span in job.cache.grid.spans():
        for rows in job.source.blocks(span.tar):
            for view in job.cache.grid.views(span):
                yield from ((span.tar, row, view) for row in range(rows.start, rows.stop))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("exact")
    folder = tiny.write_images(root / "images", NUM_IMAGES, seed=1, sides=(9, 150))
    dataset = tiny.pack_images(folder, root / "data", rows_per_tar=130)
    resharded = tiny.pack_images(folder, root / "resharded", rows_per_tar=77, shuffle_seed=5)
    assert {path.suffix for path in folder.rglob("*.*")} == {".jpg", ".png"}
    assert dataset.id != resharded.id
    assert set(dataset.uids.tolist()) == set(resharded.uids.tolist())
    job = tiny.make_job(root / "cache", dataset, RECIPE, batch_size=48)
    taught: list[str] = []

    class Recorder(torch.nn.Module):
        """The teacher, noting each view and the target that its logits make."""

        def forward(self, images_N3HW: Tensor) -> Tensor:
            logits: Tensor = job.teacher.network(images_N3HW)
            pixels = (images_N3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            info = job.cache.info
            fields = to_arrays(info.encoding.encode(logits), info.specs)
            for number, image in enumerate(pixels):
                taught.append(tiny.view_digest(image, [f[number] for f in fields.values()]))
            return logits

    run_inline(replace(job, teacher=replace(job.teacher, network=Recorder())))
    by_name = dict(zip(_names(job), taught, strict=True))
    assert len(by_name) == NUM_IMAGES * NUM_VIEWS
    assert len(set(taught)) > 0.99 * len(taught), "views should differ"
    return Made(dataset, resharded, job.cache, by_name)


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_view_is_replayed_to_the_byte(made: Made, num_workers: int, batch_size: int) -> None:
    stream = made.stream(shuffle=False, num_workers=num_workers, batch_size=batch_size)
    found = digests(stream)
    assert len(found) == NUM_IMAGES * NUM_VIEWS
    assert dict(found) == made.taught


@pytest.mark.parametrize("resharded", [False, True])
def test_the_shuffled_sequence_depends_on_no_worker_and_no_tar(made: Made, resharded: bool) -> None:
    """One order of views, whoever renders them and wherever the samples lie."""
    sequences = [
        digests(made.stream(resharded=tars, num_workers=workers, batch_size=7))
        for workers, tars in ((0, False), (1, resharded), (3, resharded))
    ]
    assert sequences[0] == sequences[1] == sequences[2]
    assert len(sequences[0]) == 7 * (NUM_IMAGES // 7) * NUM_VIEWS
    assert all(made.taught[name] == digest for name, digest in sequences[0])


def test_a_resharded_copy_replays_every_view(made: Made) -> None:
    stream = made.stream(resharded=True, shuffle=False, num_workers=3, batch_size=64)
    assert dict(digests(stream)) == made.taught


@pytest.mark.parametrize("resharded", [False, True])
def test_labels_follow_their_samples(made: Made, resharded: bool) -> None:
    uids = np.split(made.dataset.uids, made.dataset.starts[1:-1])
    label_of = dict(zip(made.dataset.uids.tolist(), made.dataset.labels.tolist(), strict=True))
    for batch in made.stream(resharded=resharded, num_epochs=1):
        keys = [int(uids[tar][row]) for tar, row in zip(batch.tars, batch.rows, strict=True)]
        assert batch.labels.tolist() == [label_of[key] for key in keys]


@pytest.mark.parametrize(("first_view", "epoch"), [(1, 0), (3, 1), (2, 3), (6, 2)])
def test_any_first_view_and_epoch_are_replayed_to_the_byte(
    made: Made, first_view: int, epoch: int
) -> None:
    stream = made.stream(first_view=first_view, num_epochs=epoch + 1, num_workers=1)
    stream.load_state_dict({**stream.state_dict(), "epoch": epoch})
    found = digests(stream)
    assert len(found) == 64 * (NUM_IMAGES // 64)
    assert {name[2] for name, _ in found} == {(first_view + epoch) % NUM_VIEWS}
    assert all(made.taught[name] == digest for name, digest in found)


@pytest.mark.parametrize(("batch_size", "stop"), [(7, 100), (64, 10)])
def test_a_resumed_stream_goes_on_to_the_byte(made: Made, batch_size: int, stop: int) -> None:
    """Stopped in the midst of the second epoch; resumed with other workers, and other tars."""
    whole = digests(made.stream(batch_size=batch_size, num_epochs=3))
    stopped = made.stream(batch_size=batch_size, num_epochs=3, num_workers=3)
    batches = iter(stopped)
    head = digests(next(batches) for _ in range(stop))
    state = stopped.state_dict()
    del batches
    assert state["epoch"] == 1
    assert 0 < state["batch"] < stopped.batches_per_epoch - 1
    for resharded, workers in ((False, 1), (True, 0)):
        resumed = made.stream(
            batch_size=batch_size, num_epochs=3, num_workers=workers, resharded=resharded
        )
        resumed.load_state_dict(state)
        assert head + digests(resumed) == whole
    assert all(made.taught[name] == digest for name, digest in whole)
