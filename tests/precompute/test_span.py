"""Claims about a span: what the teacher saw and said is what is stored, or nothing is."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from kdcache import __version__
from kdcache.cache.layout import Span
from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.errors import DataError, UsageError
from kdcache.pixels.witness import pixel_versions, witness
from kdcache.precompute.engines import run_inline
from kdcache.precompute.span import Job, run_span
from kdcache.recipe.schema import Recipe
from kdcache.targets.encoding import to_arrays
from tests import tiny


class Broken(nn.Module):
    """A network that gives what is wanted from its fourth call on."""

    def __init__(self, network: nn.Module, wrong: Any) -> None:
        super().__init__()
        self.network, self.wrong, self.calls = network, wrong, 0

    def forward(self, images_N3HW: Tensor) -> Any:
        self.calls += 1
        logits = self.network(images_N3HW)
        return self.wrong(logits) if self.calls > 3 else logits


def _one_bad(value: float) -> Any:
    def spoil(logits_NC: Tensor) -> Tensor:
        logits_NC[-1, 2] = value
        return logits_NC

    return spoil


def test_stored_targets_are_those_of_the_pixels_rendered_alone(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Row by row, without blocks of a job: render each view, run the teacher on it, encode."""
    recipe, teacher = tiny.make_recipe(), tiny.make_teacher()
    cache = tiny.precompute(tmp_path / "c", dataset, recipe)
    source = dataset_source(dataset, recipe)
    for tar in range(source.num_tars):
        for view in range(4):
            tile, marks = cache.read_tile(tar, view), cache.read_witness(tar, view)
            assert tile.usable.all()
            for number, rows in enumerate(source.blocks(tar)):
                pixels = source.render(tar, rows, views=[view]).pixels_GNHW3[0]
                assert marks[number] == witness(pixels)
                for row, image in zip(range(rows.start, rows.stop), pixels, strict=True):
                    logits = teacher(torch.from_numpy(image).permute(2, 0, 1)[None])
                    expected = to_arrays(cache.info.encoding.encode(logits), cache.info.specs)
                    for name, array in expected.items():
                        found = tile.fields[name][row].numpy()
                        np.testing.assert_array_equal(found, array[0].astype(found.dtype))


def test_batch_size_and_span_order_change_no_byte(dataset: Dataset, tmp_path: Path) -> None:
    recipe = tiny.make_recipe()
    first = tiny.tree(tiny.precompute(tmp_path / "a", dataset, recipe, batch_size=1).path)
    for batch_size in (7, 64):
        job = tiny.make_job(tmp_path / str(batch_size), dataset, recipe, batch_size=batch_size)
        for span in reversed(job.cache.missing()):
            run_span(job, span)
        run_inline(job)
        assert tiny.tree(job.cache.path) == first


def test_a_span_run_again_is_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    first = run_span(job, Span(1, 1))
    before = tiny.tree(job.cache.path)
    again = run_span(job, Span(1, 1))
    assert again.objects == first.objects
    assert again.fidelity == first.fidelity
    assert tiny.tree(job.cache.path) == before


def test_progress_counts_each_image_of_a_span_once(dataset: Dataset, tmp_path: Path) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    done: list[int] = []
    run_span(job, Span(0, 0), progress=done.append)
    assert done == [4, 4, 2]
    total: list[int] = []
    commits = []
    run_inline(job, progress=total.append, committed=commits.append)
    assert sum(total) == (2 * 24) - 10
    assert [(c.tar, c.run) for c in commits] == [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_commit_tells_fidelity_versions_and_time(dataset: Dataset, tmp_path: Path) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe(), encoding="topk:5")
    commit = run_span(job, Span(0, 1))
    assert commit.fidelity.rows == 10  # of the first of two views
    assert 0 <= commit.fidelity.summary()["kl_nats"]["1"] < 0.01
    made_by = {"kdcache": __version__, "device": "cpu", "batch_size": "5"}
    assert commit.versions == {**pixel_versions(), **made_by, **job.teacher.settings}
    assert commit.seconds["wall"] > 0
    assert open_cache(job.cache.path).commit(Span(0, 1)) == commit


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_stop_and_commit_nothing(
    dataset: Dataset, tmp_path: Path, value: float
) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    broken = replace(job.teacher, network=Broken(job.teacher.network, _one_bad(value)))
    with pytest.raises(UsageError, match=r"not finite for .*000000\.tar, key class") as caught:
        run_span(replace(job, teacher=broken), Span(0, 0))
    assert "tests.tiny:linear_teacher" in str(caught.value)
    assert job.cache.missing() == list(job.cache.grid.spans())


def test_the_row_of_bad_logits_is_named(dataset: Dataset, tmp_path: Path) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    broken = replace(job.teacher, network=Broken(job.teacher.network, _one_bad(float("nan"))))
    # In batches of 5, the fourth call is the end of the second block: view 1 of rows 5 to 7.
    where = job.source.where(0, 7)
    with pytest.raises(UsageError, match=where):
        run_span(replace(job, teacher=broken), Span(0, 0))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda logits: logits[:, :4], "gave 4 classes, the cache has 5"),
        (lambda logits: logits[:-1], "expected a tensor of logits"),
        (lambda logits: logits[:, :, None], "expected a tensor of logits"),
        (lambda logits: {"a": logits, "b": logits}, "gave dict for"),
    ],
)
def test_output_that_is_no_logits_stops_and_commits_nothing(
    dataset: Dataset, tmp_path: Path, wrong: Any, reason: str
) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    broken = replace(job.teacher, network=Broken(job.teacher.network, wrong))
    with pytest.raises(UsageError, match=reason):
        run_inline(replace(job, teacher=broken))
    assert job.cache.missing() == list(job.cache.grid.spans())


# --- bad images ----------------------------------------------------------------------------


def _spoiled(root: Path, bad: dict[int, bytes]) -> Dataset:
    """Return 24 images of which some files hold other bytes."""
    folder = tiny.write_images(root / "images", 24)
    files = sorted(folder.rglob("*.*"))
    for row, data in bad.items():
        files[row].write_bytes(data)
    return tiny.pack_images(folder, root / "data")


def _cut(path_free: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(path_free).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()[:900]


BAD = {2: b"", 3: b"no image at all", 11: _cut(11), 20: b"x", 21: b"x", 22: b"x", 23: b"x"}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Rows 2, 3 of the first tar, 1 of the second, and all four of the third are bad."""
    return _spoiled(tmp_path_factory.mktemp("spoiled"), BAD)


@pytest.mark.parametrize("bad", [{1: b""}, {13: b"GIF89a"}, {23: _cut(0)}])
def test_a_bad_image_sets_its_spans_aside_naming_tar_and_key_and_the_others_go_on(
    tmp_path: Path, bad: dict[int, bytes]
) -> None:
    dataset = _spoiled(tmp_path, bad)
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    (row,) = bad
    tar = row // 10
    key = sorted(f"class{n % 5}/{n:05d}" for n in range(24))[row]
    expected = rf"{tar:06d}\.tar, key {key}: .*; leave such images out with --skip-bad, or "
    with pytest.raises(DataError, match=expected) as caught:
        run_inline(job)
    assert caught.value.exit_code == 7
    assert job.cache.missing() == job.cache.grid.spans_of(tar)
    assert list(quarantined(job.cache.folder)) == job.cache.grid.spans_of(tar)


def test_a_span_set_aside_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    dataset = _spoiled(tmp_path, {13: b"no image"})
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    aside, seen = job.cache.grid.spans_of(1), []
    with pytest.raises(
        DataError, match=r"key class.*; span 1-0 and 1 others are not computed, .* 2 are quar"
    ):
        run_inline(job)
    with pytest.raises(DataError, match=r"key class.* --retry-quarantined"):
        run_inline(job, progress=seen.append)
    assert not seen
    with pytest.raises(DataError):
        run_inline(job, retry_quarantined=True, progress=seen.append)
    assert seen
    assert job.cache.missing() == aside
    seal = run_inline(replace(job, skip_bad=True), retry_quarantined=True)
    assert seal.unusable == {1: (3,)}
    assert quarantined(job.cache.folder) == {}


def test_a_teacher_that_fails_on_one_span_leaves_the_others(
    dataset: Dataset, tmp_path: Path
) -> None:
    job = tiny.make_job(tmp_path / "c", dataset, tiny.make_recipe())
    calls = iter(range(100))

    def fail_later(logits: Any) -> Any:
        return logits * float("nan") if next(calls) == 9 else logits

    broken = replace(job.teacher, network=Broken(job.teacher.network, fail_later))
    with pytest.raises(UsageError, match=r"not finite .* and 0 others .* 1 are quarantined"):
        run_inline(replace(job, teacher=broken))
    assert len(job.cache.missing()) == 1
    run_inline(job, retry_quarantined=True)
    whole = tiny.precompute(tmp_path / "whole", dataset, tiny.make_recipe())
    assert tiny.tree(job.cache.path) == tiny.tree(whole.path)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes_make_the_same_bytes(
    spoiled: Dataset, tmp_path: Path, num_workers: int
) -> None:
    recipe = tiny.make_recipe(augment={"law": "trivial"}, mix={"law": "switch"})
    alone = tiny.precompute(tmp_path / "alone", spoiled, recipe, skip_bad=True)
    job = tiny.make_job(tmp_path / "c", spoiled, recipe, skip_bad=True)
    run_inline(replace(job, num_workers=num_workers))
    assert tiny.tree(job.cache.path) == tiny.tree(alone.path)
    for span in alone.grid.spans():
        ours, theirs = job.cache.commit(span), alone.commit(span)
        assert replace(ours, seconds=theirs.seconds) == theirs


def test_a_huge_image_stops_naming_the_limit(dataset: Dataset, tmp_path: Path) -> None:
    recipe = tiny.make_recipe(decode={"max_pixels": 4000})
    with pytest.raises(DataError, match=r"key .* pixels, the recipe's decode\.max_pixels is 4000"):
        tiny.precompute(tmp_path / "c", dataset, recipe)


def test_skipped_rows_have_no_target_and_are_counted(spoiled: Dataset, tmp_path: Path) -> None:
    cache = tiny.precompute(tmp_path / "c", spoiled, tiny.make_recipe(), skip_bad=True)
    expected = {0: (2, 3), 1: (1,), 2: (0, 1, 2, 3)}
    assert cache.totals().unusable == expected
    assert cache.totals().fidelity.rows == (24 - 7) * 2
    for tar, bad in expected.items():
        for view in range(4):
            assert np.flatnonzero(~cache.read_tile(tar, view).usable).tolist() == list(bad)


def test_the_teacher_never_sees_a_skipped_row(spoiled: Dataset, tmp_path: Path) -> None:
    seen: list[int] = []
    teacher = tiny.watched(tiny.make_teacher(), lambda pixels: seen.append(len(pixels)))
    path = tmp_path / "c"
    tiny.precompute(path, spoiled, tiny.make_recipe(), skip_bad=True, teacher=teacher)
    assert sum(seen) == 1 + 17 * 4, "one black image to count classes, then usable views"


def _teacher_views(job: Job, tmp_path: Path) -> dict[tuple[int, int, int], NDArray[np.uint8]]:
    """Return the pixels that the teacher saw by (tar, row, view)."""
    seen: list[NDArray[np.uint8]] = []
    run_inline(replace(job, teacher=tiny.watched(job.teacher, seen.extend)))
    names = []
    for span in job.cache.grid.spans():
        bad = job.cache.commit(span).unusable
        for rows in job.source.blocks(span.tar):
            usable = [row for row in range(rows.start, rows.stop) if row not in bad]
            names += [(span.tar, row, v) for v in job.cache.grid.views(span) for row in usable]
    return dict(zip(names, seen, strict=True))


def test_neighbours_of_a_skipped_row_are_not_mixed_with_it(
    spoiled: Dataset, tmp_path: Path
) -> None:
    """A row whose partner is bad is seen as if nothing were mixed; other rows are mixed."""
    mixed: Recipe = tiny.make_recipe()
    plain = tiny.make_recipe(mix=None)
    job = tiny.make_job(tmp_path / "mixed", spoiled, mixed, skip_bad=True)
    seen = _teacher_views(job, tmp_path)
    alone = _teacher_views(
        tiny.make_job(tmp_path / "plain", spoiled, plain, skip_bad=True), tmp_path
    )
    assert seen.keys() == alone.keys()
    unmixed = {name for name in seen if (seen[name] == alone[name]).all()}
    partners_bad, partners_good = set(), set()
    for tar, row, view in seen:
        rows = next(r for r in job.source.blocks(tar) if r.start <= row < r.stop)
        block = job.source.render(tar, rows, views=[view])
        partner = rows.start + int(block.params[0].partners_N[row - rows.start])
        good = (tar, partner, view) in seen
        (partners_good if good else partners_bad).add((tar, row, view))
    assert len(partners_bad) >= 4
    assert partners_bad <= unmixed
    assert len(partners_good & unmixed) < 0.1 * len(partners_good)
