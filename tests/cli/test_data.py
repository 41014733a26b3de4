import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from kdcache.data.document import load_dataset
from kdcache.identity import sample_uid
from tests import photos, tiny
from tests.cli.conftest import Run
from tests.cli.making import PLAIN, TEACHER, check_refusal, write_recipe
from tests.tiny import files_of


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_tar(path: Path, keys: list[str], *, labels: dict[str, object] | None = None) -> None:
    """Write a tar as anybody would: an image a key, and its label as JSON where it has one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, key in enumerate(keys):
            kind = ("JPEG", "PNG", "WEBP")[number % 3]
            extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
            image = photos.smooth_photo(20 + number, 30, seed=sample_uid(key) % 1000)
            _add(tar, f"{key}.{extension}", photos.encoded(image, kind))
            if labels is not None:
                _add(tar, f"{key}.json", json.dumps({"class": labels[key], "n": 1}).encode())


def test_a_folder_is_packed_and_described(kdcache: Run, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "photos", 12)
    arguments = ["pack", tmp_path / "photos", tmp_path / "out", "--rows-per-tar", "5"]
    outcome = kdcache(*arguments, "--json")
    dataset = load_dataset(tmp_path / "out")
    assert outcome.code == 0
    assert outcome.value == {
        "id": dataset.id,
        "path": str(tmp_path / "out"),
        "tars": 3,
        "samples": 12,
        "unlabelled": 0,
        "num_classes": 5,
        "class_counts": [3, 3, 2, 2, 2],
        "size_bytes": sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar")),
        "skipped_bad": [],
        "left_out": {},
        "empty": [],
        "turned": 0,
    }
    again = kdcache(*arguments)
    assert again.code == 2
    assert again.stderr.startswith(f"kdcache: {tmp_path / 'out'}: exists and is not an empty")
    arguments[2] = tmp_path / "other"
    human = kdcache(*arguments)
    assert human.stdout.splitlines()[0] == f"dataset   {tmp_path / 'other'} ({dataset.id[:12]})"
    assert "12 in 3 tars" in human.stdout
    assert "class0 3, class1 3, class2 2, class3 2, class4 2" in human.stdout


def test_the_options_of_pack_reach_the_packer(kdcache: Run, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "photos", 9, sides=(40, 90))
    options = ["--shuffle-seed", "3", "--shorter-side", "16", "--format", "png"]
    assert kdcache("pack", tmp_path / "photos", tmp_path / "out", *options).code == 0
    dataset = load_dataset(tmp_path / "out")
    images = [Image.open(io.BytesIO(data)) for data in dataset.read_rows(0, slice(9))]
    assert {image.format for image in images} == {"PNG"}
    assert {min(image.size) for image in images} == {16}
    assert kdcache("pack", tmp_path / "photos", tmp_path / "plain").code == 0
    plain = load_dataset(tmp_path / "plain")
    assert sorted(plain.uids.tolist()) == sorted(dataset.uids.tolist())
    assert plain.uids.tolist() != dataset.uids.tolist()


def test_arrays_are_packed(kdcache: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6) % 3)
    value = kdcache("pack", tmp_path / "a.npz", tmp_path / "out", "--json").value
    assert (value["samples"], value["num_classes"]) == (6, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quality", "0"], "quality is 0, expected 1 to 100"),
        (["--rows-per-tar", "0"], "rows_per_tar is 0, expected 1"),
        (["--shuffle-seed", "-1"], "shuffle_seed is -1, expected 0"),
        (["--shorter-side", "0"], "shorter_side is 0, expected 1"),
    ],
)
def test_packing_refuses_wrong_numbers_and_leaves_nothing(
    kdcache: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    tiny.write_images(tmp_path / "photos", 3)
    before = files_of(tmp_path)
    outcome = kdcache("pack", tmp_path / "photos", tmp_path / "out", *arguments)
    assert outcome.code == 2
    assert words in outcome.stderr
    assert files_of(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_packing_a_broken_image_names_it_and_leaves_nothing(kdcache: Run, tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "photos", 6)
    bad = sorted(folder.rglob("*.png"))[1]
    bad.write_bytes(b"no image")
    outcome = kdcache("pack", folder, tmp_path / "out", "--shorter-side", "10")
    assert outcome.code == 7
    assert outcome.stderr.startswith(
        f"kdcache: 1 of 6 images cannot be used: {bad}: cannot be decoded"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert kdcache("pack", folder, tmp_path / "out", "--skip-bad", "--shorter-side", "10").code == 0


def test_pack_tells_all_that_is_not_as_it_seems(kdcache: Run, tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "photos", 6)
    (folder / "class0/more.heic").write_bytes(b"of a phone")
    (folder / "class9").mkdir()
    [bad] = folder.rglob("00001.jpg")
    bad.write_bytes(b"no image")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(folder / "class2/phone.jpg", exif=exif)
    arguments = ["pack", folder, tmp_path / "out", "--skip-bad"]
    shown = kdcache(*arguments).stdout
    assert "1 file: 1 .heic; convert images to JPEG to use them" in shown
    assert re.search(r"no images in +class9\n", shown)
    assert f"1 image left out: {bad}: cannot be decoded" in shown
    assert 'recipes ignore it unless [decode] says exif = "apply"' in shown
    value = kdcache(*arguments[:2], tmp_path / "again", "--skip-bad", "--json").value
    assert (value["left_out"], value["empty"], value["turned"]) == ({"heic": 1}, ["class9"], 1)
    assert (len(value["skipped_bad"]), value["samples"]) == (1, 6)


def test_val_is_packed_with_the_classes_of_train(kdcache: Run, tmp_path: Path) -> None:
    train = tiny.write_images(tmp_path / "train", 5)
    assert kdcache("pack", train, tmp_path / "data").code == 0
    val = tmp_path / "val"
    (val / "class3").mkdir(parents=True)
    (train / "class3/00003.png").rename(val / "class3/1.png")
    arguments = ["pack", val, tmp_path / "val-data", "--classes-of", tmp_path / "data"]
    assert kdcache(*arguments, "--json").value["class_counts"] == [0, 0, 0, 1, 0]
    assert load_dataset(tmp_path / "val-data").classes == load_dataset(tmp_path / "data").classes
    (val / "class3").rename(val / "klass3")
    arguments[2] = tmp_path / "other"
    check_refusal(kdcache(*arguments), 2, f"{val / 'klass3'}: in none of the 5 classes")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 5), np.uint8), labels=[0, 1])
    assert kdcache("pack", tmp_path / "a.npz", tmp_path / "b").code == 0
    arguments[-1] = tmp_path / "b"
    check_refusal(kdcache(*arguments), 2, "its classes have no names")


def test_of_many_classes_the_smallest_and_the_largest_are_shown(
    kdcache: Run, tmp_path: Path
) -> None:
    labels = [*range(11), 4]
    np.savez(tmp_path / "a.npz", images=np.zeros((12, 4, 5), np.uint8), labels=labels)
    shown = kdcache("pack", tmp_path / "a.npz", tmp_path / "out").stdout
    assert re.search(r"by class +fewest: 0 1, most: 4 2\n", shown)


def test_tars_that_others_wrote_are_indexed(kdcache: Run, tmp_path: Path) -> None:
    """Uneven tars at two depths, keys in sub-folders, three image formats, labels in JSON."""
    first = [f"train/n0{number % 4}/img_{number}" for number in range(7)]
    second = ["x/deep/er/key", "x/other"]
    labels = {key: number % 4 for number, key in enumerate(first + second)}
    _write_tar(tmp_path / "tars/b/00.tar", second, labels=labels)
    _write_tar(tmp_path / "tars/a.tar", first, labels=labels)
    outcome = kdcache("index", tmp_path / "tars", "--label-field", "class", "--json")
    assert outcome.code == 0
    assert outcome.value["tars"] == 2
    assert (outcome.value["samples"], outcome.value["num_classes"]) == (9, 4)
    dataset = load_dataset(tmp_path / "tars")
    assert [tar.name for tar in dataset.tars] == ["a.tar", "b/00.tar"]
    assert dataset.uids.tolist() == [sample_uid(key) for key in first + second]
    assert dataset.labels.tolist() == [labels[key] for key in first + second]

    recipe = write_recipe(tmp_path / "r.toml", tiny.make_recipe())
    made = kdcache(
        *("precompute", "--data", tmp_path / "tars", "--teacher", TEACHER, *PLAIN),
        *("--recipe", recipe, "--views", "2", "--cache", tmp_path / "cache", "--json"),
    )
    assert (made.code, made.value["spans_computed"]) == (0, 2)
    verified = kdcache(
        *("verify", tmp_path / "cache", "--data", tmp_path / "tars", "--replay", "1", "--json")
    )
    assert verified.value["replay"] == {"blocks": 6, "differing": []}


def test_an_index_may_lie_elsewhere_and_name_more_classes(kdcache: Run, tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(4)]
    _write_tar(tmp_path / "tars/a.tar", keys, labels=dict.fromkeys(keys, 2))
    before = files_of(tmp_path / "tars")
    outcome = kdcache(
        *("index", tmp_path / "tars", "--out", tmp_path / "mine", "--label-field", "class"),
        *("--num-classes", "10", "--json"),
    )
    assert outcome.value["num_classes"] == 10
    assert outcome.value["path"] == str(tmp_path / "mine")
    assert files_of(tmp_path / "tars") == before
    assert load_dataset(tmp_path / "mine").read_rows(0, slice(1))


def test_an_index_without_labels_says_so(kdcache: Run, tmp_path: Path) -> None:
    _write_tar(tmp_path / "tars/a.tar", ["a", "b"])
    value = kdcache("index", tmp_path / "tars", "--json").value
    assert (value["unlabelled"], value["num_classes"]) == (2, None)


def test_an_index_is_checked_against_its_tars(kdcache: Run, tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(3)]
    _write_tar(tmp_path / "tars/a.tar", keys)
    made = kdcache("index", tmp_path / "tars", "--json")
    checked = kdcache("index", tmp_path / "tars", "--check", "--json")
    assert (checked.code, checked.value) == (0, made.value)
    _write_tar(tmp_path / "tars/a.tar", [*keys, "k3"])
    outcome = kdcache("index", tmp_path / "tars", "--check")
    assert outcome.code == 7
    assert "4 samples, the index has 3" in outcome.stderr


@pytest.mark.parametrize("damage", ["duplicate", "label", "empty", "truncated", "gzip", "none"])
def test_tars_that_cannot_be_indexed_are_named_and_no_index_is_left(
    kdcache: Run, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "tars"
    keys = ["a/1", "a/2"]
    labels: dict[str, object] = {"a/1": 0, "a/2": -3 if damage == "label" else 1}
    _write_tar(folder / "x.tar", keys, labels=labels)
    if damage == "duplicate":
        _write_tar(folder / "y.tar", ["a/3", "a/1"], labels={"a/3": 0, "a/1": 0})
    if damage == "empty":
        _write_tar(folder / "y.tar", [])
    if damage == "truncated":
        data = (folder / "x.tar").read_bytes()
        (folder / "x.tar").write_bytes(data[:1300])
    if damage == "gzip":
        with tarfile.open(folder / "x.tar", "w:gz") as tar:
            _add(tar, "a.txt", b"text")
    if damage == "none":
        (folder / "x.tar").unlink()
    before = files_of(tmp_path)
    outcome = kdcache("index", folder, "--label-field", "class")
    expected = {
        "duplicate": (7, "key a/1 is in"),
        "label": (7, "x.tar: a/2: label -3, expected an integer from 0"),
        "empty": (7, "y.tar: no image"),
        "truncated": (7, "x.tar: byte"),
        "gzip": (7, "x.tar: byte 0: a gzip file, expected a plain tar"),
        "none": (2, "no *.tar below it"),
    }[damage]
    assert outcome.code == expected[0]
    assert expected[1] in outcome.stderr
    assert outcome.stderr.startswith("kdcache: ")
    assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""
    assert files_of(tmp_path) == before
