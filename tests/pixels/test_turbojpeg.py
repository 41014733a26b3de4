"""Claims about libturbojpeg 3: in every window it gives the reference's pixels, or none.

Where the system has no such library, one that a package of the npm registry carries is fetched once
into build/ and checked against a digest; nothing of the package runs but the library. Without npm
or a network the tests are skipped.
"""

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdcache.errors import DataError, UsageError
from kdcache.pixels import turbojpeg
from kdcache.pixels.conformance import (
    BACKEND_VARIABLE,
    available_backends,
    chosen_backends,
    conforming,
)
from kdcache.pixels.decode import (
    SCALES,
    Header,
    Window,
    decode_image,
    decode_pillow,
    read_header,
)
from kdcache.pixels.turbojpeg import PATH_VARIABLE, decode_turbojpeg, find_library
from kdcache.recipe.parts import Decode
from tests import photos
from tests.jpegs import (
    all_windows_agree,
    coded,
    damage_outcomes,
    damaged,
    random_jpeg,
    random_window,
    window_outcomes,
)
from tests.photos import Pixels, encoded, smooth_photo
from tests.pixels.test_backends import FACTORS, FUZZ

PLAIN = Decode()
PACKAGE = "@julusian/jpeg-turbo@3.0.1"  # has libjpeg-turbo 3.1.3
LIBRARIES = {  # by system and machine: where it is in the package, its sha256
    ("Linux", "x86_64"): (
        "package/prebuilds/jpeg-turbo-linux-x64/libturbojpeg.so.0",
        "6facda09ef3e2308608f2b0214c040791e276305a48a27036362402f95fffcf5",
    ),
    ("Linux", "aarch64"): (
        "package/prebuilds/jpeg-turbo-linux-arm64/libturbojpeg.so.0",
        "a84dbc892b9e438c72022bc6ad892400d21ffdf5d7184928d59807371b7c86d5",
    ),
}
FETCHED = Path(__file__).parents[2] / "build" / "turbojpeg" / "libturbojpeg.so.0"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(member: str, folder: Path) -> Path:
    """Return the library, fetched into a folder."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no libturbojpeg 3 on this system, and no npm to fetch one")
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--silent", "--fetch-retries=1"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no libturbojpeg 3 on this system, and npm cannot fetch one: {error}")
    (package,) = folder.glob("*.tgz")
    with tarfile.open(package) as tar:
        file = tar.extractfile(member)
        assert file is not None
        path = folder / "library"
        path.write_bytes(file.read())
    return path


@pytest.fixture(scope="module", autouse=True)
def known() -> ctypes.CDLL | None:
    """The library that the user names, or the system has."""
    return find_library()


@pytest.fixture(scope="module")
def library(known: ctypes.CDLL | None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name by which a libturbojpeg 3 is loaded: the known one, or one that is fetched."""
    if known is not None:
        return known._name
    machine = platform.system(), platform.machine()
    if machine not in LIBRARIES or platform.libc_ver()[0] != "glibc":
        pytest.skip(f"no libturbojpeg 3 on this system, and none to fetch for {machine}")
    member, expected = LIBRARIES[machine]
    if not FETCHED.exists() or digest(FETCHED) != expected:
        path = fetch(member, tmp_path_factory.mktemp("turbojpeg"))
        assert digest(path) == expected
        FETCHED.parent.mkdir(parents=True, exist_ok=True)
        part = FETCHED.with_name(f"{os.getpid()}.part")  # other runs may fetch it, too
        shutil.copyfile(path, part)
        part.replace(FETCHED)
    return str(FETCHED)


def forget() -> None:
    for function in (find_library, conforming, chosen_backends):
        function.cache_clear()


@pytest.fixture
def anew(
    known: ctypes.CDLL | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """Backends are looked for anew; what was known is known again after the test."""
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()
    if known is None:  # else the loader would find by its name what is loaded now
        with monkeypatch.context() as patch:
            patch.setattr(turbojpeg, "_names", tuple)
            assert find_library() is None


@pytest.fixture
def turbo(library: str, anew: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The library is there, in the test, as the user names it."""
    anew.setenv(PATH_VARIABLE, library)
    return anew


# --- the library ---------------------------------------------------------------------------


@pytest.mark.usefixtures("turbo")
def test_a_library_that_is_there_and_conforms_is_the_default() -> None:
    assert available_backends() == ("pillow", "simplejpeg", "turbojpeg")
    assert conforming("turbojpeg")
    assert chosen_backends() == ("turbojpeg", "pillow")


def test_a_variable_chooses_another_backend_though_it_is_there(turbo: pytest.MonkeyPatch) -> None:
    turbo.setenv(BACKEND_VARIABLE, "simplejpeg")
    assert chosen_backends() == ("simplejpeg", "pillow")


def test_a_library_that_gives_another_pixel_is_not_used(turbo: pytest.MonkeyPatch) -> None:
    upsampling = turbojpeg._FAST_UPSAMPLE
    turbo.setattr(turbojpeg, "_PARAMETERS", {**turbojpeg._PARAMETERS, upsampling: 1})
    assert not conforming("turbojpeg")
    assert chosen_backends() == ("simplejpeg", "pillow")
    chosen_backends.cache_clear()
    turbo.setenv(BACKEND_VARIABLE, "turbojpeg")
    with pytest.raises(UsageError, match=r"=turbojpeg: .*choose one of pillow, simplejpeg, or"):
        chosen_backends()


@pytest.mark.parametrize("name", ["no-such-library.so.0", "libc.so.6", __file__])
def test_what_the_variable_names_must_be_the_library(name: str, anew: pytest.MonkeyPatch) -> None:
    """Version 2 fails as the C library does: it has other functions."""
    anew.setenv(PATH_VARIABLE, name)
    with pytest.raises(UsageError, match=r"not a libturbojpeg of version 3 or newer .*name anoth"):
        find_library()


def test_without_a_library_nothing_is_decoded(anew: pytest.MonkeyPatch) -> None:
    anew.setattr(turbojpeg, "_names", lambda: ("no-such-library.so.0", "libc.so.6"))
    assert find_library() is None
    assert decode_turbojpeg(encoded(smooth_photo(20, 13)), (20, 13), scale=1) is None
    assert available_backends() == ("pillow", "simplejpeg")
    assert not conforming("turbojpeg")
    anew.setenv(BACKEND_VARIABLE, "turbojpeg")
    with pytest.raises(UsageError, match="finds no libturbojpeg of version 3; name one by"):
        chosen_backends()


# --- pixels --------------------------------------------------------------------------------


@pytest.mark.usefixtures("turbo")
def test_it_agrees_in_thousands_of_random_windows_of_random_files() -> None:
    outcomes = window_outcomes("turbojpeg", num_files=700, seed=11)
    assert outcomes["same"] > 5000
    assert set(outcomes) == {"same"}


@pytest.mark.usefixtures("turbo")
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_it_agrees_in_every_window_of_small_images(subsampling: int) -> None:
    """Regions of less than three columns are upsampled differently, which was found this way."""
    for width, height in ((18, 5), (5, 18), (33, 3), (9, 9)):
        image = smooth_photo(width, height, seed=width, falloff=0.5)
        data = encoded(image, quality=95, subsampling=subsampling)
        header = read_header(data, PLAIN)
        for scale in SCALES:
            if min(width, height) < scale:
                continue
            whole = decode_pillow(data, header, scale=scale)
            tall, wide, _ = whole.shape
            rows = itertools.combinations(range(tall + 1), 2)
            columns = list(itertools.combinations(range(wide + 1), 2))
            for (top, bottom), (left, right) in itertools.product(rows, columns):
                part = Window(left, top, right, bottom)
                found = decode_turbojpeg(data, (width, height), scale=scale, window=part)
                assert found is not None
                assert np.array_equal(found.cut(part).pixels, whole[top:bottom, left:right])


@pytest.mark.usefixtures("turbo")
@pytest.mark.parametrize("name", FACTORS)
def test_it_agrees_on_any_sampling_factors(name: str) -> None:
    if len(FACTORS[name]) == 2:
        pytest.skip("no decoder takes two components")
    for number, size in enumerate(((97, 131), (64, 96), (150, 70))):
        data = coded(*size, FACTORS[name], interval=7 * number, seed=number)
        clean = Header(*size, scalable=True, clean=True, turned=False)
        assert all_windows_agree(data, clean, backend="turbojpeg", num_windows=25, seed=12)


@pytest.mark.usefixtures("turbo")
def test_it_agrees_on_photographs_and_computes_little_more_than_the_window() -> None:
    for data in photos.real_photos():
        assert all_windows_agree(
            data, read_header(data, PLAIN), backend="turbojpeg", num_windows=40, seed=13
        )
        part = Window(99, 50, 301, 170)
        found = decode_turbojpeg(data, (640, 427), scale=1, window=part)
        assert found is not None
        tall, wide, _ = found.pixels.shape
        assert tall == 120
        assert wide <= 202 + 2 * 16


# --- damage --------------------------------------------------------------------------------


@pytest.mark.usefixtures("turbo")
def test_damage_gives_the_same_pixels_or_an_error_in_whole_and_in_part() -> None:
    outcomes = damage_outcomes("turbojpeg", num_files=700, seed=14)
    assert outcomes["refused"] > 50
    assert min(outcomes["same"], outcomes["part the same"]) > 300
    assert set(outcomes) <= {"refused", "same", "part the same"}


@pytest.mark.usefixtures("turbo")
def test_damage_within_the_window_is_left_to_the_reference() -> None:
    data = bytearray(encoded(smooth_photo(160, 160, falloff=1.0), quality=95))
    scan = data.index(b"\xff\xda") + 14
    data[scan + 300 : scan + 302] = b"\xff\xd9"
    for part in (None, Window(50, 50, 90, 64)):
        assert decode_turbojpeg(bytes(data), (160, 160), scale=1, window=part) is None
    whole = encoded(smooth_photo(160, 160))  # and the decoder is none the worse for it
    assert decode_turbojpeg(whole, (160, 160), scale=1) is not None


def test_two_thousand_damaged_files_do_not_crash_it(turbo: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    *backends, decoded = done.stdout.split()
    assert backends[-1] == "turbojpeg"
    assert int(decoded) > 1000


def test_it_writes_nothing_outside_its_memory(turbo: pytest.MonkeyPatch) -> None:
    """Whatever the file says of itself: the memory lies between bytes that must stay."""
    guard, last = 4096, np.zeros(0, np.uint8)

    def between_guards(slot: object, shape: tuple[int, ...]) -> Pixels:
        nonlocal last
        size = int(np.prod(shape))
        last = np.full(size + 2 * guard, 0xA5, np.uint8)
        return last[guard : guard + size].reshape(shape)

    turbo.setattr(turbojpeg, "scratch", between_guards)
    rng, decoded = np.random.default_rng(15), 0
    for number in range(1500):
        data, _ = random_jpeg(rng, most=60)
        data = damaged(data, rng) if number % 2 else data
        try:
            header = read_header(data, Decode(max_pixels=1 << 20))
        except DataError:
            continue
        size, scale = (header.width, header.height), int(rng.choice(SCALES))
        shape = -(-size[1] // scale), -(-size[0] // scale)
        part = None if number % 3 == 0 else random_window(rng, shape)
        found = decode_turbojpeg(data, size, scale=scale, window=part)
        decoded += found is not None
        assert (last[:guard] == 0xA5).all()
        assert (last[len(last) - guard :] == 0xA5).all()
    assert decoded > 700


@pytest.mark.usefixtures("turbo")
def test_tables_of_one_file_never_decode_another() -> None:
    """A decoder that is used twice did so: libjpeg keeps tables for files that have none."""
    data = encoded(smooth_photo(20, 13), optimize=True)
    header = read_header(data, PLAIN)
    for marker in (b"\xff\xc4", b"\xff\xdb"):
        without = data.replace(marker, b"\xff\xfe")  # its tables are comments
        assert decode_turbojpeg(data, (20, 13), scale=1) is not None
        found = decode_turbojpeg(without, (20, 13), scale=1)
        if found is not None:  # by the tables that libjpeg has for files without
            pixels = found.pixels.copy()
            assert np.array_equal(pixels, decode_pillow(without, header))


@pytest.mark.usefixtures("turbo")
def test_a_header_that_the_file_does_not_have_gives_nothing() -> None:
    data = encoded(smooth_photo(20, 13))
    for size in ((21, 13), (20, 14), (13, 20), (10**6, 1)):
        assert decode_turbojpeg(data, size, scale=1) is None
    for other in (b"", b"\xff\xd8", encoded(smooth_photo(20, 13), "PNG")):
        assert decode_turbojpeg(other, (20, 13), scale=1) is None
    cmyk = encoded(smooth_photo(20, 13).convert("CMYK"))
    assert decode_turbojpeg(cmyk, (20, 13), scale=1) is None


# --- threads and processes -----------------------------------------------------------------


@pytest.mark.usefixtures("turbo")
def test_threads_and_forked_processes_have_decoders_of_their_own() -> None:
    rng = np.random.default_rng(16)
    files = [random_jpeg(rng)[0] for _ in range(12)]
    headers = [read_header(data, PLAIN) for data in files]
    expected = [decode_pillow(data, header) for data, header in zip(files, headers, strict=True)]

    def right(first: int) -> bool:
        for step in range(100):
            n = (first + step) % len(files)
            found = decode_image(files[n], headers[n], backend="turbojpeg").pixels
            if not np.array_equal(found, expected[n]):
                return False
        return True

    assert right(0)
    outcomes: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: outcomes.append(right(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 4
    child = os.fork()
    if child == 0:
        os._exit(0 if right(5) else 1)
    assert right(7)
    assert os.waitpid(child, 0)[1] == 0


def test_every_decoder_is_given_back(turbo: pytest.MonkeyPatch) -> None:
    library, log = find_library(), Counter[str]()
    assert library is not None
    init, destroy = library.tj3Init, library.tj3Destroy
    turbo.setattr(library, "tj3Init", lambda kind: (log.update(["init"]), init(kind))[1])
    turbo.setattr(library, "tj3Destroy", lambda handle: (log.update(["end"]), destroy(handle))[1])
    data = encoded(smooth_photo(20, 13))
    for file in (data, data[:300], data[:30], b"", data):
        decode_turbojpeg(file, (20, 13), scale=1)
    assert log == {"init": 5, "end": 5}
