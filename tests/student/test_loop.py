import csv
import gc
import json
import math
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import CorruptError, IncompleteError, KdcacheError, MismatchError, UsageError
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing
from kdcache.models.weights import load_weights
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.student.checkpoint import CHECKPOINTS, METRICS, checkpoints
from kdcache.student.folder import BEST, CLASSES, CONFIG, WEIGHTS
from kdcache.student.loop import train
from kdcache.student.losses import sparse_kl
from kdcache.student.setup import reuse_factor
from kdcache.student.sources import Sources
from kdcache.student.step import step_seed
from tests import tiny
from tests.student.making import (
    UNMIXED,
    KilledError,
    assert_equal,
    centre_cache,
    contrast_teacher,
    kill_after,
    make_sources,
    metrics_of,
    run_of,
    state_of,
    weights_of,
)
from tests.tiny import files_of


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """The path of a cache of one central view of the dataset."""
    return centre_cache(tmp_path_factory.mktemp("centre") / "cache", dataset)


@pytest.fixture(scope="module")
def sources(dataset: Dataset, complete: Path, centre: Path) -> Sources:
    """Replayed views, and a validation set."""
    return make_sources(dataset, complete, val_data=dataset.root, val_cache=centre)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Path:
    """The folder of a run of five epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(run_of(folder, sources, save_every=2))
    return folder


# --- learning ------------------------------------------------------------------------------


@pytest.mark.parametrize(("learn", "share"), [("cache", 0.5), ("fixed", 0.5), ("labels", 0.9)])
def test_each_way_of_learning_lowers_its_own_loss(
    tmp_path: Path, dataset: Dataset, complete: Path, centre: Path, learn: str, share: float
) -> None:
    fresh = tiny.make_recipe(**UNMIXED)
    sources = {
        "cache": make_sources(dataset, complete),
        "fixed": make_sources(dataset, centre, recipe=fresh),
        "labels": make_sources(dataset, None, recipe=fresh),
    }[learn]
    run = run_of(tmp_path / "r", sources, learn=learn, epochs=25, learning_rate=0.03)
    train(run)
    losses = [line["loss"] for line in metrics_of(tmp_path / "r")]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < share * np.mean(losses[:3])


def test_a_student_learns_its_teachers_predictions(tmp_path: Path, dataset: Dataset) -> None:
    options = {"teacher": contrast_teacher(), "encoding": "dense:f2"}
    recipe = tiny.make_recipe()
    views = tiny.precompute(tmp_path / "views", dataset, recipe, num_views=16, **options).path
    test = centre_cache(tmp_path / "test", dataset, **options)
    sources = make_sources(dataset, views, val_data=dataset.root, val_cache=test)
    changes = {"epochs": 25, "learning_rate": 0.03, "eval_every": 6}
    train(run_of(tmp_path / "r", sources, **changes))
    lines = metrics_of(tmp_path / "r")
    kl = {line["epoch"]: line["val_kl_nats"] for line in lines if "val_kl_nats" in line}
    assert list(kl) == [6, 12, 18, 24, 25]
    assert kl[25] < 0.8 * kl[6]


@pytest.mark.parametrize("learn", ["cache", "labels"])
def test_labels_alone_measure_what_they_do_beside_a_centre_cache(
    tmp_path: Path, dataset: Dataset, complete: Path, centre: Path, learn: str
) -> None:
    cached = learn == "cache"
    sources = make_sources(
        dataset, complete if cached else None, recipe=None if cached else tiny.make_recipe(),
        val_data=dataset.root,
    )  # fmt: skip
    train(run_of(tmp_path / "alone", sources, learn=learn))
    train(run_of(tmp_path / "beside", replace(sources, val_cache=centre), learn=learn))
    alone, beside = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "beside")
    by_teacher = {"val_kl_nats", "val_agreement", "val_teacher_top1"}
    assert alone == [{k: v for k, v in line.items() if k not in by_teacher} for line in beside]
    assert all(by_teacher < line.keys() for line in beside)
    values = [line["val_top1"] for line in alone]
    best = state_of(tmp_path / "alone")["best"]
    assert best["measure"] == "val_top1"
    assert best["epoch"] == 1 + values.index(max(values))
    with (tmp_path / "alone/classes.csv").open() as file:
        assert {row["kl_nats"] for row in csv.DictReader(file)} == {""}


def test_the_same_settings_make_the_same_bytes(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    torch.manual_seed(99)  # whatever random numbers the caller drew
    train(run_of(tmp_path / "again", sources, save_every=2))
    assert weights_of(tmp_path / "again") == weights_of(undisturbed)
    assert metrics_of(tmp_path / "again") == metrics_of(undisturbed)


def test_another_seed_makes_other_weights(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    train(run_of(tmp_path / "other", sources, seed=2))
    assert weights_of(tmp_path / "other") != weights_of(undisturbed)


def test_workers_and_validation_change_no_weight(
    tmp_path: Path, dataset: Dataset, complete: Path, undisturbed: Path
) -> None:
    """Nor does how often a run is saved: random numbers belong to the student alone."""
    sources = make_sources(dataset, complete)
    train(run_of(tmp_path / "plain", sources, num_workers=2))
    assert weights_of(tmp_path / "plain") == weights_of(undisturbed)


def test_the_first_steps_are_adamw_on_the_kl_of_replayed_views(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    """The reference is a loop of ten lines over the same stream."""
    changes = {"epochs": 2, "temperature": 2.0, "warmup": 0.0, "clip": 0.5, "weight_decay": 0.1}
    run = run_of(tmp_path / "r", make_sources(dataset, complete), **changes)
    trained = train(run)
    torch.manual_seed(1)
    network = build_network("tests.student.nets:small", num_classes=tiny.NUM_CLASSES)
    network = network.to(memory_format=torch.channels_last)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    options = StreamOptions(batch_size=7, num_epochs=2, seed=1, window=3, lanes=7)
    losses = []
    for step, batch in enumerate(replay_stream(open_cache(complete), dataset, options)):
        torch.manual_seed(step_seed(1, step, 0))  # for dropout
        logits = network(batch.pixels.float() / 255)
        loss = sparse_kl(logits, batch.target(2.0), temperature=2.0).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        cosine.step()
        losses.append(loss.item())
    assert len(losses) == 6
    found = [line["loss"] for line in metrics_of(tmp_path / "r")]
    assert found == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-5)
    for ours, theirs in zip(trained.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_keeps_float32_weights(
    tmp_path: Path, dataset: Dataset, complete: Path, precision: str
) -> None:
    run = run_of(tmp_path / "r", make_sources(dataset, complete), epochs=2, precision=precision)
    network = train(run)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    full = run_of(tmp_path / "full", make_sources(dataset, complete), epochs=2)
    train(full)
    ours, theirs = (metrics_of(tmp_path / name)[0]["loss"] for name in ("r", "full"))
    assert ours == pytest.approx(theirs, rel=0.05)
    assert ours != theirs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own compiler
def test_a_compiled_student_takes_the_same_steps(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    sources = make_sources(dataset, complete)
    changes = {"student": "tests.student.nets:plain", "epochs": 2, "ema": 0.5}
    found = [
        metrics_of(run_into(tmp_path / str(compiled), sources, compile=compiled, **changes))
        for compiled in (True, False)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def run_into(folder: Path, sources: Sources, **changes: Any) -> Path:
    """Train into a folder; return it."""
    train(run_of(folder, sources, **changes))
    return folder


# --- what a run leaves ---------------------------------------------------------------------


def test_each_epoch_has_a_line_of_metrics(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert line.keys() == {
            "epoch", "step", "loss", "grad_norm", "learning_rate", "images_per_s", "wait_share",
            "val_samples", "val_top1", "val_kl_nats", "val_agreement", "val_calibration_error",
            "val_teacher_top1",
        }  # fmt: skip
        assert line["val_samples"] == 24
        assert line["images_per_s"] > 0
    steps = [2, 5, 8, 11, 14]  # the last of each epoch, of 15
    expected = [0.01 * (1 + math.cos(math.pi * step / 15)) / 2 for step in steps]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected)


def test_a_run_leaves_its_settings_metrics_checkpoint_and_weights(undisturbed: Path) -> None:
    kept = {f"{CHECKPOINTS}/step-{step:09d}.pt" for step in (12, 15)}
    assert set(files_of(undisturbed)) == {CONFIG, METRICS, WEIGHTS, BEST, CLASSES, *kept}


def test_the_settings_name_what_was_learned_from(
    undisturbed: Path, sources: Sources, dataset: Dataset, complete: Path
) -> None:
    found = json.loads((undisturbed / CONFIG).read_text())
    assert found["student"] == "tests.student.nets:small"
    assert found["dataset"] == dataset.id
    assert found["cache"] == open_cache(complete).info.id
    assert sources.val_cache is not None
    assert found["val_cache"] == open_cache(sources.val_cache).info.id


def test_the_final_weights_load_back_and_give_equal_logits(
    tmp_path: Path, sources: Sources
) -> None:
    network = train(run_of(tmp_path / "r", sources, epochs=1)).eval()
    again = build_network("tests.student.nets:small", num_classes=tiny.NUM_CLASSES).eval()
    load_weights(again, tmp_path / "r" / WEIGHTS)
    images = torch.rand(9, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(images), network(images))
    with safe_open(tmp_path / "r" / WEIGHTS, "pt") as file:
        assert json.loads(file.metadata()["kdcache"]) == {
            "student": "tests.student.nets:small",
            "num_classes": 5,
            "classes": [f"class{n}" for n in range(5)],
            "size": 12,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "step": 3,
        }


def test_the_pixels_are_normalised_as_the_teachers_unless_told_otherwise(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    sources, fresh = make_sources(dataset, complete), tiny.make_recipe()
    assert run_of(tmp_path, sources).preprocessing == tiny.PLAIN
    told = run_of(tmp_path, sources, mean=(0.1, 0.2, 0.3))
    assert told.preprocessing == Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    labels = run_of(tmp_path, make_sources(dataset, None, recipe=fresh), learn="labels")
    assert labels.preprocessing == Preprocessing()


# --- resume --------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "num_workers"), [(1, 0), (3, 0), (4, 0), (5, 0), (3, 2), (4, 2)])
def test_a_killed_run_resumes_to_the_undisturbed_result(
    tmp_path: Path, sources: Sources, undisturbed: Path, epoch: int, num_workers: int
) -> None:
    """Checkpoints are older than the metrics, or missing; the weights hold random dropout."""
    folder, changes = tmp_path / "r", {"save_every": 2, "num_workers": num_workers}
    with pytest.raises(KilledError):
        train(run_of(folder, sources, **changes), report=kill_after(epoch))
    gc.collect()  # the stream's workers end with it
    assert len(metrics_of(folder)) == epoch
    assert not (folder / WEIGHTS).exists()
    train(run_of(folder, sources, **changes), resume=True)
    assert weights_of(folder) == weights_of(undisturbed)
    assert metrics_of(folder) == metrics_of(undisturbed)
    assert_equal(state_of(folder), state_of(undisturbed))


def test_a_run_killed_again_and_again_gives_the_undisturbed_result(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    folder = tmp_path / "r"
    for epoch in (2, 3, 4):
        run = run_of(folder, sources, save_every=2)
        with pytest.raises(KilledError):
            train(run, resume=True, report=kill_after(epoch))
    train(run_of(folder, sources, save_every=2), resume=True)
    assert weights_of(folder) == weights_of(undisturbed)
    assert metrics_of(folder) == metrics_of(undisturbed)


def test_a_resumed_run_computes_only_what_the_checkpoint_lacks(
    tmp_path: Path, sources: Sources
) -> None:
    folder, seen = tmp_path / "r", []
    with pytest.raises(KilledError):
        train(run_of(folder, sources, save_every=2), report=kill_after(3))
    run = run_of(folder, sources, save_every=2)
    train(run, resume=True, report=lambda metrics: seen.append(metrics["epoch"]))
    assert seen == [3, 4, 5]


def test_resuming_a_finished_run_changes_nothing(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "r")
    seen: list[dict[str, Any]] = []
    train(run_of(tmp_path / "r", sources, save_every=2), resume=True, report=seen.append)
    assert seen == []
    assert files_of(tmp_path / "r") == files_of(undisturbed)


def test_resume_without_a_run_starts_one(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    train(run_of(tmp_path / "r", sources, save_every=2), resume=True)
    assert weights_of(tmp_path / "r") == weights_of(undisturbed)


def test_a_run_may_resume_with_other_workers(
    tmp_path: Path, sources: Sources, undisturbed: Path
) -> None:
    with pytest.raises(KilledError):
        train(run_of(tmp_path / "r", sources, save_every=2), report=kill_after(3))
    train(run_of(tmp_path / "r", sources, save_every=2, num_workers=1), resume=True)
    assert weights_of(tmp_path / "r") == weights_of(undisturbed)


# --- refusals ------------------------------------------------------------------------------


def _refused(folder: Path, kind: type[KdcacheError], words: str, run: Any, **options: Any) -> None:
    """Check that training refuses and changes no file."""
    before = files_of(folder)
    with pytest.raises(kind, match=words):
        train(run, **options)
    assert files_of(folder) == before


@pytest.fixture
def done(tmp_path: Path, undisturbed: Path) -> Path:
    """A copy of a finished run, to be damaged at will."""
    shutil.copytree(undisturbed, tmp_path / "done")
    return tmp_path / "done"


def test_a_folder_with_a_run_is_refused_without_resume(done: Path, sources: Sources) -> None:
    _refused(done, UsageError, "done: holds a run; go on with --resume", run_of(done, sources))


def test_other_settings_are_refused_by_name(done: Path, sources: Sources) -> None:
    run = run_of(done, sources, save_every=2, batch_size=6, clip=2.0)
    words = (
        r"batch_size 7, this one has 6; with clip 1\.0, this one has 2\.0; .* resume with the same"
    )
    _refused(done, UsageError, words, run, resume=True)


def test_another_cache_is_refused_by_name(
    done: Path, tmp_path: Path, sources: Sources, dataset: Dataset
) -> None:
    other = tiny.precompute(tmp_path / "other", dataset, tiny.make_recipe(seed=4)).path
    changed = make_sources(dataset, other, val_data=sources.val_data, val_cache=sources.val_cache)
    run = run_of(done, changed, save_every=2)
    _refused(done, UsageError, "with cache [0-9a-f]+, this one has", run, resume=True)


def test_a_folder_of_other_files_is_refused(tmp_path: Path, sources: Sources) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        run = run_of(tmp_path, sources)
        _refused(tmp_path, UsageError, "holds other files; name an empty", run, resume=resume)


def test_a_path_that_is_a_file_is_refused(tmp_path: Path, sources: Sources) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        _refused(tmp_path, UsageError, f"{place}: cannot be made", run_of(place, sources))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wide", r"wide: gave .*\(1, 6\).* expected .*5 classes"),
        ("flat", r"flat: gave .*\(432,\).* expected .*5 classes"),
        ("only_16", "only_16: fails on 12 x 12"),
        ("failing", "its factory failed"),
        ("nobody", "no factory named nobody"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_and_leaves_no_folder(
    tmp_path: Path, sources: Sources, name: str, words: str
) -> None:
    run = run_of(tmp_path / "r", sources, student=f"tests.student.nets:{name}")
    _refused(tmp_path, UsageError, words, run)
    assert not (tmp_path / "r").exists()


def _only_newest(folder: Path) -> list[Path]:
    """Remove all checkpoints but the newest; return it."""
    *older, newest = checkpoints(folder)
    for path in older:
        path.unlink()
    return [newest]


@pytest.mark.parametrize("size", [0, 100, 1 << 30])
def test_a_cut_checkpoint_is_corrupt(done: Path, sources: Sources, size: int) -> None:
    (path,) = _only_newest(done)
    data = path.read_bytes()
    path.write_bytes(data[: min(size, len(data) - 1)])
    run = run_of(done, sources, save_every=2)
    _refused(done, CorruptError, f"{path.name}: cannot be read .* train again", run, resume=True)


def test_every_flipped_byte_of_a_checkpoint_is_found_or_harmless(
    done: Path, sources: Sources, undisturbed: Path
) -> None:
    """Torch's own reader lets flipped weights through."""
    path, rng = checkpoints(done)[-1], np.random.default_rng(0)
    whole, expected = path.read_bytes(), files_of(undisturbed)
    lines = []
    for at in rng.choice(len(whole), 60, replace=False).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            train(run_of(done, sources, save_every=2), resume=True)
        except CorruptError as error:
            lines.append(str(error))
        else:
            assert weights_of(done) == expected[WEIGHTS]
    assert len(lines) >= 30
    assert not any("\n" in line for line in lines)


def test_a_foreign_checkpoint_is_corrupt(done: Path, sources: Sources) -> None:
    torch.save({"epoch": 1}, checkpoints(done)[-1])
    run = run_of(done, sources, save_every=2)
    words = r"step-000000015\.pt: cannot be read .* delete it to go on from step-000000012\.pt"
    _refused(done, CorruptError, words, run, resume=True)


def test_a_checkpoint_is_loaded_without_running_code(done: Path, sources: Sources) -> None:
    torch.save({"epoch": Path("/")}, checkpoints(done)[-1])
    run = run_of(done, sources, save_every=2)
    words = r"step-000000015\.pt: cannot be read .* delete it to go on from step-000000012\.pt"
    _refused(done, CorruptError, words, run, resume=True)


def test_damaged_settings_are_corrupt(done: Path, sources: Sources) -> None:
    run = run_of(done, sources, save_every=2)
    (done / CONFIG).write_text('{"student": ')
    _refused(done, CorruptError, f"{CONFIG}: ", run, resume=True)
    with pytest.raises(CorruptError, match=f"{CONFIG}: no readable settings"):
        run_of(done, sources, save_every=2)


def test_lost_metrics_are_corrupt(done: Path, sources: Sources) -> None:
    (done / METRICS).unlink()
    run = run_of(done, sources, save_every=2)
    _refused(done, CorruptError, f"{METRICS}: ", run, resume=True)


# --- stops ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    """Three steps an epoch; the seventh is the first of epoch 3."""
    sources = make_sources(dataset, complete)
    good = run_of(tmp_path / "good", sources, student="tests.student.nets:diverging")
    with pytest.raises(KilledError):
        train(good, report=kill_after(2))
    changes = {"student": "tests.student.nets:diverging"}
    with pytest.raises(
        UsageError,
        match=r"the loss is nan by step 9.* lower learning rate.*step-000000006\.pt is from b",
    ) as caught:
        train(run_of(tmp_path / "bad", sources, **changes))
    assert str(tmp_path / "bad") in str(caught.value)
    assert [line["epoch"] for line in metrics_of(tmp_path / "bad")] == [1, 2]
    state = state_of(tmp_path / "bad")
    assert state["step"] == 6
    for tensor in state["network"].values():
        assert bool(tensor.isfinite().all())
    assert not (tmp_path / "bad" / WEIGHTS).exists()
    assert metrics_of(tmp_path / "good") == metrics_of(tmp_path / "bad")


def _on_a_full_disk(folder: Path, sources: Sources, limit: int, told: Path) -> None:
    """Resume a run in a process whose files may not grow beyond a limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(run_of(folder, sources, student="tests.student.nets:large"), resume=True)
    except UsageError as error:
        told.write_text(str(error))
    else:
        told.write_text("trained")


def test_a_full_disk_keeps_the_older_checkpoint(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    sources, folder = make_sources(dataset, complete), tmp_path / "r"
    run = run_of(folder, sources, student="tests.student.nets:large")
    with pytest.raises(KilledError):
        train(run, report=kill_after(2))
    older = checkpoints(folder)[-1].read_bytes()
    assert len(older) > 1_000_000
    child = tiny.start_clean(_on_a_full_disk, folder, sources, 500_000, tmp_path / "told")
    child.join()
    assert child.exitcode == 0
    assert "step-000000006.pt: cannot be written: " in (tmp_path / "told").read_text()
    assert "\n" not in (tmp_path / "told").read_text()
    assert checkpoints(folder)[-1].read_bytes() == older
    assert set(files_of(folder)) == {CONFIG, METRICS, f"{CHECKPOINTS}/step-000000003.pt"}
    whole = tmp_path / "whole"
    train(run_of(whole, sources, student="tests.student.nets:large"))
    train(run_of(folder, sources, student="tests.student.nets:large"), resume=True)
    assert weights_of(folder) == weights_of(whole)


def test_a_full_disk_leaves_no_part_of_the_final_weights(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    """The checkpoint of AdamW is three times the weights: here it is of the last epoch already."""
    sources, folder = make_sources(dataset, complete), tmp_path / "r"
    train(run_of(folder, sources, student="tests.student.nets:large", epochs=1))
    expected = weights_of(folder)
    (folder / WEIGHTS).unlink()
    told = tmp_path / "told"
    child = tiny.start_clean(_finish_on_a_full_disk, folder, sources, len(expected) // 2, told)
    child.join()
    assert child.exitcode == 0
    assert f"{WEIGHTS}: cannot be written: " in told.read_text()
    assert set(files_of(folder)) == {CONFIG, METRICS, f"{CHECKPOINTS}/step-000000003.pt"}
    run = run_of(folder, sources, student="tests.student.nets:large", epochs=1)
    train(run, resume=True)
    assert weights_of(folder) == expected


def _finish_on_a_full_disk(folder: Path, sources: Sources, limit: int, told: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run = run_of(folder, sources, student="tests.student.nets:large", epochs=1)
    with pytest.raises(UsageError) as caught:
        train(run, resume=True)
    told.write_text(str(caught.value))


# --- the data of a run ---------------------------------------------------------------------


def test_views_used_too_often_are_refused(tmp_path: Path, dataset: Dataset, complete: Path) -> None:
    sources = make_sources(dataset, complete)
    run = run_of(tmp_path / "r", sources, epochs=8, max_reuse=2)
    assert reuse_factor(run.config, run.stream) == 2
    with pytest.raises(UsageError, match=r"4 stored views use each 2\.25 times.* --max-reuse 2;"):
        run_of(tmp_path / "r", sources, epochs=9, max_reuse=2)
    assert not (tmp_path / "r").exists()


def test_fresh_views_have_no_reuse(tmp_path: Path, dataset: Dataset, centre: Path) -> None:
    sources = make_sources(dataset, centre, recipe=tiny.make_recipe(**UNMIXED))
    run = run_of(tmp_path, sources, learn="fixed", epochs=9, max_reuse=0.5)
    assert reuse_factor(run.config, run.stream) is None


def test_settings_that_contradict_the_data_are_refused(
    tmp_path: Path, dataset: Dataset, complete: Path, centre: Path
) -> None:
    mixed, plain = tiny.make_recipe(), tiny.make_recipe(**UNMIXED)
    for learn, other, kind, words in (
        ("cache", {"cache": None}, UsageError, "to learn from cache, give a cache"),
        ("fixed", {"cache": None, "recipe": plain}, UsageError, "from fixed, give a cache"),
        ("fixed", {"cache": centre}, UsageError, "give a recipe of the student's views"),
        ("fixed", {"cache": centre, "recipe": mixed}, UsageError, r"a recipe without \[mix\]"),
        ("labels", {"cache": None}, UsageError, "give a recipe of the views, and no cache"),
        ("labels", {"cache": complete, "recipe": plain}, UsageError, "and no cache"),
        ("cache", {"cache": complete, "recipe": plain}, MismatchError, "leave --recipe out"),
        ("cache", {"cache": complete, "val_cache": centre}, UsageError, "name them, too"),
    ):
        sources = Sources(dataset.root, **other)
        with pytest.raises(kind, match=words):
            run_of(tmp_path / "r", sources, learn=learn)
    run = run_of(tmp_path / "r", make_sources(dataset, complete, recipe=mixed))
    assert run.stream.num_views == 4
    assert not (tmp_path / "r").exists()


def test_labels_need_labels_and_classes(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    tiny.write_images(folder / "deep", 8)
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        path.rename(folder / f"{number}{path.suffix}")
    shutil.rmtree(folder / "deep")
    unlabelled = tiny.pack_images(folder, tmp_path / "data")
    with pytest.raises(UsageError, match="8 of 8 samples have no label"):
        run_of(tmp_path / "r", Sources(unlabelled.root, recipe=tiny.make_recipe()), learn="labels")


def test_validation_is_checked_before_the_first_epoch(
    tmp_path: Path, dataset: Dataset, complete: Path, centre: Path
) -> None:
    other = tiny.make_dataset(tmp_path / "other", 6, seed=9)
    sources = make_sources(dataset, complete, val_data=other.root, val_cache=centre)
    with pytest.raises(MismatchError):
        run_of(tmp_path / "r", sources)
    recipe = tiny.make_recipe()
    half = tiny.precompute_first(tmp_path / "half", dataset, recipe, spans=1).path
    sources = make_sources(dataset, complete, val_data=dataset.root, val_cache=half)
    with pytest.raises(IncompleteError):
        run_of(tmp_path / "r", sources)


def test_labels_of_other_classes_measure_nothing_without_targets(
    tmp_path: Path, dataset: Dataset
) -> None:
    images = tiny.write_images(tmp_path / "images", 8)
    (images / "class5").mkdir()
    next(images.glob("class0/*.jpg")).rename(images / "class5/other.jpg")
    six = tiny.pack_images(images, tmp_path / "data")
    sources = Sources(dataset.root, recipe=tiny.make_recipe(), val_data=six.root)
    with pytest.raises(MismatchError, match="has labels of 6 classes, the student has 5"):
        run_of(tmp_path / "r", sources, learn="labels")


def test_validation_targets_of_other_classes_are_refused(
    tmp_path: Path, dataset: Dataset, complete: Path
) -> None:
    info_job = tiny.make_teacher(num_classes=7)
    images = tiny.write_images(tmp_path / "images", 8)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in images.rglob("*.*"):
        os.link(path, flat / path.name)
    unlabelled = tiny.pack_images(flat, tmp_path / "data")
    recipe = tiny.make_recipe()
    seven = tiny.precompute(tmp_path / "seven", unlabelled, recipe, teacher=info_job).path
    sources = make_sources(dataset, complete, val_data=unlabelled.root, val_cache=seven)
    with pytest.raises(MismatchError, match="7 classes"):
        run_of(tmp_path / "r", sources)
