"""Claims about a replay that cannot be right: it stops, and says what to do."""

import multiprocessing
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache import __version__
from kdcache.cache import layers as layers_module
from kdcache.cache.layout import Span
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import BlockSource, dataset_source
from kdcache.data.dataset import Dataset
from kdcache.data.index import build_index, find_tars
from kdcache.errors import (
    CorruptError,
    DataError,
    IncompleteError,
    KdcacheError,
    MismatchError,
    UsageError,
)
from kdcache.pixels import render as render_module
from kdcache.pixels.decode import Decoded
from kdcache.pixels.render import RenderedBlock
from kdcache.pixels.witness import Layer, pixel_versions
from kdcache.precompute import span as span_module
from kdcache.precompute.engines import run_inline
from kdcache.replay.blocks import Request
from kdcache.replay.open import fixed_stream, independent_stream, label_stream, replay_stream
from kdcache.replay.order import Block
from kdcache.replay.stream import ReplayStream, StreamOptions
from tests import tiny
from tests.pixels.altering import alter
from tests.replay.streaming import digests, names

RECIPE = tiny.make_recipe()


def replay(cache: Cache, dataset: Dataset, **options: Any) -> ReplayStream:
    options = {"batch_size": 4} | options
    return replay_stream(cache, dataset, StreamOptions(**options))


# --- views that are not there --------------------------------------------------------------


def test_missing_views_are_named_before_anything_is_read(cache: Cache, dataset: Dataset) -> None:
    """Spans of two views; the second run of tar 1 is not there."""
    (cache.path / Span(1, 1).commit_name).unlink()
    for options in ({"num_epochs": 3}, {"first_view": 2}, {"first_view": 3}):
        with pytest.raises(IncompleteError, match=r"views [23].* not computed .*\(1 spans.* 1-1"):
            replay(cache, dataset, **options)
    with pytest.raises(IncompleteError, match=r"views 2\.\.3 are"):
        replay(cache, dataset, num_epochs=9)
    with pytest.raises(IncompleteError, match="views 3 are"):
        replay(cache, dataset, first_view=3)
    assert len(names(replay(cache, dataset, num_epochs=2))) == 48
    (cache.path / Span(2, 0).commit_name).unlink()
    with pytest.raises(IncompleteError, match=r"views 0\.\.1 are"):
        replay(cache, dataset, num_epochs=2)


def test_other_targets_ask_for_their_views_alone(dataset: Dataset, tmp_path: Path) -> None:
    plain, options = tiny.make_recipe(mix=None), StreamOptions(batch_size=4)
    cache = tiny.precompute(tmp_path / "c", dataset, plain)
    (cache.path / Span(1, 1).commit_name).unlink()
    assert len(names(fixed_stream(cache, dataset, options, recipe=plain))) == 24
    assert len(names(independent_stream(cache, dataset, options))) == 24
    with pytest.raises(IncompleteError, match=r"views 2\.\.3 are"):
        independent_stream(cache, dataset, StreamOptions(batch_size=4, num_epochs=4))
    (cache.path / Span(2, 0).commit_name).unlink()
    for open_stream in (fixed_stream, independent_stream):
        with pytest.raises(IncompleteError, match="views 0 are"):
            open_stream(cache, dataset, options, recipe=plain)


# --- other data ----------------------------------------------------------------------------


def test_another_dataset_is_refused(cache: Cache, tmp_path: Path) -> None:
    other = tiny.make_dataset(tmp_path, 20, seed=0)
    with pytest.raises(MismatchError, match=r"4 of the cache's 24 samples are not in this"):
        replay(cache, other)


def test_a_dataset_with_more_samples_serves(cache: Cache, tmp_path: Path, dataset: Dataset) -> None:
    more = tiny.make_dataset(tmp_path, 30, seed=0, rows_per_tar=7)
    assert digests(replay(cache, more)) == digests(replay(cache, dataset))


def _changed_copy(dataset: Dataset, out: Path) -> tuple[Path, str]:
    """Copy the tars with one byte of the third image of tar 1 changed."""
    shutil.copytree(dataset.root, out)
    row = int(dataset.starts[1]) + 2
    path = out / dataset.tars[1].name
    data = bytearray(path.read_bytes())
    data[int(dataset.offsets[row]) + int(dataset.sizes[row]) // 2] ^= 1
    path.write_bytes(data)
    return path, f"class{2 if dataset.labels[row] == 2 else dataset.labels[row]}"


def test_an_image_that_changed_since_the_cache_is_named(
    cache: Cache, dataset: Dataset, tmp_path: Path
) -> None:
    path, folder = _changed_copy(dataset, tmp_path / "changed")
    indexed = build_index(find_tars(path.parent), root=path.parent, classes=dataset.classes)
    with pytest.raises(MismatchError, match=rf"{path}, key {folder}/\d+: .* and 0 others, differ"):
        replay(cache, indexed)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_changed_since_the_index_is_named(
    cache: Cache, dataset: Dataset, tmp_path: Path, num_workers: int
) -> None:
    path, folder = _changed_copy(dataset, tmp_path / "changed")
    stale = replace(dataset, root=path.parent)
    with pytest.raises(DataError, match=rf"{path}: {folder}/\d+: other bytes than indexed"):
        list(replay(cache, stale, num_workers=num_workers))


def test_a_missing_tar_is_named(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    gone = replace(dataset, root=tmp_path / "gone")
    with pytest.raises(DataError, match=r"gone/00000\d\.tar"):
        list(replay(cache, gone))


# --- other pixels --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OtherLibrary(BlockSource):
    """A source that renders one channel of one pixel of some blocks off by one."""

    first_row: int = 0
    views: tuple[int, ...] = (0, 1, 2, 3)

    def render(
        self, tar: int, rows: slice, *, views: Sequence[int], **options: Any
    ) -> RenderedBlock:
        block = super().render(tar, rows, views=views, **options)
        if rows.start == self.first_row:
            wrong = [view in self.views for view in views]
            block.pixels_GNHW3[wrong, 0, 5, 5, 1] ^= 1
        return block


def _made_elsewhere(path: Path, dataset: Dataset, first_row: int) -> Cache:
    job = tiny.make_job(path, dataset, RECIPE)
    fields = {name: getattr(job.source, name) for name in BlockSource.__dataclass_fields__}
    run_inline(replace(job, source=OtherLibrary(**fields, first_row=first_row)))
    return job.cache


def refusal(stream: ReplayStream) -> str:
    """Return the message with which a stream stops."""
    try:
        list(stream)
    except MismatchError as error:  # not kept: it would keep the workers
        return str(error)
    pytest.fail("other pixels went unnoticed")


STEPS = tiny.make_recipe(
    flip={"horizontal": 0.5, "vertical": 0.5},
    solarize={"probability": 1.0, "threshold": 0},
    mix={"law": "switch"},
)
RESTS_ON = {
    Layer.DRAW: ("numpy",),
    Layer.DECODE: ("simplejpeg", "pillow"),
    Layer.RESIZE: ("torch",),
    Layer.STEPS: ("numpy",),
    Layer.MIX: ("numpy",),
}


def _made_altered(
    path: Path, dataset: Dataset, layer: Layer, versions: dict[str, str] | None = None
) -> Cache:
    """Return a cache whose pixels were made with one layer altered, by other versions."""
    theirs = {**pixel_versions(), **(versions or {})}
    with pytest.MonkeyPatch.context() as there:
        alter(there, layer)
        there.setattr(span_module, "pixel_versions", lambda: theirs)
        return tiny.precompute(path, dataset, STEPS)


@pytest.mark.parametrize("layer", Layer)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_pixels_of_another_library_stop_naming_the_layer_and_its_versions(
    dataset: Dataset, tmp_path: Path, num_workers: int, layer: Layer
) -> None:
    ours = pixel_versions()
    theirs = {name: f"0.{number}" for number, name in enumerate(ours)}
    cache = _made_altered(tmp_path / "c", dataset, layer, theirs)
    message = refusal(replay(cache, dataset, num_workers=num_workers, witness_share=0.0))
    assert "rows 0 to 3: the pixels made here differ" in message
    assert f"the first layer that differs is {layer} (" in message
    assert not any(f"is {other} (" in message for other in Layer if other != layer)
    for name in ours:
        stated = f"{name} {theirs[name]} there, {ours[name]} here" in message
        assert stated == (name in RESTS_ON[layer])
    assert f"kdcache {__version__} there and here" in message
    assert message.endswith("install the versions of the cache, or precompute a new cache")


@pytest.mark.parametrize("layer", Layer)
def test_equal_versions_are_said_to_be_equal(
    dataset: Dataset, tmp_path: Path, layer: Layer
) -> None:
    cache = _made_altered(tmp_path / "c", dataset, layer)
    message = refusal(replay(cache, dataset))
    equal = "; ".join(f"{name} {pixel_versions()[name]} there and here" for name in RESTS_ON[layer])
    assert f"differs is {layer} ({equal}; kdcache {__version__} there and here)" in message
    assert message.endswith(
        "another build or processor makes other pixels; precompute a new cache here"
    )


def test_another_kdcache_is_named(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers_module, "__version__", "9.9")
    alter(monkeypatch, Layer.RESIZE)
    message = refusal(replay(cache, dataset))
    assert f"is resize (torch {pixel_versions()['torch']} there and here; kdcache" in message
    assert f"kdcache {__version__} there, 9.9 here): install the versions of the cache" in message


def test_the_resize_of_the_recipe_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.make_recipe(resize="pillow")
    cache = tiny.precompute(tmp_path / "c", dataset, recipe)
    alter(monkeypatch, Layer.RESIZE)
    message = refusal(replay(cache, dataset))
    assert f"differs is resize (pillow {pixel_versions()['pillow']} there and here;" in message


def test_the_first_of_several_layers_that_differ_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, STEPS)
    for layer in reversed(Layer):
        alter(monkeypatch, layer)
        assert f"the first layer that differs is {layer} (" in refusal(replay(cache, dataset))


@pytest.mark.parametrize("first_row", [0, 4])
def test_one_block_mixed_otherwise_is_enough_to_blame_the_mixing(
    dataset: Dataset, tmp_path: Path, first_row: int
) -> None:
    """Its pixels were changed after all that digests are kept of."""
    cache = _made_elsewhere(tmp_path / "c", dataset, first_row)
    assert "the first layer that differs is mix (numpy" in refusal(replay(cache, dataset))


def test_a_difference_in_another_view_than_the_kept_one_names_all_versions(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Spans of two views: the layers of views 0 and 2 are kept, views 1 and 3 are wrong."""
    job = tiny.make_job(tmp_path / "c", dataset, RECIPE)
    fields = {name: getattr(job.source, name) for name in BlockSource.__dataclass_fields__}
    run_inline(replace(job, source=OtherLibrary(**fields, views=(1, 3))))
    assert len(names(replay(job.cache, dataset))) == 24
    message = refusal(replay(job.cache, dataset, first_view=3))
    assert "view 3, rows 0 to 3: the pixels made here differ" in message
    assert "no layer differs in view 2 of this tar, the one whose layers are kept (" in message
    for name, version in pixel_versions().items():
        assert f"{name} {version} there and here" in message


def test_an_image_that_is_refused_here_but_was_not_there_is_the_decoders_fault(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its row would be missing from the draws, too, which come first."""
    alter(monkeypatch, Layer.DECODE)
    other, source = render_module.decode_image, dataset_source(dataset, RECIPE)
    refused = [source.read(tar, slice(3, 4))[0] for tar in range(3)]

    def decoded(data: bytes, *args: Any, **options: Any) -> Decoded:
        if data in refused:
            raise DataError("cannot be decoded")
        return other(data, *args, **options)

    monkeypatch.setattr(render_module, "decode_image", decoded)
    renderer = replay(cache, dataset)._renderer
    for block in (Block(0, 4, 8), Block(1, 4, 8)):  # not those that hold these images
        error = renderer[Request(block, (0,), prove=True)]
        assert isinstance(error, MismatchError)
        assert "the first layer that differs is decode (simplejpeg" in str(error)


def test_the_share_of_proven_blocks_decides_what_is_found(dataset: Dataset, tmp_path: Path) -> None:
    """Only the second block of each tar is wrong: the first ones are always proven."""
    cache = _made_elsewhere(tmp_path / "c", dataset, 4)
    assert len(names(replay(cache, dataset, witness_share=0.0, num_epochs=4))) == 4 * 24
    with pytest.raises(MismatchError, match="rows 4 to 7"):
        list(replay(cache, dataset, witness_share=1.0))
    found = 0
    for seed in range(10):
        try:
            list(replay(cache, dataset, witness_share=0.3, num_epochs=1, seed=seed))
        except MismatchError:
            found += 1
    assert 1 <= found <= 9


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_is_kept_and_first_blocks_are_always_proven(
    cache: Cache, dataset: Dataset, share: float
) -> None:
    stream = replay(cache, dataset, witness_share=share, num_epochs=200)
    requests = [request for epoch in range(200) for request in stream.requests(epoch, 0)]
    others = [request.prove for request in requests if request.block.start > 0]
    assert all(request.prove for request in requests if request.block.start == 0)
    assert len(others) == 200 * 4
    assert abs(np.mean(others) - share) < 0.06


# --- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_stops_the_stream_under_its_own_name(
    cache: Cache, dataset: Dataset, num_workers: int
) -> None:
    path = cache.path / "values/c/2/0/0/0"
    data = bytearray(path.read_bytes())
    place = cache.commit(Span(2, 0)).tiles["values"][0]  # of the view that the stream reads
    data[place.offset + place.size_bytes // 2] ^= 4
    path.write_bytes(data)
    stream = replay(cache, dataset, num_workers=num_workers)
    with pytest.raises(CorruptError, match="values/c/2/0/0/0"):
        list(stream)
    handed = stream.state_dict()["batch"]
    assert handed < stream.batches_per_epoch
    assert open_cache(cache.path).missing() == []


def test_an_error_ends_the_workers_at_once(cache: Cache, dataset: Dataset) -> None:
    (cache.path / "values/c/2/0/0/0").unlink()
    started = time.monotonic()
    try:
        list(replay(cache, dataset, num_workers=2))
    except CorruptError:
        pass
    else:
        pytest.fail("a missing object went unnoticed")
    assert multiprocessing.active_children() == []
    assert time.monotonic() - started < 4, "torch gives up on a worker after 5 seconds"


# --- bad samples ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 images; those of rows 2, 3, 11 and all of the last tar are no images."""
    root = tmp_path_factory.mktemp("spoiled")
    folder = tiny.write_images(root / "images", 24)
    files = sorted(folder.rglob("*.*"))
    for row in (2, 3, 11, 20, 21, 22, 23):
        files[row].write_bytes(b"no image")
    return tiny.pack_images(folder, root / "data")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipped_rows_are_never_handed_over(
    spoiled: Dataset, tmp_path: Path, num_workers: int
) -> None:
    cache = tiny.precompute(tmp_path / "c", spoiled, RECIPE, skip_bad=True)
    stream = replay(cache, spoiled, num_epochs=4, shuffle=False, num_workers=num_workers)
    assert (stream.num_samples, stream.batches_per_epoch) == (17, 5)
    handed = names(stream)
    assert len(set(handed)) == len(handed) == 4 * 17
    bad = {(0, 2), (0, 3), (1, 1)} | {(2, row) for row in range(4)}
    assert not {name[:2] for name in handed} & bad
    resharded = tiny.pack_images(
        spoiled.root.parent / "images", tmp_path / "resharded", rows_per_tar=9, shuffle_seed=1
    )
    options = {"num_epochs": 4, "shuffle": False}
    assert digests(replay(cache, resharded, **options)) == digests(
        replay(cache, spoiled, **options)
    )


def test_a_fixed_teacher_leaves_its_skipped_rows_out(spoiled: Dataset, tmp_path: Path) -> None:
    plain = tiny.make_recipe(mix=None)
    cache = tiny.precompute(tmp_path / "c", spoiled, plain, skip_bad=True)
    options = StreamOptions(batch_size=4, num_epochs=2, shuffle=False)
    for open_stream in (fixed_stream, independent_stream):
        assert len(names(open_stream(cache, spoiled, options, recipe=plain))) == 2 * 17


def test_a_bad_image_stops_a_label_stream_naming_it(spoiled: Dataset) -> None:
    options = StreamOptions(batch_size=4, shuffle=False)
    with pytest.raises(DataError, match=r"000000\.tar, key class0/00010: not a readable JPEG"):
        list(label_stream(spoiled, options, recipe=RECIPE))


def test_a_dataset_without_a_usable_image_fills_no_batch(tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "images", 5)
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no image")
    dataset = tiny.pack_images(folder, tmp_path / "data")
    cache = tiny.precompute(tmp_path / "c", dataset, RECIPE, skip_bad=True)
    assert cache.totals().unusable == {0: (0, 1, 2, 3, 4)}
    with pytest.raises(UsageError, match="0 usable samples"):
        replay(cache, dataset)


# --- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fitting", "advice"),
    [
        ({"batch_size": 25}, {"batch_size": 24}, "--batch-size 24 or less"),
        ({"batch_size": 27, "world": 3}, {"batch_size": 24}, "24, or a smaller multiple of 3"),
        ({"batch_size": 70, "lanes": 7}, {"batch_size": 21}, "21, or a smaller multiple of 7"),
        (
            {"batch_size": 50, "lanes": 50, "world": 5},
            {"batch_size": 20, "lanes": 5},
            "20 --lanes 5, or a smaller multiple of 5",
        ),
    ],
)
def test_a_batch_larger_than_the_data_is_refused_and_one_that_serves_is_named(
    cache: Cache, dataset: Dataset, options: dict[str, int], fitting: dict[str, int], advice: str
) -> None:
    with pytest.raises(UsageError, match=rf"24 usable samples .* fill no batch; .*{advice}$"):
        replay(cache, dataset, **options)
    assert replay(cache, dataset, **(options | fitting)).batches_per_epoch == 1


def test_more_processes_than_samples_are_refused(cache: Cache, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="give more samples, or fewer processes"):
        replay(cache, dataset, batch_size=25, world=25)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"num_epochs": -1},
        {"window": -1},
        {"num_workers": -1},
        {"first_view": -1},
        {"world": 0},
        {"rank": 2, "world": 2},
        {"rank": -1},
        {"lanes": 0},
        {"lanes": 3, "world": 2, "batch_size": 6},
        {"batch_size": 6, "lanes": 4},
        {"batch_size": 4, "world": 3},
        {"witness_share": 1.5},
        {"witness_share": -0.1},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_options_out_of_range_are_refused_by_name(
    cache: Cache, dataset: Dataset, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", ".")):
        replay(cache, dataset, **options)
    assert issubclass(UsageError, KdcacheError)
