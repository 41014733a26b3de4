"""Claims about where images come from: what is taken, how it is named, and what is refused."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdcache.data.pack import open_source
from kdcache.data.sources import Source, told_kinds
from kdcache.errors import DataError, UsageError


def put(path: Path, data: bytes = b"bytes") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def everything(source: Source) -> list[tuple[str, int]]:
    return [(key, source.read(row).label) for row, key in enumerate(source.keys)]


def write_mnist(root: Path, *, part: str, images: np.ndarray, labels: list[int]) -> None:
    """Write the files that torchvision's MNIST reads, those of the other part empty."""
    folder = root / "MNIST" / "raw"
    for name in ("train", "t10k"):
        put(folder / f"{name}-images-idx3-ubyte", b"")
        put(folder / f"{name}-labels-idx1-ubyte", b"")
    head = struct.pack(">iiii", 2051, *images.shape)
    put(folder / f"{part}-images-idx3-ubyte", head + images.tobytes())
    put(folder / f"{part}-labels-idx1-ubyte", struct.pack(">ii", 2049, len(labels)) + bytes(labels))


def test_sub_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "2.jpg", b"d2")
    put(tmp_path / "dog" / "deep" / "1.PNG", b"d1")
    put(tmp_path / "cat" / "b.jpeg", b"cb")
    put(tmp_path / "cat" / "a.webp", b"ca")
    (tmp_path / "empty").mkdir()
    put(tmp_path / "bare" / "notes.txt")
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.empty == ("bare", "empty")
    assert everything(source) == [("cat/a", 0), ("cat/b", 0), ("dog/2", 1), ("dog/deep/1", 1)]
    image = source.read(3)
    assert (image.data, image.extension) == (b"d1", "png")
    assert image.name == str(tmp_path / "dog" / "deep" / "1.PNG")


def test_a_folder_of_files_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "b.jpg")
    put(tmp_path / "a.jpg")
    source = open_source(str(tmp_path))
    assert source.classes is None
    assert everything(source) == [("a", -1), ("b", -1)]


def test_files_beside_classes_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "cat" / "b.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg lies beside sub-folders such as cat"):
        open_source(str(tmp_path))


def test_other_files_are_counted_by_ending_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("readme.txt", "cat/a.jpg", "cat/a.txt", "cat/jpg", "cat/._a.jpg", ".git/x.jpg"):
        put(tmp_path / name)
    for name in ("b.HEIC", "Thumbs.db", ".DS_Store"):
        put(tmp_path / "cat" / name)
    source = open_source(str(tmp_path))
    assert (source.keys, source.classes) == (["cat/a"], ("cat",))
    assert source.left_out == {"txt": 2, "": 1, "heic": 1}


def test_files_that_were_left_out_are_told_by_kind_and_images_with_what_to_do() -> None:
    assert told_kinds({"txt": 1, "": 2, "heic": 10}) == (
        "10 .heic, 2 without ending, 1 .txt; convert images to JPEG to use them"
    )
    many = told_kinds({f"k{number}": 1 for number in range(11)})
    assert many.endswith(".k6, 3 other kinds")


def test_the_classes_may_be_given_with_images_or_not(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "a.jpg")
    (tmp_path / "owl").mkdir()
    source = open_source(str(tmp_path), classes=["ant", "cat", "dog"])
    assert source.classes == ("ant", "cat", "dog")
    assert (everything(source), source.empty) == ([("dog/a", 2)], ("owl",))


@pytest.mark.parametrize("name", ["owl/a.jpg", "a.jpg"])
def test_an_image_of_none_of_the_given_classes_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    with pytest.raises(UsageError, match=rf"{tmp_path / name.split('/')[0]}: in none of the 2 cla"):
        open_source(str(tmp_path), classes=["cat", "dog"])


def test_only_a_folder_s_classes_can_be_given() -> None:
    with pytest.raises(UsageError, match="only of a folder"):
        open_source("torchvision:FakeData", classes=["cat"])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.gif")
    with pytest.raises(UsageError, match=r"no image below it.*found 1 \.gif; convert"):
        open_source(str(tmp_path))


def test_links_are_followed_but_never_back_up(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "a.jpg")
    put(tmp_path / "root" / "cat" / "b.jpg")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "cat" / "self").symlink_to(tmp_path / "root" / "cat")
    assert everything(open_source(str(tmp_path / "root"))) == [("cat/b", 0), ("dog/a", 1)]


def test_a_broken_link_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("nowhere")
    source = open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.jpg: No such file"):
        source.read(0)


def test_dots_in_a_file_name_become_underscores_and_class_names_stay(tmp_path: Path) -> None:
    put(tmp_path / "n01.x y" / "a.b.c.jpg")
    put(tmp_path / "é#%" / "a b.jpg")
    source = open_source(str(tmp_path))
    assert source.classes == ("n01.x y", "é#%")
    assert source.keys == ["n01.x y/a_b_c", "é#%/a b"]


@pytest.mark.parametrize("other", ["a_b.jpg", "a.b.png"])
def test_two_files_that_make_one_key_are_refused(tmp_path: Path, other: str) -> None:
    put(tmp_path / "cat" / "a.b.jpg")
    put(tmp_path / "cat" / other)
    with pytest.raises(DataError, match="make one key, cat/a_b") as caught:
        open_source(str(tmp_path))
    assert "cat/a.b.jpg" in str(caught.value)
    assert f"cat/{other}" in str(caught.value)


@pytest.mark.parametrize("name", ["__x__/a.jpg", "a\nb/c\nd/e.jpg", os.fsdecode(b"\xff.jpg")])
def test_a_name_that_webdataset_would_lose_is_refused_or_kept(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    if "\n" in name:
        assert open_source(str(tmp_path)).keys == ["a\nb/c\nd/e"]
    else:
        with pytest.raises(DataError, match="makes no webdataset key"):
            open_source(str(tmp_path))


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3)])
def test_arrays_are_numbered(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, -1, 0], np.int8))
    source = open_source(str(tmp_path / "a.npz"))
    assert everything(source) == [("000000000", 2), ("000000001", -1), ("000000002", 0)]
    assert source.classes is None
    for row in range(3):
        np.testing.assert_array_equal(np.array(source.read(row).data), images[row])


def test_arrays_without_labels_have_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 5), np.uint8))
    assert [label for _, label in everything(open_source(str(tmp_path / "a.npz")))] == [-1, -1]


IMAGES = np.zeros((2, 4, 5), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": IMAGES}, "images"),
        ({"images": IMAGES.astype(np.float32)}, r"images are float32 \(2, 4, 5\), expected uint8"),
        ({"images": IMAGES[0]}, "images are"),
        ({"images": IMAGES[0, 0, 0]}, "expected"),
        ({"images": IMAGES[:0]}, "images are"),
        ({"images": np.zeros((2, 4, 5, 4), np.uint8)}, "images are"),
        ({"images": np.zeros((2, 4, 5, 3, 1), np.uint8)}, "images are"),
        ({"images": np.array([None, None])}, "allow_pickle=False"),
        ({"images": IMAGES, "labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"images": IMAGES, "labels": np.array([0])}, r"labels are int64 \(1,\), expected"),
        ({"images": IMAGES, "labels": np.array([0, -2])}, "from 0, or -1 for none"),
        ({"images": IMAGES, "labels": np.array([None, None])}, "allow_pickle=False"),
    ],
)
def test_arrays_of_another_kind_are_refused(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=rf"a\.npz: .*{words}"):
        open_source(str(tmp_path / "a.npz"))


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.npz", b"no archive")
    np.save(tmp_path / "b.npy", IMAGES)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(UsageError, match=rf"{name}: .*expected a \.npz file"):
            open_source(str(tmp_path / name))


def test_any_other_source_lists_what_is_allowed(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none"), str(put(tmp_path / "a.txt")), "hf:mnist"):
        with pytest.raises(UsageError, match=r"a folder of images, a \.npz file .*torchvision:"):
            open_source(source)


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "t10k")])
def test_a_torchvision_dataset_is_read_by_its_split(tmp_path: Path, split: str, part: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    write_mnist(tmp_path, part=part, images=images, labels=[7, 0, 3])
    source = open_source("torchvision:MNIST", root=tmp_path, split=split)
    assert everything(source) == [("000000000", 7), ("000000001", 0), ("000000002", 3)]
    assert source.classes is not None
    assert (len(source.classes), source.classes[7]) == (10, "7 - seven")
    image = source.read(1).data
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.array(image), images[1])


def test_torchvision_arguments_are_given_where_they_are_taken() -> None:
    assert len(open_source("torchvision:FakeData").keys) == 1000


@pytest.mark.parametrize(
    ("source", "split", "words"),
    [
        ("torchvision:MNIST", "val", "split val, expected train or test"),
        ("torchvision:MNIST", "train", "not found.*downloads nothing"),
        ("torchvision:FakeData", "test", "has no splits, found test"),
        ("torchvision:SVHN", "valid", "valid.*downloads nothing"),
        ("torchvision:Mnist", "train", "no class of this name"),
        ("torchvision:", "train", "no class of this name"),
        ("torchvision:mnist", "train", "no class of this name"),
    ],
)
def test_a_torchvision_dataset_that_is_not_there_is_a_usage_error(
    tmp_path: Path, source: str, split: str, words: str
) -> None:
    with pytest.raises(UsageError, match=f"source {source}: .*{words}"):
        open_source(source, root=tmp_path, split=split)


def test_a_torchvision_dataset_needs_a_root() -> None:
    with pytest.raises(UsageError, match="name the folder of its files as root"):
        open_source("torchvision:CIFAR100")


def test_a_torchvision_dataset_without_images_and_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MovingMNIST").mkdir()
    np.save(tmp_path / "MovingMNIST" / "mnist_test_seq.npy", np.zeros((20, 2, 8, 8), np.uint8))
    source = open_source("torchvision:MovingMNIST", root=tmp_path)
    with pytest.raises(DataError, match=r"MovingMNIST: image 1: .*expected a PIL image"):
        source.read(1)
