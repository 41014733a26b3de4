"""Claims about decoding: one set of pixels per file, whichever backend, or one clear error."""

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps

from kdcache.errors import DataError, UsageError
from kdcache.pixels.decode import SCALES, Header, decode_image, decode_pillow, read_header
from kdcache.pixels.jpeg import decode_simplejpeg
from kdcache.recipe.parts import MAX_PIXELS, Decode
from tests import photos
from tests.jpegs import damaged
from tests.photos import Pixels, encoded, pattern, smooth_photo

PLAIN = Decode()
APPLY = Decode(exif="apply")


def pixels_of(data: bytes, header: Header, *, scale: int = 1) -> Pixels:
    """Return an image's pixels in memory of their own."""
    found = decode_image(data, header, scale=scale)
    assert found[1:] == (0, 0)
    return found.pixels.copy()


def decoded(data: bytes, decode: Decode = PLAIN) -> Pixels:
    return pixels_of(data, read_header(data, decode))


def assert_refused(data: bytes, words: str, *, decode: Decode = PLAIN) -> None:
    with pytest.raises(DataError, match=words):
        decoded(data, decode)


def assert_backends_agree(data: bytes) -> list[int]:
    """Return the scales at which simplejpeg decoded, having compared each with Pillow."""
    header = read_header(data, PLAIN)
    assert header.clean
    used = []
    for scale in SCALES:
        if min(header.width, header.height) >= scale:
            fast = decode_simplejpeg(data, (header.width, header.height), scale=scale)
            if fast is not None:
                pixels = fast.pixels.copy()
                assert np.array_equal(pixels, decode_pillow(data, header, scale=scale))
                used.append(scale)
    return used


# --- the two backends ----------------------------------------------------------------------

pillow_options = st.fixed_dictionaries(
    {"quality": st.integers(1, 100), "subsampling": st.sampled_from((0, 1, 2))},
    optional={
        "progressive": st.just(True),
        "optimize": st.just(True),
        "restart_marker_rows": st.integers(1, 3),
        "restart_marker_blocks": st.integers(1, 5),
    },
)


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
    grey=st.booleans(),
    options=pillow_options,
)
@example(size=(3, 3), seed=0, grey=False, options={"quality": 90, "subsampling": 0})
@example(size=(5, 5), seed=0, grey=False, options={"quality": 90, "subsampling": 2})
def test_backends_agree_on_small_images_of_every_size(
    size: tuple[int, int], seed: int, grey: bool, options: dict[str, Any]
) -> None:
    image = smooth_photo(*size, seed=seed, falloff=1.0)
    used = assert_backends_agree(encoded(image.convert("L" if grey else "RGB"), **options))
    assert 1 in used
    if max(size) >= 8:
        assert used == [scale for scale in SCALES if min(size) >= scale]


def test_backends_agree_on_every_size_up_to_twelve() -> None:
    for width in range(1, 13):
        for height in range(1, 13):
            image = smooth_photo(width, height, seed=width, falloff=0.5)
            assert_backends_agree(encoded(image, quality=95, subsampling=height % 3))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("size", [(97, 61), (96, 64)])
def test_backends_agree_on_every_subsampling(subsampling: str, size: tuple[int, int]) -> None:
    pixels = np.array(smooth_photo(*size, seed=3, falloff=1.0))
    grey = subsampling == "Gray"
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels[..., :1]) if grey else pixels,
        quality=92,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling=subsampling,
    )
    assert assert_backends_agree(data) == [8, 4, 2, 1]


def test_backends_agree_on_a_jpeg_stored_as_rgb() -> None:
    data = encoded(smooth_photo(60, 50), keep_rgb=True)
    assert simplejpeg.decode_jpeg_header(data)[2] == "RGB"
    assert assert_backends_agree(data) == [8, 4, 2, 1]


def test_backends_agree_on_real_photographs() -> None:
    for data in photos.real_photos():
        assert assert_backends_agree(data) == [8, 4, 2, 1]


def test_bytes_after_the_end_change_nothing() -> None:
    data = encoded(smooth_photo(60, 50))
    for more in (b"\0", bytes(100), data):
        assert read_header(data + more, PLAIN).clean
        assert np.array_equal(decoded(data + more), decoded(data))


def test_backends_agree_on_files_with_profiles_and_comments() -> None:
    image = smooth_photo(60, 50)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = encoded(image, quality=90)
    for data in (
        encoded(image, quality=90, icc_profile=profile),
        encoded(image, quality=90, exif=photos.exif(6)),
        encoded(image, quality=90, comment=b"hello"),
    ):
        assert assert_backends_agree(data) == [8, 4, 2, 1]
        assert np.array_equal(decoded(data), decoded(plain))


def damageable() -> dict[str, bytes]:
    image = smooth_photo(20, 13, falloff=1.0)
    return {
        "jpeg": encoded(image, quality=90),
        "progressive": encoded(image, quality=90, progressive=True),
        "restart": encoded(image, quality=90, restart_marker_rows=1),
        "grey": encoded(image.convert("L")),
        "cmyk": encoded(image.convert("CMYK")),
        "turned": encoded(image, exif=photos.exif(6)),
        "png": encoded(image, "PNG", exif=photos.exif(6)),
        "palette": encoded(image.quantize(16), "PNG"),
        "webp": encoded(image, "WEBP", exif=photos.exif(6)),
        "lossless": encoded(image.convert("RGBA"), "WEBP", lossless=True),
    }


@pytest.mark.parametrize("kind", damageable())
def test_a_damaged_file_gives_a_data_error_or_the_same_pixels_by_either_backend(kind: str) -> None:
    rng, data = np.random.default_rng(0), damageable()[kind]
    outcomes = {"refused": 0, "same": 0}
    for _ in range(200):
        broken = damaged(data, rng)
        for decode in (Decode(max_pixels=10**6), Decode(max_pixels=10**6, exif="apply")):
            for scale in (1, 2, 4):
                try:
                    header = read_header(broken, decode)
                    if scale > 1 and not (header.scalable and min(header.width, header.height) > 7):
                        continue
                    pixels = pixels_of(broken, header, scale=scale)
                except DataError:
                    outcomes["refused"] += 1
                    continue
                assert np.array_equal(pixels, decode_pillow(broken, header, scale=scale))
                outcomes["same"] += 1
    assert min(outcomes.values()) > 0


PNG_KINDS = (
    "cHRM gAMA tRNS pHYs iCCP sRGB eXIf tEXt zTXt iTXt PLTE acTL fcTL fdAT IDAT IHDR tIME qqqq"
)


@pytest.mark.parametrize("kind", PNG_KINDS.split())
def test_a_senseless_png_chunk_gives_pixels_or_a_data_error(kind: str) -> None:
    """Digests are right, so that Pillow believes the chunk; IndexError was one that escaped."""
    pixels = pattern(20, 13)
    outcomes: set[object] = set()
    for length in (0, 1, 2, 3, 4, 5, 7, 9, 13, 20, 26, 33):
        chunk = (kind.encode(), bytes(range(length)))
        before = photos.png(20, 13, chunk, photos.idat(pixels))
        after = photos.png(20, 13, photos.idat(pixels), chunk)
        for data in (before, after):
            for decode in (PLAIN, APPLY):
                try:
                    outcomes.add(decoded(data, decode).shape)
                except DataError:
                    outcomes.add("refused")
    assert outcomes <= {"refused", (13, 20, 3), (20, 13, 3)}


def test_exif_of_wrong_types_turns_an_image_or_not_but_never_fails() -> None:
    """Pillow's own way to turn an image writes its EXIF anew, which these made fail."""
    tags = photos.exif(6)
    tags[0x0112], tags[0x010E] = 6, "hello"
    data = encoded(smooth_photo(20, 13), exif=tags)
    at = data.index(b"Exif\0\0")
    length = struct.unpack(">H", data[at - 2 : at])[0]
    rng, outcomes = np.random.default_rng(0), set()
    for _ in range(1500):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            broken[int(rng.integers(at + 6, at + length - 2))] = rng.integers(256)
        outcomes.add(decoded(bytes(broken), APPLY).shape)
    assert outcomes == {(13, 20, 3), (20, 13, 3)}


# --- the images of the world ---------------------------------------------------------------


def test_16_bit_grey_keeps_its_high_byte() -> None:
    high, low = pattern(31, 17, kind=2)[..., 0], pattern(31, 17)[..., 0]
    data = encoded(Image.fromarray(high.astype(np.uint16) << 8 | low), "PNG")
    assert np.array_equal(decoded(data), np.repeat(high[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    pixels = pattern(31, 17, kind=2)
    wide = np.stack((pixels, pattern(31, 17)), -1).reshape(17, 31 * 6)  # high, low
    data = photos.png(31, 17, photos.idat(wide), bits=16)
    assert np.array_equal(decoded(data), pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_the_colours_below_it_stay(kind: str) -> None:
    pixels = pattern(31, 17)
    alpha = pattern(31, 17, kind=2)[..., :1]
    image = Image.fromarray(np.concatenate((pixels, alpha), axis=2))
    data = encoded(image, kind, **({} if kind == "PNG" else {"lossless": True, "exact": True}))
    assert np.array_equal(decoded(data), pixels)


def test_grey_with_alpha_is_grey() -> None:
    grey = pattern(31, 17)[..., 0]
    image = Image.fromarray(np.stack((grey, pattern(31, 17, kind=2)[..., 0]), -1))
    assert image.mode == "LA"
    assert np.array_equal(decoded(encoded(image, "PNG")), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("colours", [2, 4, 16, 200])
@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_a_palette_is_looked_up_and_its_transparency_dropped(
    colours: int, transparency: int | bytes | None
) -> None:
    image = smooth_photo(31, 17).quantize(colours)
    options = {} if transparency is None else {"transparency": transparency}
    table = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    assert np.array_equal(decoded(encoded(image, "PNG", **options)), table[np.array(image)])


def test_one_bit_is_black_and_white() -> None:
    bits = pattern(31, 17, kind=2)[..., 0] > 127
    data = encoded(Image.fromarray(bits), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "1"
    assert np.array_equal(decoded(data), np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


def test_grey_files_have_three_equal_channels() -> None:
    for kind in ("JPEG", "PNG"):
        pixels = decoded(encoded(smooth_photo(31, 17).convert("L"), kind))
        assert (pixels == pixels[..., :1]).all()
        assert len(np.unique(pixels)) > 20


@pytest.mark.parametrize("scale", SCALES)
def test_cmyk_is_converted_as_pillow_does_at_every_scale(scale: int) -> None:
    data = encoded(smooth_photo(50, 35).convert("CMYK"))
    header = read_header(data, PLAIN)
    assert header == Header(50, 35, scalable=True, clean=False, turned=False)
    image = Image.open(io.BytesIO(data))
    image.draft(None, (50 // scale, 35 // scale))
    assert np.array_equal(pixels_of(data, header, scale=scale), np.array(image.convert("RGB")))


def test_lossless_files_give_their_pixels_back() -> None:
    pixels = pattern(31, 17, kind=2)
    image = Image.fromarray(pixels)
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True)):
        header = read_header(data, PLAIN)
        assert header == Header(31, 17, scalable=False, clean=False, turned=False)
        assert np.array_equal(pixels_of(data, header), pixels)


def test_colour_profiles_are_ignored() -> None:
    image = smooth_photo(31, 17)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("JPEG", "PNG", "WEBP"):
        tagged = encoded(image, kind, icc_profile=profile)
        assert profile in tagged or kind == "PNG"
        assert np.array_equal(decoded(tagged), decoded(encoded(image, kind)))


# --- EXIF ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_unless_the_recipe_applies_it(kind: str, orientation: int) -> None:
    image = smooth_photo(31, 17)
    data = encoded(image, kind, exif=photos.exif(orientation))
    plain = encoded(image, kind)
    assert np.array_equal(decoded(data), decoded(plain))
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.array(ImageOps.exif_transpose(opened))
    header = read_header(data, APPLY)
    assert (header.height, header.width) == expected.shape[:2]
    assert (header.width, header.height) == ((31, 17) if orientation < 5 else (17, 31))
    assert header.turned == (orientation != 1)
    assert np.array_equal(pixels_of(data, header), expected)
    assert np.array_equal(expected, decoded(plain)) == (orientation == 1)


@pytest.mark.parametrize("decode", [PLAIN, APPLY], ids=["ignore", "apply"])
def test_upright_jpegs_need_no_slow_decoder_whatever_becomes_of_exif(decode: Decode) -> None:
    image = smooth_photo(31, 17)
    for data in (encoded(image), encoded(image, exif=photos.exif(1))):
        assert read_header(data, decode) == Header(31, 17, scalable=True, clean=True, turned=False)
        assert np.array_equal(decoded(data, decode), decoded(encoded(image)))


def test_xmp_turns_nothing_whatever_the_version_of_pillow() -> None:
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"></x>'
    content = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    plain = encoded(smooth_photo(31, 17))
    jpeg = plain[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(content) + 2) + content + plain[2:]
    chunk = b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    pixels = photos.idat(pattern(31, 17))
    for data in (
        jpeg,
        photos.png(31, 17, chunk, pixels),
        photos.png(31, 17, pixels, chunk),
        encoded(smooth_photo(31, 17), "WEBP", xmp=xmp),
    ):
        assert xmp in data
        assert not read_header(data, APPLY).turned
        assert np.array_equal(decoded(data, APPLY), decoded(data))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    data = encoded(smooth_photo(31, 17), exif=photos.exif(orientation))
    assert not read_header(data, APPLY).turned
    assert np.array_equal(decoded(data, APPLY), decoded(data))


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"quality": 90}, "JPEG"),
        ({"quality": 90, "progressive": True}, "JPEG"),
        ({"quality": 90, "restart_marker_rows": 1}, "JPEG"),
        ({}, "PNG"),
        ({}, "WEBP"),
    ],
    ids=str,
)
@pytest.mark.parametrize("decode", [PLAIN, APPLY], ids=["ignore", "apply"])
def test_a_cut_file_is_refused_unless_only_its_end_marks_are_missing(
    options: dict[str, Any], kind: str, decode: Decode
) -> None:
    data = encoded(smooth_photo(40, 30, falloff=1.0), kind, **options)
    # JPEG ends with a mark of 2 bytes, PNG with an empty chunk of 12 and the digests of the last.
    marks = {"JPEG": 2, "PNG": 24, "WEBP": 0}[kind]
    for cut in range(len(data) - marks):
        assert_refused(data[:cut], "empty|readable|decoded|EXIF", decode=decode)
    for cut in range(len(data) - marks, len(data)):
        try:
            pixels = decoded(data[:cut], decode)
        except DataError:
            continue
        assert np.array_equal(pixels, decoded(data, decode))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the image file is empty"),
        (b"not an image\n", "not a readable JPEG, PNG or WebP image: cannot identify image file$"),
        (bytes(1000), "cannot identify image file$"),
        (b"\xff\xd8\xff", "not a readable"),
        (photos.PNG_MAGIC, "not a readable"),
        (photos.png(20, 13), "cannot be decoded: cannot load this image"),
    ],
    ids=["empty", "text", "zeros", "jpeg magic", "png magic", "png without pixels"],
)
def test_what_is_no_image_is_refused_and_named(data: bytes, words: str) -> None:
    assert_refused(data, words)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    assert_refused(encoded(smooth_photo(8, 8), kind), "not a readable JPEG, PNG or WebP image")


@pytest.mark.parametrize("decode", [PLAIN, APPLY], ids=["ignore", "apply"])
@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 9_000), (MAX_PIXELS + 1, 1)])
def test_a_decompression_bomb_is_refused_by_its_header(
    size: tuple[int, int], decode: Decode
) -> None:
    """The file has no pixels: had it been decoded, the error would say that."""
    words = "exceeds limit" if size[0] == 60_000 else f"{size[0]} x {size[1]} pixels.*{MAX_PIXELS}"
    with pytest.raises(DataError, match=words):
        read_header(photos.png(*size), decode)


def test_a_jpeg_that_claims_to_be_huge_is_refused_by_its_header() -> None:
    for exif, decode, words in (
        (None, PLAIN, "65500 x 65500 pixels"),
        (None, APPLY, "65500 x 65500 pixels"),
        (photos.exif(1), APPLY, "exceeds limit"),
    ):
        data = bytearray(encoded(smooth_photo(20, 13), exif=exif or b""))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
        with pytest.raises(DataError, match=words):
            read_header(bytes(data), decode)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_max_pixels_is_the_most_that_is_allowed(kind: str, exif: Any) -> None:
    data = encoded(smooth_photo(20, 13), kind)
    assert decoded(data, Decode(exif=exif, max_pixels=260)).shape == (13, 20, 3)
    with pytest.raises(DataError, match=r"20 x 13 pixels.*decode\.max_pixels is 259; shrink"):
        read_header(data, Decode(exif=exif, max_pixels=259))


def test_invented_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_photo(40, 30)
    whole, half = encoded(image), encoded(image)[:600]
    header = read_header(whole, PLAIN)
    expected = decoded(whole)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refusals: list[Callable[[], object]] = [
        lambda: read_header(whole, PLAIN),
        lambda: read_header(encoded(image, "PNG"), PLAIN),
        lambda: read_header(encoded(image, exif=photos.exif(1)), APPLY),
        lambda: decode_image(half, header),
        lambda: decode_image(whole, replace(header, clean=False)),
    ]
    for refused in refusals:
        with pytest.raises(UsageError, match=r"LOAD_TRUNCATED_IMAGES is set.*leave it False"):
            refused()
    # Read before, and clean: simplejpeg invents nothing.
    assert np.array_equal(decode_image(whole, header).pixels, expected)


def test_pixels_unlike_the_header_are_refused() -> None:
    data = encoded(smooth_photo(20, 13), "PNG")
    header = Header(20, 14, scalable=False, clean=False, turned=False)
    with pytest.raises(DataError, match="unlike its header"):
        decode_image(data, header)
