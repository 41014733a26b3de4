"""Claims about datasets: unique uids, checked labels, and an index that is right or refused."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.data import document as document_module
from kdcache.data import index as index_module
from kdcache.data.dataset import COLUMNS, Dataset
from kdcache.data.index import build_index, check_dataset, find_tars, load_dataset, save_dataset
from kdcache.errors import CorruptError, DataError, KdcacheError, UsageError
from kdcache.identity import content_digest, digest, sample_uid
from tests.data.making import write_tar

FIRST = [("a/x.jpg", b"1" * 30), ("a/x.cls", b"0"), ("a/y.jpg", b"22"), ("a/y.cls", b"2")]
SECOND = [("b/z.png", b"333")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "1.tar", FIRST)
    write_tar(tmp_path / "tars" / "sub" / "0.tar", SECOND)
    return tmp_path / "tars"


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return build_index(find_tars(root), root=root)


def assert_equal(one: Dataset, other: Dataset) -> None:
    for name in ("id", "tars", "classes", "num_classes"):
        assert getattr(one, name) == getattr(other, name)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


def test_a_dataset_holds_its_tars_samples_in_order(root: Path, dataset: Dataset) -> None:
    assert [tar.name for tar in dataset.tars] == ["1.tar", "sub/0.tar"]
    assert [tar.num_rows for tar in dataset.tars] == [2, 1]
    assert [tar.size_bytes for tar in dataset.tars] == [
        path.stat().st_size for path in find_tars(root)
    ]
    assert dataset.uids.tolist() == [sample_uid(key) for key in ("a/x", "a/y", "b/z")]
    assert dataset.contents.tolist() == [content_digest(d) for d in (b"1" * 30, b"22", b"333")]
    assert dataset.labels.tolist() == [0, 2, -1]
    assert dataset.starts.tolist() == [0, 2, 3]
    assert dataset.num_samples == 3
    assert dataset.num_classes == 3
    assert dataset.classes is None
    assert dataset.rows(1) == slice(2, 3)
    assert dataset.read_rows(0, slice(0, 2)) == [b"1" * 30, b"22"]
    assert dataset.read_rows(0, slice(1, 2)) == [b"22"]
    assert dataset.read_rows(1, slice(0, 1)) == [b"333"]


def test_the_arrays_are_read_only(dataset: Dataset) -> None:
    for name in COLUMNS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(dataset, name)[0] = 0


def test_the_id_is_made_of_uids_and_contents(dataset: Dataset) -> None:
    digests = []
    for tar in range(2):
        own = dataset.rows(tar)
        words = [*dataset.uids[own].tolist(), *dataset.contents[own].tolist()]
        digests.append(hashlib.sha256(b"".join(w.to_bytes(8, "little") for w in words)).hexdigest())
    assert [tar.digest for tar in dataset.tars] == digests
    assert dataset.id == digest({"tars": digests})


def test_other_labels_and_names_keep_the_id_but_other_keys_images_or_orders_do_not(
    tmp_path: Path,
) -> None:
    def made(*members: tuple[str, bytes]) -> str:
        path = write_tar(tmp_path / f"{len(list(tmp_path.iterdir()))}.tar", members)
        return build_index([path], root=tmp_path).id

    x, y = ("x.jpg", b"1"), ("y.jpg", b"2")
    assert made(x, y) == made(x, ("x.cls", b"4"), y) == made(("x.png", b"1"), y)
    assert (
        len({made(x, y), made(y, x), made(x), made(x, ("y.jpg", b"3")), made(x, ("z.jpg", b"2"))})
        == 5
    )


def test_tars_are_found_below_a_folder_in_order(root: Path, tmp_path: Path) -> None:
    (root / "note.txt").write_text("no tar")
    (root / "folder.tar").mkdir()
    assert find_tars(root) == [root / "1.tar", root / "sub" / "0.tar"]
    for folder in (root / "folder.tar", tmp_path / "missing"):
        with pytest.raises(UsageError, match=f"{folder}: no "):
            find_tars(folder)


def test_progress_counts_the_tars(root: Path) -> None:
    seen: list[int] = []
    build_index(find_tars(root), root=root, progress=seen.append)
    assert seen == [1, 1]


@pytest.mark.parametrize(
    ("options", "num_classes"),
    [({}, 3), ({"num_classes": 10}, 10), ({"classes": ["u", "v", "w"]}, 3)],
)
def test_the_number_of_classes_is_named_or_found(
    root: Path, options: dict[str, Any], num_classes: int
) -> None:
    assert build_index(find_tars(root), root=root, **options).num_classes == num_classes


def test_unlabelled_tars_have_no_number_of_classes(root: Path) -> None:
    assert build_index([root / "sub" / "0.tar"], root=root).num_classes is None


@pytest.mark.parametrize("options", [{"num_classes": 2}, {"classes": ["u", "v"]}])
def test_a_label_beyond_the_classes_is_named(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"1\.tar: a/y: label 2, expected 0 to 1"):
        build_index(find_tars(root), root=root, **options)


def test_classes_and_their_number_must_agree(root: Path) -> None:
    with pytest.raises(UsageError, match="num_classes is 4, but 3 classes"):
        build_index(find_tars(root), root=root, classes=["u", "v", "w"], num_classes=4)


def test_no_tars_and_tars_outside_the_root_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tars"):
        build_index([], root=root)
    outside = write_tar(tmp_path / "outside.tar", SECOND)
    for path in (outside, root / ".." / "outside.tar", root / "\udcff.tar"):
        with pytest.raises(UsageError, match="expected a path below"):
            build_index([path], root=root)


def test_a_key_in_two_tars_is_refused(root: Path) -> None:
    other = write_tar(root / "2.tar", [("new.jpg", b"9"), ("a/y.jpg", b"other bytes")])
    with pytest.raises(DataError) as caught:
        build_index([*find_tars(root)], root=root)
    assert str(caught.value).startswith(f"key a/y is in {root / '1.tar'} and in {other}; ")


def test_two_keys_with_one_uid_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "sample_uid", lambda key: len(key) - (key == "a/x"))
    with pytest.raises(DataError) as caught:
        build_index(find_tars(root), root=root)
    first, second = root / "1.tar", root / "sub" / "0.tar"
    assert str(caught.value).startswith(f"key a/y in {first} and key b/z in {second} have one ")


@pytest.mark.parametrize("name", ["", "dataset.json", "sub/mine.json"])
def test_a_saved_dataset_is_loaded_again(root: Path, dataset: Dataset, name: str) -> None:
    dataset = dataclasses.replace(dataset, classes=("u v", "é", "…"))
    save_dataset(dataset, root / name)
    loaded = load_dataset(root / name)
    assert_equal(loaded, dataset)
    assert loaded.read_rows(1, slice(0, 1)) == [b"333"]
    with pytest.raises(ValueError, match="read-only"):
        loaded.uids[0] = 0


def test_a_folder_with_its_index_can_be_moved(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    save_dataset(dataset, root)
    shutil.move(root, tmp_path / "moved")
    loaded = load_dataset(tmp_path / "moved")
    assert loaded.read_rows(0, slice(0, 1)) == [b"1" * 30]


def test_an_index_may_lie_apart_from_the_tars(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    save_dataset(dataset, tmp_path / "link" / "new")
    assert json.loads((tmp_path / "link/new/dataset.json").read_text())["root"] == "../../../tars"
    assert load_dataset(tmp_path / "link" / "new").read_rows(1, slice(0, 1)) == [b"333"]


def test_the_index_is_written_for_people_and_the_same_each_time(
    root: Path, dataset: Dataset
) -> None:
    save_dataset(dataset, root)
    first = (root / "dataset.json").read_bytes()
    save_dataset(dataset, root)
    assert (root / "dataset.json").read_bytes() == first
    found = json.loads(first)
    assert list(found) == ["format", "id", "classes", "num_classes", "root", "tars", "samples"]
    assert (found["format"], found["root"], found["id"]) == (1, ".", dataset.id)
    assert first.startswith(b'{\n "format": 1,\n')
    assert sorted(path.name for path in root.iterdir()) == [
        "1.tar",
        "dataset.json",
        "dataset.npz",
        "sub",
    ]


def test_a_missing_index_says_what_to_run(root: Path) -> None:
    with pytest.raises(UsageError, match=f"{root}/dataset.json: missing; make it .* index {root}"):
        load_dataset(root)


def test_an_index_that_cannot_be_read_or_written_is_a_usage_error(
    root: Path, dataset: Dataset
) -> None:
    (root / "dataset.json").mkdir()
    with pytest.raises(UsageError, match=r"dataset\.json: Is a directory"):
        load_dataset(root)
    with pytest.raises(UsageError, match=r"1\.tar/dataset\.json: "):
        save_dataset(dataset, root / "1.tar")


def test_every_flipped_bit_of_the_arrays_is_found(root: Path, dataset: Dataset) -> None:
    save_dataset(dataset, root)
    whole = (root / "dataset.npz").read_bytes()
    for position in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        (root / "dataset.npz").write_bytes(damaged)
        with pytest.raises(CorruptError, match=r"dataset\.npz: sha256 .* expected .*index again"):
            load_dataset(root)
    (root / "dataset.npz").unlink()
    with pytest.raises(CorruptError, match=r"dataset\.npz: No such file"):
        load_dataset(root)


def test_a_cut_index_is_found(root: Path, dataset: Dataset) -> None:
    save_dataset(dataset, root)
    text = (root / "dataset.json").read_bytes().rstrip()
    for length in range(len(text)):
        (root / "dataset.json").write_bytes(text[:length])
        with pytest.raises(CorruptError, match=r"dataset\.json: "):
            load_dataset(root)


def rewritten(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "dataset.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda d: d.update(format=2, new=1), UsageError, "format 2, .* up to 1; install"),
        (lambda d: d.update(format=0), CorruptError, "format: "),
        (lambda d: d.pop("format"), CorruptError, "format: "),
        (lambda d: d.pop("samples"), CorruptError, "samples: "),
        (lambda d: d.update(more=1), CorruptError, "more: "),
        (lambda d: d.update(num_classes="3"), CorruptError, "num_classes: "),
        (lambda d: d.update(id="0" * 64), CorruptError, "id 000"),
        (lambda d: d["tars"][0].update(digest="0" * 64), CorruptError, "1.tar: other digest"),
        (lambda d: d["tars"].reverse(), CorruptError, "other digest"),
        (lambda d: d["tars"].pop(), CorruptError, r"uids is uint64 \(3,\), expected uint64 \(2,\)"),
        (lambda d: d["tars"][0].update(name="../1.tar"), DataError, "file name '../1.tar'"),
        (lambda d: d["tars"][0].update(name="/1.tar"), DataError, "file name '/1.tar'"),
        (lambda d: d["tars"][0].update(name="."), DataError, "file name '.'"),
        (lambda d: d["tars"][0].update(name="a\0"), DataError, "file name"),
        (lambda d: d["samples"].update(file="/etc/passwd"), DataError, "file name"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    root: Path,
    dataset: Dataset,
    change: Callable[[dict[str, Any]], object],
    error: type[KdcacheError],
    words: str,
) -> None:
    save_dataset(dataset, root)
    rewritten(root, change)
    with pytest.raises(error, match=rf"dataset\.(json|npz): .*{words}"):
        load_dataset(root)


@pytest.mark.parametrize("kind", ["pickle", "missing", "dtype", "no archive"])
def test_arrays_of_another_kind_are_refused(root: Path, dataset: Dataset, kind: str) -> None:
    """Their sha256 is right: somebody made them so."""
    columns: dict[str, Any] = {name: getattr(dataset, name) for name in COLUMNS}
    if kind == "pickle":
        columns["uids"] = np.array([print] * 3)
    if kind == "missing":
        del columns["uids"]
    if kind == "dtype":
        columns["labels"] = columns["labels"].astype(np.int64)
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    data = b"no archive" if kind == "no archive" else buffer.getvalue()
    save_dataset(dataset, root)
    (root / "dataset.npz").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    rewritten(root, lambda document: document["samples"].update(sha256=sha256))
    with pytest.raises(CorruptError, match=r"dataset\.npz: "):
        load_dataset(root)


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_writer_killed_at_any_replacement_leaves_the_old_index_or_a_refused_pair(
    root: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    old = build_index([root / "1.tar"], root=root)
    save_dataset(old, root)
    left, replace = [calls], os.replace

    def dying(source: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(document_module.os, "replace", dying)
    if calls == 2:
        save_dataset(dataset, root)
        assert_equal(load_dataset(root), dataset)
        return
    with pytest.raises(KeyboardInterrupt):
        save_dataset(dataset, root)
    if calls == 0:
        assert_equal(load_dataset(root), old)
    else:
        with pytest.raises(CorruptError, match="sha256"):
            load_dataset(root)
    assert not list(root.glob(".*"))


def test_unchanged_tars_pass_the_check(dataset: Dataset) -> None:
    check_dataset(dataset)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([FIRST[0], FIRST[1], ("a/y.jpg", b"23"), FIRST[3]], "a/y, row 1: other contents than"),
        ([*FIRST[:3], ("a/y.cls", b"1")], "a/y, row 1: other labels than"),
        (
            [("a/w.jpg", b"1" * 30), *FIRST[2:]],
            "a/w, row 0: other uids, labels, offsets|a/w, row 0",
        ),
        (FIRST[:2], "1 samples, the index has 2"),
    ],
)
def test_the_check_names_the_first_difference(
    root: Path, dataset: Dataset, members: list[tuple[str, bytes]], words: str
) -> None:
    write_tar(root / "1.tar", members)
    with pytest.raises(DataError, match=rf"1\.tar: ({words})"):
        check_dataset(dataset)


def test_the_check_finds_a_missing_tar(root: Path, dataset: Dataset) -> None:
    (root / "sub" / "0.tar").unlink()
    with pytest.raises(DataError, match=r"0\.tar: No such file"):
        check_dataset(dataset)


def test_reading_rows_of_a_changed_tar_names_it(root: Path, dataset: Dataset) -> None:
    write_tar(root / "sub" / "0.tar", [("b/z.png", b"334")])
    with pytest.raises(DataError, match=r"0\.tar: b/z: .*run kdcache index again"):
        dataset.read_rows(1, slice(0, 1))


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, kdcache.data.index, kdcache.data.pack\n"
        "assert not {'torch', 'torchvision', 'webdataset'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
