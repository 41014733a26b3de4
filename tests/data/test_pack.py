"""Claims about packing: the same bytes each time, whole or not there, and every image as asked."""

import io
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from kdcache.data.dataset import Dataset
from kdcache.data.index import check_dataset, load_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.data.sources import Source, SourceImage
from kdcache.errors import DataError, UsageError
from kdcache.identity import sample_uid
from kdcache.recipe.draws import uniforms
from tests.data.making import encoded, photo, webdataset_samples

PLAIN = PackOptions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number in range(7):
        path = root / ("n01.x y", "é")[number % 2] / f"img.{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number), "JPEG"))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def packed(image: bytes | Image.Image, tmp_path: Path, options: PackOptions, ext: str) -> bytes:
    """Return the one image of a packed folder, which must have extension ext."""
    kind = "png"
    if isinstance(image, bytes):
        kind = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}[image[:2]]
    source = Source(["key"], None, lambda row: SourceImage(image, kind, -1, "some/file"))
    pack(source, tmp_path / "out", options=options)
    (sample,) = webdataset_samples(tmp_path / "out" / "000000.tar")
    data = sample[ext]
    assert isinstance(data, bytes)
    return data


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_webdataset_reads_what_was_packed(folder: Path, tmp_path: Path) -> None:
    dataset = pack(
        open_source(str(folder)), tmp_path / "out", options=PackOptions(rows_per_tar=3)
    ).dataset
    assert [tar.name for tar in dataset.tars] == ["000000.tar", "000001.tar", "000002.tar"]
    assert [tar.num_rows for tar in dataset.tars] == [3, 3, 1]
    assert dataset.classes == ("n01.x y", "é")
    found = {}
    for tar in range(3):
        images = dataset.read_rows(tar, slice(0, 3))
        samples = webdataset_samples(dataset.tar_path(tar))
        for image, uid, label, sample in zip(
            images,
            dataset.uids[dataset.rows(tar)],
            dataset.labels[dataset.rows(tar)],
            samples,
            strict=True,
        ):
            assert sorted(sample) == ["__key__", "__url__", "cls", "jpg"]
            assert (sample["jpg"], int(sample["cls"])) == (image, label)
            assert sample_uid(sample["__key__"]) == uid
            found[sample["__key__"]] = image
    assert found == {
        f"{path.parent.name}/{path.stem.replace('.', '_')}": path.read_bytes()
        for path in folder.rglob("*.jpg")
    }


def test_the_dataset_is_saved_in_the_folder(folder: Path, tmp_path: Path) -> None:
    dataset = pack(open_source(str(folder)), tmp_path / "out", options=PLAIN).dataset
    assert dataset.root == tmp_path / "out"
    assert load_dataset(tmp_path / "out").id == dataset.id
    check_dataset(load_dataset(tmp_path / "out"))


@pytest.mark.parametrize(
    "options", [PLAIN, PackOptions(rows_per_tar=2, shuffle_seed=1, shorter_side=6, quality=70)]
)
def test_packing_twice_gives_the_same_bytes(
    folder: Path, tmp_path: Path, options: PackOptions
) -> None:
    for name in ("one", "two"):
        pack(open_source(str(folder)), tmp_path / name, options=options)
        for path in folder.rglob("*.jpg"):
            path.touch()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_tars_tell_nothing_of_who_packed_them(folder: Path, tmp_path: Path) -> None:
    pack(open_source(str(folder)), tmp_path / "out", options=PLAIN)
    with tarfile.open(tmp_path / "out" / "000000.tar") as tar:
        told = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert told == {(0, 0, 0, "", "", 0o444)}


def keys_in_order(dataset: Dataset) -> list[str]:
    paths = [dataset.tar_path(tar) for tar in range(len(dataset.tars))]
    return [sample["__key__"] for path in paths for sample in webdataset_samples(path)]


def test_a_shuffle_is_fixed_by_its_seed_and_the_keys(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    kept = pack(source, tmp_path / "kept", options=PLAIN).dataset
    assert keys_in_order(kept) == source.keys
    orders = []
    for seed in (0, 2**64 - 1):
        options = PackOptions(rows_per_tar=3, shuffle_seed=seed)
        packed = pack(source, tmp_path / str(seed), options=options)
        orders.append(keys_in_order(packed.dataset))
        uids = np.array([sample_uid(key) for key in source.keys], np.uint64)
        drawn = uniforms(seed, uids, view=0, count=1)[:, 0]
        assert orders[-1] == [key for _, key in sorted(zip(drawn, source.keys, strict=True))]
    assert orders[0] != orders[1]


def test_unlabelled_images_have_no_cls(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 5), np.uint8), labels=[-1, 3])
    dataset = pack(open_source(str(tmp_path / "a.npz")), tmp_path / "out", options=PLAIN).dataset
    samples = webdataset_samples(tmp_path / "out" / "000000.tar")
    assert [sample.get("cls") for sample in samples] == [None, b"3"]
    assert (dataset.labels.tolist(), dataset.num_classes) == ([-1, 3], 4)


def test_progress_counts_the_images(folder: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    options = PackOptions(rows_per_tar=3)
    pack(open_source(str(folder)), tmp_path / "out", options=options, progress=seen.append)
    assert seen == [1] * 7


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_arrays_are_packed_without_loss(tmp_path: Path, mode: str) -> None:
    image = photo(mode=mode)
    found = opened(packed(image, tmp_path, PLAIN, "png"))
    assert found.mode == mode
    np.testing.assert_array_equal(np.array(found), np.array(image))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "options", [PLAIN, PackOptions(shorter_side=8), PackOptions(shorter_side=9)]
)
def test_files_that_are_small_enough_are_kept(
    tmp_path: Path, kind: str, options: PackOptions
) -> None:
    data = encoded(photo(size=(12, 8)), kind)
    assert packed(data, tmp_path, options, kind.lower().replace("jpeg", "jpg")) == data


@pytest.mark.parametrize(("kind", "ext"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "jpg")])
@pytest.mark.parametrize("size", [(120, 80), (80, 120), (301, 40), (80, 80)])
def test_larger_images_are_resized_to_the_shorter_side(
    tmp_path: Path, kind: str, ext: str, size: tuple[int, int]
) -> None:
    image = photo(size=size)
    options = PackOptions(shorter_side=20)
    found = opened(packed(encoded(image, kind), tmp_path, options, ext))
    assert min(found.size) == 20
    assert abs(found.width / found.height - size[0] / size[1]) <= 0.5 * max(size) / min(size) / 20
    expected = image.resize(found.size, Image.Resampling.LANCZOS)
    error = np.abs(np.array(found.convert("RGB"), int) - np.array(expected, int)).mean()
    assert error < 6


def test_decoded_images_are_resized_too(tmp_path: Path) -> None:
    found = opened(packed(photo(size=(40, 80)), tmp_path, PackOptions(shorter_side=20), "png"))
    assert found.size == (20, 40)


@pytest.mark.parametrize(
    ("kind", "image_format", "kept"),
    [("PNG", "jpg", False), ("JPEG", "png", False), ("WEBP", "jpg", False), ("JPEG", "jpg", True)],
)
def test_a_format_is_enforced_but_its_files_are_kept(
    tmp_path: Path, kind: str, image_format: str, kept: bool
) -> None:
    data = encoded(photo(), kind)
    options = PackOptions(image_format=image_format)  # type: ignore[arg-type]
    found = packed(data, tmp_path, options, image_format)
    assert opened(found).format == {"jpg": "JPEG", "png": "PNG"}[image_format]
    assert (found == data) == kept


def test_quality_is_that_of_jpeg(tmp_path: Path) -> None:
    for quality in (50, 92):
        out = tmp_path / str(quality)
        options = PackOptions(image_format="jpg", quality=quality)
        assert packed(photo(size=(90, 90)), out, options, "jpg") == encoded(
            photo(size=(90, 90)), "JPEG", quality=quality
        )


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", "L"), ("1", "RGB"), ("P", "RGB"), ("RGBA", "RGB"), ("LA", "RGB"), ("CMYK", "RGB")],
)
@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_images_become_grey_or_rgb(
    tmp_path: Path, mode: str, expected: str, image_format: str
) -> None:
    image = photo(size=(30, 20)).convert("LA" if mode == "LA" else mode)
    options = PackOptions(shorter_side=10, image_format=image_format)  # type: ignore[arg-type]
    found = opened(packed(image, tmp_path, options, image_format))
    assert (found.mode, found.size) == (expected, (15, 10))


@pytest.mark.parametrize(("kind", "ext"), [("JPEG", "jpg"), ("PNG", "png")])
def test_the_orientation_is_kept_and_no_more(tmp_path: Path, kind: str, ext: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "somebody"
    data = encoded(photo(size=(40, 30)), kind, exif=exif, icc_profile=b"colours")
    found = opened(packed(data, tmp_path, PackOptions(shorter_side=15), ext))
    assert found.size == (20, 15)
    assert dict(found.getexif()) == {ExifTags.Base.Orientation: 6}
    assert "icc_profile" not in found.info


def test_images_without_orientation_get_no_exif(tmp_path: Path) -> None:
    data = packed(photo(size=(40, 30)), tmp_path, PackOptions(image_format="jpg"), "jpg")
    assert b"Exif" not in data


def test_a_damaged_exif_is_no_reason_to_stop(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"
    data = encoded(photo(size=(40, 30)), "JPEG", exif=exif)
    assert opened(packed(data, tmp_path, PackOptions(shorter_side=15), "jpg")).size == (20, 15)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(photo(size=(400, 300)), "JPEG")[:1500],
        encoded(photo(), "GIF"),
        encoded(Image.fromarray(np.full((30, 30), 40_000, np.uint16)), "PNG"),
    ],
)
def test_an_image_that_cannot_be_resized_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "images" / "bad.jpg"
    path.parent.mkdir()
    path.write_bytes(data)
    source = open_source(str(path.parent))
    with pytest.raises(DataError, match=f"{path}: cannot be decoded: "):
        pack(source, tmp_path / "out", options=PackOptions(shorter_side=8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]
    pack(source, tmp_path / "out", options=PackOptions(bad="keep"))


def spoil(folder: Path, *names: str) -> None:
    """Cut some of a folder's images to a half."""
    for name in names:
        [path] = folder.rglob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("options", [PLAIN, PackOptions(shorter_side=6)])
def test_all_images_are_looked_at_before_the_bad_ones_are_refused(
    folder: Path, tmp_path: Path, options: PackOptions
) -> None:
    spoil(folder, "img.1.jpg", "img.4.jpg")
    seen: list[int] = []
    with pytest.raises(DataError, match=r"^2 of 7 images cannot be used: ") as caught:
        pack(open_source(str(folder)), tmp_path / "out", options=options, progress=seen.append)
    text = str(caught.value)
    assert "img.1.jpg: cannot be decoded: " in text
    assert "img.4.jpg: cannot be decoded: " in text
    assert text.endswith("replace or remove them, or leave them out with --skip-bad")
    assert len(seen) == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]


def test_no_more_than_ten_bad_images_are_listed(tmp_path: Path) -> None:
    source = Source(
        [f"k{row}" for row in range(13)], None, lambda row: SourceImage(b"", "jpg", -1, f"f{row}:")
    )
    with pytest.raises(DataError, match=r"13 of 13 .*f9:.*; and 3 more; replace or remove them$"):
        pack(source, tmp_path / "out", options=PackOptions(bad="skip"))


def test_skipping_bad_images_packs_what_the_others_alone_make(folder: Path, tmp_path: Path) -> None:
    spoil(folder, "img.1.jpg", "img.4.jpg")
    options = PackOptions(rows_per_tar=3, shuffle_seed=1, bad="skip")
    packed = pack(open_source(str(folder)), tmp_path / "out", options=options)
    assert sorted(Path(text.partition(": ")[0]).name for text in packed.skipped) == [
        "img.1.jpg",
        "img.4.jpg",
    ]
    assert [tar.num_rows for tar in packed.dataset.tars] == [3, 2]
    for name in ("img.1.jpg", "img.4.jpg"):
        next(folder.rglob(name)).unlink()
    pack(open_source(str(folder)), tmp_path / "others", options=options)
    assert contents(tmp_path / "out") == contents(tmp_path / "others")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("options", [PLAIN, PackOptions(shorter_side=15)])
def test_images_that_exif_turns_are_counted(
    tmp_path: Path, kind: str, options: PackOptions
) -> None:
    files = []
    for orientation in (1, 6, 3):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        files.append(encoded(photo(size=(40, 30)), kind, exif=exif))
    files.append(encoded(photo(size=(40, 30)), kind))
    extension = {"JPEG": "jpg"}.get(kind, kind.lower())
    source = Source(
        list("abcd"), None, lambda row: SourceImage(files[row], extension, -1, "some/file")
    )
    assert pack(source, tmp_path / "out", options=options).num_turned == 2


def test_only_a_new_or_empty_folder_is_packed_into(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    (tmp_path / "empty").mkdir()
    pack(source, tmp_path / "empty", options=PLAIN)
    pack(source, tmp_path / "new" / "deep", options=PLAIN)
    (tmp_path / "file").write_text("text")
    for out in (tmp_path / "empty", tmp_path / "file"):
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(UsageError, match=f"{out}: exists and is not an empty folder"):
            pack(source, out, options=PLAIN)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(UsageError, match="Not a directory"):
        pack(source, tmp_path / "file" / "below", options=PLAIN)


def test_what_a_killed_run_left_is_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.kdcache-partial").mkdir()
    (tmp_path / ".out.kdcache-partial" / "000009.tar").write_bytes(b"half")
    pack(open_source(str(folder)), tmp_path / "out", options=PLAIN)
    assert sorted(contents(tmp_path / "out")) == ["000000.tar", "dataset.json", "dataset.npz"]
    assert not (tmp_path / ".out.kdcache-partial").exists()


@pytest.mark.parametrize("limit", [5_000, 30_719])
def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, limit: int) -> None:
    """A limit on file sizes stands in for the disk: the first write fails, or the last."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UsageError, match=f"{out}: File too large"):
            pack(open_source(str(folder)), out, options=PLAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows_per_tar", 0),
        ("shuffle_seed", -1),
        ("shuffle_seed", 2**64),
        ("shorter_side", 0),
        ("quality", 101),
        ("image_format", "webp"),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}, expected"):
        PackOptions(**{name: value})  # type: ignore[arg-type]
