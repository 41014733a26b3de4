"""Claims about reading tars: whole or refused, by webdataset's rule, and proven by digest."""

import bz2
import contextlib
import gc
import gzip
import io
import itertools
import json
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from kdcache.data import tars
from kdcache.data.tars import (
    IMAGE_EXTENSIONS,
    ScannedSample,
    key_at,
    read_images,
    scan_tar,
    split_member,
)
from kdcache.errors import DataError
from kdcache.identity import content_digest
from tests.data.making import webdataset_samples, write_tar

BLOCK = tarfile.BLOCKSIZE

folders = st.sampled_from(("", "a/", "./", "n01.x y/", "deep/er/", "é/"))
bases = st.text(
    st.characters(exclude_characters="./\0", exclude_categories=("Cs", "Cc")), max_size=9
)
keys = st.builds(lambda folder, base: f"{folder}k{base}", folders, bases)
extensions = st.sampled_from((*IMAGE_EXTENSIONS, "JPG", "Png"))
samples = st.lists(
    st.tuples(keys, extensions, st.binary(max_size=1500), st.none() | st.integers(0, 2**31 - 1)),
    min_size=1,
    max_size=6,
    unique_by=lambda sample: sample[0],
)


def members_of(
    drawn: list[tuple[str, str, bytes, int | None]],
) -> list[tuple[str, bytes]]:
    members = []
    for key, extension, data, label in drawn:
        members += [(f"{key}.{extension}", data)]
        members += [] if label is None else [(f"{key}.cls", b"%d" % label)]
    return members


def arrays(found: list[ScannedSample]) -> dict[str, np.ndarray]:
    return {
        "sizes": np.array([sample.size_bytes for sample in found], np.uint32),
        "contents": np.array([sample.content for sample in found], np.uint64),
    }


def offsets(found: list[ScannedSample]) -> np.ndarray:
    return np.array([sample.offset for sample in found], np.uint64)


def header_offsets(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_tar(
        tmp_path / "small.tar",
        [("a/x.jpg", b"j" * 700), ("a/x.cls", b"3"), ("b/y.png", b"p" * BLOCK), ("z.txt", b"t")],
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=samples)
def test_what_is_written_is_scanned_and_read_back(
    tmp_path: Path, drawn: list[tuple[str, str, bytes, int | None]]
) -> None:
    path = write_tar(tmp_path / "some.tar", members_of(drawn))
    found = list(scan_tar(path))
    assert [(s.key, s.label) for s in found] == [
        (key, -1 if label is None else label) for key, _, _, label in drawn
    ]
    assert [s.content for s in found] == [content_digest(data) for _, _, data, _ in drawn]
    images = read_images(path, offsets(found), **arrays(found))
    assert images == [data for _, _, data, _ in drawn]
    assert [key_at(path, s.offset) for s in found] == [s.key for s in found]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=samples)
def test_webdataset_reads_the_same_keys_and_bytes(
    tmp_path: Path, drawn: list[tuple[str, str, bytes, int | None]]
) -> None:
    path = write_tar(tmp_path / "some.tar", members_of(drawn))
    theirs = webdataset_samples(path)
    found = list(scan_tar(path))
    assert [s.key for s in found] == [sample["__key__"] for sample in theirs]
    images = read_images(path, offsets(found), **arrays(found))
    for image, sample in zip(images, theirs, strict=True):
        assert image == next(sample[e] for e in IMAGE_EXTENSIONS if e in sample)


@given(st.text(st.sampled_from("ab./_J\n "), max_size=12))
def test_members_are_named_as_webdataset_names_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    found = split_member(name)
    if found is None:
        assert key is None or key.endswith("/") or key.startswith("__")
    else:
        assert found == (key, extension.lower())


def test_every_cut_before_the_end_block_is_found(small: Path) -> None:
    data = small.read_bytes()
    expected = list(scan_tar(small))
    first_end_block = len(data) - 2 * BLOCK
    cut = small.with_name("cut.tar")
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        if length >= first_end_block + BLOCK:
            assert list(scan_tar(cut)) == expected
        else:
            with pytest.raises(DataError, match=rf"cut\.tar: byte \d+ of {length}: .*cut"):
                list(scan_tar(cut))


def test_garbage_in_place_of_any_header_is_found(small: Path) -> None:
    data = small.read_bytes()
    for offset in (*header_offsets(small), len(data) - 2 * BLOCK):
        damaged = data[:offset] + b"garbage!" * (BLOCK // 8) + data[offset + BLOCK :]
        small.write_bytes(damaged)
        with pytest.raises(DataError, match=f"byte {offset} of "):
            list(scan_tar(small))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_give_samples_or_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    """The checksum is made right again, so that tarfile believes the damage."""
    path = write_tar(tmp_path / "some.tar", [("x.jpg", b"j" * 700), ("y.jpg", b"k")])
    raw = bytearray(path.read_bytes())
    header = data.draw(st.sampled_from(header_offsets(path)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[header + data.draw(st.integers(0, BLOCK - 1))] = data.draw(st.integers(0, 255))
    raw[header + 148 : header + 156] = b" " * 8
    raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + BLOCK])
    path.write_bytes(raw)
    with contextlib.suppress(DataError):
        list(scan_tar(path))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [2**33 - 1, 2**60, -512, -(2**60)])
def test_a_gigantic_or_negative_size_takes_no_memory(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.size, info.type = max(size, 0), kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "bomb.tar"
    path.write_bytes(bytes(header) + bytes(4 * BLOCK))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"bomb\.tar: byte 0 of 2560"):
            list(scan_tar(path))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_scan_does_not_keep_the_members_that_it_passed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"1") for i in range(100)])
    scan = scan_tar(path)
    for _ in range(100):
        next(scan)
    assert sum(type(found) is tarfile.TarInfo for found in gc.get_objects()) < 10
    assert list(scan) == []


def test_an_image_beyond_the_limit_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_IMAGE_BYTES", 699)
    with pytest.raises(DataError, match="a/x: an image of 700 bytes, at most 699"):
        list(scan_tar(small))


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zip"])
def test_a_compressed_tar_is_told_to_be_decompressed(small: Path, kind: str) -> None:
    data = small.read_bytes()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("x.jpg", data)
    small.write_bytes(
        {
            "gzip": gzip.compress(data),
            "bzip2": bz2.compress(data),
            "xz": lzma.compress(data),
            "zip": zipped.getvalue(),
        }[kind]
    )
    with pytest.raises(DataError, match=f"a {kind} file.*decompress"):
        list(scan_tar(small))


def test_a_key_that_begins_like_a_compressed_file_is_fine(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("BZhang/x.jpg", b"1")])
    assert [sample.key for sample in scan_tar(path)] == ["BZhang/x"]


def test_a_missing_tar_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            list(scan_tar(path))


def test_a_tar_without_images_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.tar"
    empty.write_bytes(bytes(2 * BLOCK))
    texts = write_tar(tmp_path / "texts.tar", [("x.txt", b"1"), ("x.cls", b"1"), ("jpg", b"2")])
    for path in (empty, texts):
        with pytest.raises(DataError, match="no image"):
            list(scan_tar(path))


def test_metadata_hidden_files_and_samples_without_image_are_left_out(tmp_path: Path) -> None:
    members = [
        ("__meta__/a.jpg", b"1"),
        ("d/._x.jpg", b"1"),
        ("d/x.jpg", b"2"),
        ("d/._y.jpg", b"1"),
        ("d/y.txt", b"3"),
        ("d/z.left.jpg", b"3"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert [sample.key for sample in scan_tar(path)] == ["d/x"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.jpg", b"1"), ("x.png", b"2")], "2 images"),
        ([("x.jpg", b"1"), ("x.JPG", b"2")], "has an extension twice"),
        ([("x.cls", b"1"), ("x.cls", b"1"), ("x.jpg", b"1")], "has an extension twice"),
        ([("x.jpg", b"1"), ("y.jpg", b"2"), ("x.cls", b"2")], "comes back"),
        ([("x.jpg", b"1"), ("x.cls", b"-1")], "label b'-1', expected an integer"),
        ([("x.jpg", b"1"), ("x.cls", b"1.0")], "label"),
        ([("x.jpg", b"1"), ("x.cls", b"1_0")], "label"),
        ([("x.jpg", b"1"), ("x.cls", "٣".encode())], "label"),
        ([("x.jpg", b"1"), ("x.cls", b"")], "label"),
        ([("x.jpg", b"1"), ("x.cls", b"9" * 5000)], "label"),
        ([("x.jpg", b"1"), ("x.cls", b"2147483648")], "label 2147483648, expected"),
        ([("x.jpg", b"1"), ("x.json", b'{"label": -1}')], "label -1"),
        ([("x.jpg", b"1"), ("x.json", b'{"label": true}')], "label True"),
        ([("x.jpg", b"1"), ("x.json", b'{"label": 1.0}')], r"label 1\.0"),
        ([("x.jpg", b"1"), ("x.json", b'{"label": "1"}')], "label '1'"),
        ([("x.jpg", b"1"), ("x.json", b"[1]")], "not a JSON object"),
        ([("x.jpg", b"1"), ("x.json", b"{")], "not a JSON object"),
        ([("x.jpg", b"1"), ("x.json", b"[" * 100000)], "not a JSON object"),
        ([("x.jpg", b"1"), ("x.cls", b"1"), ("x.json", b'{"label": 2}')], "cls says label 1, json"),
    ],
)
def test_a_bad_sample_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    path = write_tar(tmp_path / "bad.tar", members)
    with pytest.raises(DataError, match=rf"bad\.tar: x: .*{reason}"):
        list(scan_tar(path))


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([("x.cls", b" 7\n")], 7),
        ([("x.json", b'{"label": 7}')], 7),
        ([("x.json", b'{"class": 8}')], -1),
        ([("x.json", b'{"label": null}')], -1),
        ([("x.cls", b"7"), ("x.json", b'{"label": 7}')], 7),
        ([("x.cls", b"7"), ("x.json", b"{}")], 7),
        ([], -1),
    ],
)
def test_a_label_is_read_from_cls_or_json(
    tmp_path: Path, members: list[tuple[str, bytes]], label: int
) -> None:
    path = write_tar(tmp_path / "a.tar", [*members, ("x.jpg", b"1")])
    assert [sample.label for sample in scan_tar(path)] == [label]


def test_the_label_field_can_be_chosen(tmp_path: Path) -> None:
    text = json.dumps({"label": "cat", "class": 8}).encode()
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.json", text)])
    assert [sample.label for sample in scan_tar(path, label_field="class")] == [8]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("name", ["x.jpg", "x.cls"])
def test_a_link_in_place_of_an_image_or_label_is_refused(
    tmp_path: Path, kind: bytes, name: str
) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, "other"
    with tarfile.open(tmp_path / "a.tar", "w:") as tar:
        tar.addfile(link)
        if name != "x.jpg":
            tar.addfile(tarfile.TarInfo("x.jpg"))
    with pytest.raises(DataError, match=f"x: its {name[2:]} is a link"):
        list(scan_tar(tmp_path / "a.tar"))


def test_a_sparse_image_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x.jpg",
        "GNU.sparse.realsize": "10000",
    }
    info.size = BLOCK
    with tarfile.open(tmp_path / "a.tar", "w:", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"0\n".ljust(BLOCK, b"\0")))
    with pytest.raises(DataError, match="sparse"):
        list(scan_tar(tmp_path / "a.tar"))


def test_a_folder_named_like_an_image_is_no_sample(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("x.jpg")
    folder.type = tarfile.DIRTYPE
    with tarfile.open(tmp_path / "a.tar", "w:") as tar:
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("x.jpg/y.jpg"))
    assert [sample.key for sample in scan_tar(tmp_path / "a.tar")] == ["x.jpg/y"]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:", encoding="latin-1", format=tarfile.GNU_FORMAT) as t:
        t.addfile(tarfile.TarInfo("é.jpg"))
    with pytest.raises(DataError, match=r"byte 0 of .*utf-8"):
        list(scan_tar(tmp_path / "a.tar"))


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_survive(tmp_path: Path, tar_format: int) -> None:
    key = "/".join(["long" * 20] * 5)
    with tarfile.open(tmp_path / "a.tar", "w:", format=tar_format) as tar:
        tar.addfile(tarfile.TarInfo(f"{key}.jpg"))
    assert [sample.key for sample in scan_tar(tmp_path / "a.tar")] == [key]


def test_any_rows_in_any_order_are_read(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", bytes([i]) * (10 + i)) for i in range(5)]
    members.insert(2, ("big.txt", b"t" * 20_000))
    path = write_tar(tmp_path / "a.tar", members)
    found = list(scan_tar(path))
    for rows in itertools.chain.from_iterable(
        itertools.permutations(range(5), n) for n in (0, 1, 3)
    ):
        chosen = [found[row] for row in rows]
        images = read_images(path, offsets(chosen), **arrays(chosen))
        assert images == [bytes([row]) * (10 + row) for row in rows]


def test_close_images_take_one_read_and_distant_ones_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(f"{i}.jpg", bytes([i]) * 2000) for i in range(4)]
    members.insert(2, ("big.txt", b"t" * 50_000))
    path = write_tar(tmp_path / "a.tar", members)
    found = list(scan_tar(path))
    reads: list[int] = []
    pread = tars.os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(tars.os, "pread", counted)
    read_images(path, offsets(found[:2]), **arrays(found[:2]))
    assert len(reads) == 1
    read_images(path, offsets(found), **arrays(found))
    assert reads[1:] == [2000] * 4


def test_large_images_take_one_read_each_in_any_order(tmp_path: Path) -> None:
    sizes = (20_000, 1, 70_000, 16_384, 16_383)
    members = [(f"{i}.jpg", bytes([i]) * size) for i, size in enumerate(sizes)]
    path = write_tar(tmp_path / "a.tar", members)
    found = list(scan_tar(path))
    for rows in ((0, 1, 2, 3, 4), (4, 2, 0), (2,)):
        chosen = [found[row] for row in rows]
        images = read_images(path, offsets(chosen), **arrays(chosen))
        assert images == [members[row][1] for row in rows]


def test_a_missing_tar_is_to_be_restored(small: Path) -> None:
    found = list(scan_tar(small))
    small.unlink()
    with pytest.raises(DataError, match=f"{small}: No such file or directory; restore the tar"):
        read_images(small, offsets(found), **arrays(found))


@pytest.mark.parametrize("damage", ["flip", "short"])
def test_a_tar_that_changed_is_named(small: Path, damage: str) -> None:
    found = list(scan_tar(small))
    data = bytearray(small.read_bytes())
    data[found[1].offset] ^= 1
    name = {"flip": "b/y", "short": f"offset {found[1].offset}"}[damage]
    small.write_bytes(data if damage == "flip" else data[: found[1].offset + 100])
    with pytest.raises(DataError) as caught:
        read_images(small, offsets(found), **arrays(found))
    assert f"{small}: {name}: " in str(caught.value)
    assert "the tar changed since it was indexed: run kdcache index again" in str(caught.value)
