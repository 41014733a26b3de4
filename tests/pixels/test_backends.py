"""Claims about the decoders of JPEGs: in every window they give the reference's pixels, or none."""

import itertools
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcache.errors import DataError, MismatchError, UsageError
from kdcache.pixels import conformance, image, jpeg
from kdcache.pixels.conformance import (
    BACKEND_VARIABLE,
    available_backends,
    check_decode,
    chosen_backends,
    conforming,
)
from kdcache.pixels.decode import (
    SCALES,
    Backend,
    Header,
    Window,
    decode_image,
    decode_pillow,
    read_header,
)
from kdcache.pixels.image import MAX_KEPT_BYTES, scratch
from kdcache.pixels.jpeg import decode_simplejpeg, find_frame, rows_needed
from kdcache.recipe.parts import Decode
from tests import photos
from tests.jpegs import (
    all_windows_agree,
    coded,
    damage_outcomes,
    frame_at,
    random_jpeg,
    random_window,
    window_outcomes,
)
from tests.photos import encoded, smooth_photo

PLAIN = Decode()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Backends are looked for and tried anew, in the test and after it."""
    functions = check_decode, conforming, chosen_backends
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    for function in functions:
        function.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for function in functions:
        function.cache_clear()


# --- windows -------------------------------------------------------------------------------


def test_backends_agree_in_thousands_of_random_windows_of_random_files() -> None:
    for backend in available_backends():
        outcomes = window_outcomes(backend, num_files=350, seed=1)
        assert outcomes["same"] > 2000
        assert set(outcomes) <= {"same", "by the reference"}
        assert outcomes["by the reference"] < 0.1 * outcomes["same"]


def test_early_stops_change_no_pixel_however_few_they_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "LEAST_PIXELS_SAVED", 1)
    rng, stopped = np.random.default_rng(2), Counter[str]()
    for _ in range(350):
        data, kind = random_jpeg(rng)
        header = read_header(data, PLAIN)
        for scale in SCALES:
            if min(header.width, header.height) < scale:
                continue
            expected = decode_pillow(data, header, scale=scale)
            for _ in range(3):
                part = random_window(rng, expected.shape)
                found = decode_simplejpeg(
                    data, (header.width, header.height), scale=scale, window=part
                )
                if found is not None:
                    assert np.array_equal(
                        found.cut(part).pixels,
                        expected[part.top : part.bottom, part.left : part.right],
                    )
                    stopped[kind] += found.pixels.shape != expected.shape
    sequential = {f"{a} {b}" for a, b in itertools.product(("plain", "restart"), (0, 1, 2))}
    for kind in {"rgb 0", *sequential, "440", "411", "444", "422", "420"}:
        assert stopped[kind] > 10, kind
    assert not any(stopped[f"progressive {n}"] for n in range(3))


# The first is luma. Those that name a way to sample are decoded by all; Pillow decodes the others.
FACTORS = {
    "grey": ((1, 1),),
    "444": ((1, 1), (1, 1), (1, 1)),
    "444 of three blocks across": ((3, 1), (3, 1), (3, 1)),
    "444 of two blocks": ((1, 2), (1, 2), (1, 2)),
    "422": ((2, 1), (1, 1), (1, 1)),
    "422 of six blocks": ((2, 2), (1, 2), (1, 2)),
    "440": ((1, 2), (1, 1), (1, 1)),
    "440 of six blocks": ((2, 2), (2, 1), (2, 1)),
    "420": ((2, 2), (1, 1), (1, 1)),
    "411": ((4, 1), (1, 1), (1, 1)),
    "441": ((1, 4), (1, 1), (1, 1)),
    "410": ((4, 2), (1, 1), (1, 1)),
    "two colours unlike": ((2, 2), (1, 1), (2, 2)),
    "luma smaller": ((1, 1), (2, 2), (2, 2)),
    "luma lower": ((1, 1), (1, 2), (1, 2)),
    "threes": ((3, 3), (1, 1)),
}


@pytest.mark.parametrize("interval", [0, 1, 5])
@pytest.mark.parametrize("name", FACTORS)
def test_backends_agree_on_any_sampling_factors(
    name: str, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg, "LEAST_PIXELS_SAVED", 1)
    for size in ((97, 131), (64, 96), (150, 70)):
        data = coded(*size, FACTORS[name], interval=interval, seed=interval)
        try:
            header = read_header(data, PLAIN)
            decode_pillow(data, header)
        except DataError:
            assert len(FACTORS[name]) == 2
            continue
        # Also backends that would not be tried, since simplejpeg has no name for these.
        clean = Header(*size, scalable=True, clean=True, turned=False)
        for backend in available_backends():
            assert all_windows_agree(data, header, backend=backend, num_windows=10, seed=3)
            assert all_windows_agree(data, clean, backend=backend, num_windows=10, seed=4)


@settings(deadline=None, max_examples=300)
@given(
    bottom=st.integers(1, 70_000),
    scale=st.sampled_from(SCALES),
    unit=st.sampled_from((8, 16, 24, 32)),
)
def test_rows_needed_are_the_fewest_units_that_hold_one_row_more(
    bottom: int, scale: int, unit: int
) -> None:
    frame = jpeg.Frame(1, 1, 0, 8, unit, 0, 0)
    rows = rows_needed(frame, bottom=bottom, scale=scale)
    assert rows % unit == rows % scale == 0
    assert rows // scale >= bottom + 1
    assert (rows - unit) // scale < bottom + 1


@pytest.mark.parametrize("backend", available_backends())
def test_windows_of_a_photograph_are_those_of_the_whole(backend: Backend) -> None:
    for data in photos.real_photos():
        header = read_header(data, PLAIN)
        assert all_windows_agree(data, header, backend=backend, num_windows=25, seed=5)


def test_windows_of_all_formats_are_those_of_the_whole() -> None:
    image = smooth_photo(61, 47)
    files = [
        encoded(image.convert("CMYK")),
        encoded(image, exif=photos.exif(6)),
        encoded(image, "PNG", exif=photos.exif(5)),
        encoded(image.quantize(9), "PNG", transparency=2),
        encoded(image.convert("L").convert("I;16"), "PNG"),
        encoded(image.convert("1"), "PNG"),
        encoded(image.convert("RGBA"), "WEBP"),
    ]
    for data, exif in itertools.product(files, ("ignore", "apply")):
        header = read_header(data, Decode(exif=exif))  # type: ignore[arg-type] # one of the two
        assert all_windows_agree(data, header, backend=None, num_windows=10, seed=6)


@pytest.mark.parametrize(
    "bad",
    [(0, 0, 0, 1), (0, 0, 1, 0), (-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 32, 2), (0, 0, 2, 18)],
)
def test_a_window_that_is_empty_or_outside_is_refused(bad: tuple[int, int, int, int]) -> None:
    data = encoded(smooth_photo(31, 17))
    with pytest.raises(ValueError, match="is not within 31 x 17 pixels"):
        decode_image(data, read_header(data, PLAIN), window=Window(*bad))


# --- which files are stopped early ---------------------------------------------------------


def test_the_frame_of_a_file_is_found_with_its_units_and_restarts() -> None:
    image = smooth_photo(61, 47)
    for subsampling, unit in ((0, (8, 8)), (1, (16, 8)), (2, (16, 16))):
        data = encoded(image, subsampling=subsampling, restart_marker_blocks=5)
        frame = find_frame(data)
        assert frame is not None
        assert frame[:2] == (61, 47)
        assert frame[3:6] == (*unit, 5)
        assert data[frame.height_at : frame.height_at + 4] == struct.pack(">HH", 47, 61)
        assert data[frame.scan_at - 3 : frame.scan_at] == bytes([0, 63, 0])
    for data in photos.real_photos():
        frame = find_frame(data)
        assert frame is not None
        assert frame[:2] == (640, 427)


def unusual() -> dict[str, bytes]:
    image = smooth_photo(61, 47)
    data = encoded(image)
    at, scan = frame_at(data), data.index(b"\xff\xda")
    size = struct.unpack_from(">H", data, at + 2)[0] + 2

    def with_bytes(place: int, *new: int) -> bytes:
        return data[:place] + bytes(new) + data[place + len(new) :]

    return {
        "progressive": encoded(image, progressive=True),
        "cmyk": encoded(image.convert("CMYK")),
        "png": encoded(image, "PNG"),
        "nothing": b"",
        "cut in its header": data[: at + 5],
        "cut before its scan": data[:scan],
        "fill bytes": data[:at] + b"\xff" + data[at:],
        "garbage between segments": data[:at] + b"\0" + data[at:],
        "two frames": data[: at + size] + data[at:],
        "no height": with_bytes(at + 5, 0, 0),
        "no width": with_bytes(at + 7, 0, 0),
        "twelve bits": with_bytes(at + 4, 12),
        "arithmetic": with_bytes(at + 1, 0xC9),
        "lossless": with_bytes(at + 1, 0xC3),
        "two components": with_bytes(at + 9, 2),
        "factors of zero": with_bytes(at + 11, 0),
        "factors of five": with_bytes(at + 11, 0x51),
        "a scan of one component": with_bytes(scan + 4, 1),
        "a second image start": data[:at] + b"\xff\xd8" + data[at:],
        "a frame of odd length": with_bytes(at + 2, 0, 18),
    }


@pytest.mark.parametrize("name", unusual())
def test_what_is_unusual_is_not_stopped_early(name: str) -> None:
    assert find_frame(unusual()[name]) is None


def test_an_early_stop_saves_rows_and_none_is_made_that_saves_few() -> None:
    data = encoded(smooth_photo(160, 160), subsampling=2)
    for scale, bottom, rows in (
        *((1, 1, 16), (1, 15, 16), (1, 16, 32), (1, 17, 32), (1, 127, 128), (1, 143, 144)),
        *((2, 7, 8), (2, 8, 16), (2, 15, 16), (8, 1, 2), (8, 2, 4)),
        *((1, 144, 160), (1, 160, 160), (2, 72, 80), (8, 20, 20)),  # all
    ):
        part = Window(0, 0, 9, bottom)
        found = decode_simplejpeg(data, (160, 160), scale=scale, window=part)
        assert found is not None
        assert found.pixels.shape == (rows, 160 // scale, 3)
    small = encoded(smooth_photo(160, 28), subsampling=2)
    found = decode_simplejpeg(small, (160, 28), scale=1, window=Window(0, 0, 9, 9))
    assert found is not None
    assert found.pixels.shape == (28, 160, 3)  # 12 rows of 160 would cost more to be stopped at


def test_restart_markers_out_of_order_are_left_to_the_reference() -> None:
    data = encoded(smooth_photo(160, 160), restart_marker_rows=1)
    frame = find_frame(data)
    assert frame is not None
    part = Window(0, 0, 9, 60)
    found = decode_simplejpeg(data, (160, 160), scale=1, window=part)
    assert found is not None
    assert found.pixels.shape == (64, 160, 3)
    for new in (b"\xff\xd2", b"\xff\xd9", b"\x12\x34", b""):
        swapped = data.replace(b"\xff\xd1", new, 1)
        assert swapped != data
        assert decode_simplejpeg(swapped, (160, 160), scale=1, window=part) is None
        header = read_header(swapped, PLAIN)
        try:
            whole = decode_image(swapped, header).pixels.copy()
        except DataError:
            continue
        assert np.array_equal(decode_image(swapped, header, window=part).pixels, whole[:60, :9])


# --- damage --------------------------------------------------------------------------------


def test_damage_gives_the_same_pixels_or_an_error_by_every_backend_in_whole_and_in_part() -> None:
    for backend in available_backends():
        outcomes = damage_outcomes(backend, num_files=500, seed=7)
        assert outcomes["refused"] > 50
        assert outcomes["same"] > 300
        assert outcomes["part the same"] > 300
        assert set(outcomes) <= {"refused", "same", "part the same"}


def test_damage_within_the_window_is_left_to_the_reference() -> None:
    data = bytearray(encoded(smooth_photo(160, 160, falloff=1.0), quality=95))
    scan = data.index(b"\xff\xda") + 14
    data[scan + 300 : scan + 302] = b"\xff\xd9"
    assert decode_simplejpeg(bytes(data), (160, 160), scale=1, window=Window(0, 0, 160, 64)) is None


def test_damage_below_the_window_may_pass() -> None:
    """What the caller accepts by asking for a window: the whole image was decoded before."""
    data = encoded(smooth_photo(160, 160, falloff=1.0), quality=95)
    header, part = read_header(data, PLAIN), Window(3, 5, 90, 20)
    expected = decode_image(data, header, window=part).pixels.copy()
    cut = data[: len(data) // 2]
    assert np.array_equal(decode_image(cut, header, window=part).pixels, expected)
    with pytest.raises(DataError, match="truncated"):
        decode_image(cut, header)


FUZZ = """
import numpy as np
from kdcache.errors import DataError
from kdcache.pixels.conformance import available_backends
from kdcache.pixels.decode import decode_image, read_header
from kdcache.recipe.parts import Decode
from tests.jpegs import damaged, random_jpeg, random_window

rng, limits, decoded = np.random.default_rng(8), Decode(max_pixels=1 << 20), 0
for _ in range(200):
    data, _ = random_jpeg(rng, most=70)
    for _ in range(10):
        broken = damaged(data, rng)
        try:
            header = read_header(broken, limits)
        except DataError:
            continue
        for backend in available_backends():
            for scale in (1, 2, 4, 8)[: 4 if header.scalable else 1]:
                shape = -(-header.height // scale), -(-header.width // scale)
                if min(header.height, header.width) < scale:
                    continue
                for window in (None, random_window(rng, shape)):
                    try:
                        decode_image(broken, header, scale=scale, window=window, backend=backend)
                        decoded += 1
                    except DataError:
                        pass
print(*available_backends(), decoded)
"""


def test_two_thousand_damaged_files_crash_no_backend() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    *backends, decoded = done.stdout.split()
    assert backends[:2] == ["pillow", "simplejpeg"]
    assert int(decoded) > 1000


# --- which backend -------------------------------------------------------------------------


def test_the_fastest_backend_that_conforms_is_chosen(fresh: pytest.MonkeyPatch) -> None:
    assert all(conforming(backend) for backend in available_backends())
    assert chosen_backends() == (available_backends()[-1], "pillow")


@pytest.mark.parametrize("backend", ["pillow", "simplejpeg"])
def test_a_variable_forces_a_backend(backend: Backend, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv(BACKEND_VARIABLE, backend)
    assert chosen_backends() == tuple(dict.fromkeys((backend, "pillow")))


def test_a_variable_that_is_empty_is_none(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv(BACKEND_VARIABLE, "")
    assert chosen_backends() == (available_backends()[-1], "pillow")


@pytest.mark.parametrize("name", ["opencv", "Pillow"])
def test_a_variable_that_names_no_backend_is_refused(name: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv(BACKEND_VARIABLE, name)
    with pytest.raises(UsageError, match=f"^{BACKEND_VARIABLE}={name}: .*choose one of pillow, si"):
        chosen_backends()


def off_by_one(data: bytes, size: tuple[int, int], **options: object) -> object:
    """Decode as simplejpeg does, but for one level of one pixel of windows."""
    found = decode_simplejpeg(data, size, **options)  # type: ignore[arg-type] # passed on
    if found is not None and options["window"]:
        found.pixels[-1, -1, 1] ^= 1
    return found


def test_a_backend_that_gives_another_pixel_is_not_used(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(conformance, "available_backends", lambda: ("pillow", "simplejpeg"))
    fresh.setattr(conformance, "decode_simplejpeg", off_by_one)
    assert not conforming("simplejpeg")
    assert chosen_backends() == ("pillow",)
    chosen_backends.cache_clear()
    fresh.setenv(BACKEND_VARIABLE, "simplejpeg")
    with pytest.raises(UsageError, match="choose one of pillow, or leave"):
        chosen_backends()


def test_a_reference_that_gives_another_pixel_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(conformance.KNOWN_DIGESTS, 4, "0" * 16)
    with pytest.raises(MismatchError, match=r"the layer decode .* pillow [\d.]+ with libjpeg_tu"):
        chosen_backends()


def test_conformance_tries_early_stops_and_every_way_to_sample() -> None:
    files = conformance.sampled()
    ways = {frame[3:6] for file in files if (frame := find_frame(file.data))}
    assert ways == {(8, 8, 7), (16, 8, 0), (16, 16, 0), (8, 16, 0), (32, 8, 0)}
    stopped = 0
    for (data, header), scale in itertools.product(files, SCALES):
        size, (tall, wide) = (header.width, header.height), header.shape(scale)
        for part in conformance.windows(wide, tall):
            found = decode_simplejpeg(data, size, scale=scale, window=part)
            stopped += found is not None and found.pixels.shape[0] < tall
    assert stopped >= 20


# --- memory --------------------------------------------------------------------------------


def test_decoded_pixels_live_until_the_next_image_at_their_scale() -> None:
    data = encoded(smooth_photo(64, 64))
    header = read_header(data, PLAIN)
    found = {scale: decode_image(data, header, scale=scale).pixels for scale in SCALES}
    for one, other in itertools.combinations(found.values(), 2):
        assert not np.shares_memory(one, other)
    again = decode_image(encoded(smooth_photo(50, 60, seed=1)), Header(50, 60, True, True, False))
    assert np.shares_memory(found[1], again.pixels)


def test_threads_have_memory_of_their_own() -> None:
    mine, found = scratch("test", (5, 4, 3)), []
    thread = threading.Thread(target=lambda: found.append(scratch("test", (5, 4, 3))))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, found[0])
    assert np.shares_memory(mine, scratch("test", (2, 2, 3)))


def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_KEPT_BYTES == 64 << 20
    monkeypatch.setattr(image, "MAX_KEPT_BYTES", 100)
    monkeypatch.setattr(image, "_local", threading.local())
    kept = scratch(1, (100,))
    large = scratch(1, (101,))
    assert not np.shares_memory(kept, large)
    assert not np.shares_memory(large, scratch(1, (101,)))
    assert np.shares_memory(kept, scratch(1, (10, 10)))


def test_threads_decode_side_by_side() -> None:
    rng = np.random.default_rng(9)
    files = [random_jpeg(rng)[0] for _ in range(12)]
    headers = [read_header(data, PLAIN) for data in files]
    expected = [decode_pillow(data, header) for data, header in zip(files, headers, strict=True)]
    wrong: list[int] = []

    def decode_all(first: int) -> None:
        for step in range(60):
            number = (first + step) % len(files)
            found = decode_image(files[number], headers[number]).pixels
            if not np.array_equal(found, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=decode_all, args=(3 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_pillow_and_the_others_write_where_nothing_else_lies() -> None:
    """Grey, palette and 16-bit images take three channels, whatever their files have."""
    for mode in ("L", "P", "1", "RGBA", "I;16"):
        image = Image.new("L" if mode == "I;16" else "RGB", (7, 5)).convert(mode)
        data = encoded(image, "PNG")
        found = decode_image(data, read_header(data, PLAIN)).pixels
        assert found.shape == (5, 7, 3)
        assert found.flags.writeable


@pytest.mark.parametrize(
    "segment",
    [b"\xff\x01", b"\xff\xe0\x00\x07JFIF\x00", b"\xff\xee\x00\x07Adobe"],
    ids=["TEM", "short JFIF", "short Adobe"],
)
def test_a_header_that_the_reference_refuses_is_refused_for_all(segment: bytes) -> None:
    """The fast backends pass over these; whoever decodes whole images finds them."""
    plain = photos.encoded(photos.smooth_photo(40, 30))
    data = plain[:2] + segment + plain[2:]
    with pytest.raises(DataError, match="not a readable JPEG"):
        read_header(data, PLAIN)
    assert read_header(data, PLAIN, whole=False) == read_header(plain, PLAIN)
