"""What the decoder does not need rejects nothing, and what it needs is never missing without a word."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.transforms.images.writers import png_chunk, write_png, write_tiff
from transforms.images import jpeg, png
from transforms.images.config import DecodeConfig
from transforms.images.decode import Reject
from transforms.images.decode import decode_image as decode
from vqgan.config_json import from_dict, to_dict
from vqgan.errors import UserError

CONFIG = DecodeConfig()
PARTIAL = DecodeConfig(on_truncated="decode")


def smooth_image(width: int = 40, height: int = 24) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x * 6, 255 - x * 3 - y * 4, y * 10], -1).clip(0, 255).astype(np.uint8)


def shown(data: bytes, config: DecodeConfig = CONFIG) -> np.ndarray:
    return np.asarray(decode(data, config).image)


# -- PNG -----------------------------------------------------------------------------------------------

LARGE = zlib.compress(bytes(3 << 20), 1)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"zTXt", b"Comment\0\0" + LARGE),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
        (b"zTXt", b"Raw profile type exif\0\0" + LARGE),
        (b"tEXt", b"Comment\0" + bytes([65]) * (2 << 20)),
        (b"iCCP", b"profile\0\0" + LARGE),
        (b"iCCP", b"profile\0\0no zlib stream"),
        (b"tIME", b"short"),
        (b"xxXx", b"private"),
    ],
)
def test_metadata_of_a_png_do_not_matter(name: bytes, body: bytes, place: str) -> None:
    samples = smooth_image()
    data = write_png(samples, 2, 8, **{place: png_chunk(name, body)})
    np.testing.assert_array_equal(shown(data), samples)


@pytest.mark.parametrize("name", [b"tEXt", b"tIME", b"gAMA", b"eXIf", b"iCCP", b"acTL", b"zTXt"])
def test_wrong_sum_of_what_pixels_do_not_need(name: bytes) -> None:
    samples = smooth_image()
    data = write_png(samples, 2, 8, before=png_chunk(name, b"Comment\0\0 or other", wrong_sum=True))
    np.testing.assert_array_equal(shown(data), samples)


def test_wrong_sum_of_what_pixels_need() -> None:
    transparent = png_chunk(b"tRNS", bytes(6), wrong_sum=True)
    for data in (
        write_png(smooth_image(), 2, 8, wrong_sum=True),
        write_png(smooth_image(), 2, 8, before=transparent),
    ):
        with pytest.raises(Reject, match=r"checksum in chunk (IDAT|tRNS)") as caught:
            decode(data, CONFIG)
        assert (caught.value.stage, caught.value.error) == ("decode", "DamagedImageError")


def test_any_flipped_bit_of_the_pixels_is_found() -> None:
    whole = write_png(smooth_image(), 2, 8)
    start = whole.index(b"IDAT") + 4
    for place in range(start, len(whole) - 16, 7):
        flipped = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        with pytest.raises(Reject):
            decode(flipped, CONFIG)


def test_critical_chunk_that_no_standard_knows_is_named() -> None:
    with pytest.raises(Reject, match="CgBI"):
        decode(write_png(smooth_image(), 2, 8, before=png_chunk(b"CgBI", bytes(4))), CONFIG)


def test_cut_off_png_is_a_reject_but_for_its_last_chunk() -> None:
    whole = write_png(smooth_image(), 2, 8)
    np.testing.assert_array_equal(shown(whole[:-12]), smooth_image())
    for length in range(8, len(whole) - 30, 11):
        with pytest.raises(Reject):
            decode(whole[:length], CONFIG)


def test_orientation_in_a_png_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    assert shown(write_png(smooth_image(), 2, 8, after=png_chunk(b"eXIf", body))).shape == (40, 24, 3)
    assert b"tEXt" not in png.needed_chunks(
        write_png(smooth_image(), 2, 8, after=png_chunk(b"tEXt", b"a\0b"))
    )


# -- JPEG ----------------------------------------------------------------------------------------------


def encoded(image: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", **options)
    return out.getvalue()


KINDS = [{}, {"progressive": True}, {"quality": 98, "subsampling": 0}, {"restart_marker_rows": 1}]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_is_whole_without_its_end_and_only_then(options: dict[str, object], grey: bool) -> None:
    noise = np.random.default_rng(3).integers(0, 60, (24, 40, 3), dtype=np.uint8)
    image = (smooth_image() // 2 + noise)[..., 0] if grey else smooth_image() // 2 + noise
    whole = encoded(image, **options)
    truth = shown(whole)
    np.testing.assert_array_equal(shown(whole[:-1]), truth)
    np.testing.assert_array_equal(shown(whole[:-2]), truth)
    for missing in [*range(3, 40), len(whole) // 3]:
        try:
            pixels = shown(whole[:-missing])
        except Reject:
            assert missing > 2
        else:
            np.testing.assert_array_equal(pixels, truth)  # some last bits say nothing
    with pytest.raises(Reject, match="truncated"):
        decode(whole[:-40], CONFIG)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_partial_jpegs_for_who_wants_them(options: dict[str, object]) -> None:
    whole = encoded(smooth_image(64, 64), **options)
    start = whole.index(b"\xff\xda")
    for length in (len(whole) - 30, (start + len(whole)) // 2):
        with pytest.raises(Reject):
            decode(whole[:length], CONFIG)
        assert shown(whole[:length], PARTIAL).shape == (64, 64, 3)
    np.testing.assert_array_equal(shown(whole[:-30], PARTIAL)[:8], shown(whole)[:8])
    for length in (start, start + 4, 100):  # nothing of the image is there
        with pytest.raises(Reject):
            decode(whole[:length], PARTIAL)


def test_zeros_in_place_of_data_are_no_image() -> None:
    whole = encoded(smooth_image(64, 64))
    for missing in (200, 100, 50, 10):
        for zeros in (90, 100, 110, 100_000):
            with pytest.raises(Reject, match="truncated"):
                decode(whole[:-missing] + bytes(zeros), CONFIG)
    np.testing.assert_array_equal(shown(whole + bytes(100)), shown(whole))


def test_later_scans_that_are_missing_are_missed() -> None:
    whole = encoded(smooth_image(), progressive=True)
    last = whole.rindex(b"\xff\xda")
    last = whole.rindex(b"\xff\xc4", 0, last) if b"\xff\xc4" in whole[last - 40 : last] else last
    with pytest.raises(Reject):
        decode(whole[:last], CONFIG)
    assert shown(whole[:last], PARTIAL).shape == (24, 40, 3)


def test_scans_are_counted_before_time_is_spent() -> None:
    whole = encoded(np.zeros((2000, 2000), np.uint8), progressive=True)
    last = whole.rindex(b"\xff\xda")
    scans = len(jpeg.read_structure(whole).scans)
    allowed = whole[:-2] + whole[last:-2] * (jpeg.MOST_SCANS - scans) + b"\xff\xd9"
    assert len(jpeg.read_structure(allowed).scans) == jpeg.MOST_SCANS
    jpeg.check_jpeg(allowed)
    with pytest.raises(Reject, match="more than 100 scans"):
        decode(whole[:-2] + whole[last:-2] * 5000 + b"\xff\xd9", CONFIG)


def test_repeated_scans_of_a_sequential_jpeg_are_counted() -> None:
    whole = encoded(smooth_image())
    start = whole.index(b"\xff\xda")
    one = whole[start + 14 : -2]
    header = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    with pytest.raises(Reject, match="scans"):
        decode(whole[:start] + (header + one) * 300 + b"\xff\xd9", CONFIG)


# -- orientation, JPEG 2000, configuration -------------------------------------------------------------

EXIF_TYPES = [(1, "B3x"), (3, "H2x"), (4, "I"), (6, "b3x"), (7, "B3x"), (8, "h2x"), (9, "i")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "form"), EXIF_TYPES)
def test_orientation_in_any_whole_number_type(kind: int, form: str, order: str) -> None:
    entry = struct.pack(f"{order}HHHI", 1, 0x0112, kind, 1) + struct.pack(order + form, 6) + bytes(4)
    exif = b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + entry
    upright = shown(encoded(smooth_image(), exif=exif))
    np.testing.assert_array_equal(upright, np.rot90(shown(encoded(smooth_image())), -1))


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff_in_any_type(kind: int, orientation: int) -> None:
    short = shown(write_tiff(smooth_image(), 2, 8, tags=[(274, 3, [orientation])]))
    other = shown(write_tiff(smooth_image(), 2, 8, tags=[(274, kind, [orientation])]))
    np.testing.assert_array_equal(other, short)
    assert short.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))


@pytest.mark.parametrize("lossy", [False, True])
def test_white_and_black_of_deep_jpeg_2000_are_told_apart(lossy: bool) -> None:
    out = io.BytesIO()
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:16] = 255
    Image.fromarray(halves).save(out, "JPEG2000", irreversible=lossy, no_jp2=True)
    deep = bytearray(out.getvalue())
    bits = 12 if lossy else 9  # a depth that this file's steps fill to both ends
    for component in range(3):
        deep[42 + 3 * component] = bits - 1
    top = (1 << bits) - 1
    values = (halves.astype(float) - 128) * (2 ** (bits - 8) if lossy else 1) + (top + 1) / 2
    np.testing.assert_allclose(shown(bytes(deep)), np.clip(values, 0, top) * 255 / top, atol=1.51)


def test_white_of_a_lossless_16_bit_jpeg_2000_is_white() -> None:
    data = (Path(__file__).parents[2] / "testdata/hostile/white-16bit.jp2").read_bytes()
    stripes = [(255, 255, 255), (117, 255, 0), (0, 0, 0), (255, 0, 255)]
    np.testing.assert_array_equal(shown(data)[:, ::8], np.broadcast_to(stripes, (32, 4, 3)))


def test_truncation_stands_in_the_configuration_only_where_it_is_chosen() -> None:
    assert "on_truncated" not in to_dict(CONFIG)
    assert to_dict(PARTIAL)["on_truncated"] == "decode"
    for config in (CONFIG, PARTIAL):
        assert from_dict(DecodeConfig, to_dict(config)) == config
    with pytest.raises(UserError, match="on_truncated"):
        DecodeConfig(on_truncated="perhaps")
