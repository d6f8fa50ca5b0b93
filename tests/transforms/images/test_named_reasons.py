"""A reject names what is wrong: the format that is damaged or not decoded, or the layout of a JPEG."""

import base64
import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from transforms.images.decode import DecodeConfig, Reject
from transforms.images.decode import decode_image as decode

PICTURE = np.add.outer(np.arange(12) * 10, np.arange(16) * 9).astype(np.uint8)


def encoded(format: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(out, format, **options)
    return out.getvalue()


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, DecodeConfig()).image)


def reason(data: bytes) -> str:
    with pytest.raises(Reject) as caught:
        decode(data, DecodeConfig())
    assert caught.value.stage == "decode"
    assert "\n" not in str(caught.value)
    return f"{caught.value.error}: {caught.value}"


# -- JPEG ----------------------------------------------------------------------------------------------

# PICTURE in JPEG of quality 90: with arithmetic coding, the same in several scans; and without losses.
ARITHMETIC = [
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUV"
    "DA8XGBYUGBIUFRT/yQALCAAMABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDdfh6Vdt+Qkrn1FEu/DMa2ytLOTjJ43daa41xYxTMqGP/Z",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUV"
    "DA8XGBYUGBIUFRT/ygALCAAMABABAREA/8wABAAQ/9oACAEBAAAAAf8AutzIzwT/zAAEEAX/2gAIAQEAAQUCFiQlYks5sedS0RqA/8wA"
    "BBAF/9oACAEBAAY/Agp7AaD/zAAEEAX/2gAIAQEAAT8h1kwuSP/aAAgBAQAAABBg/8wABBAF/9oACAEBAAE/EB65oZu2/wBs/9k=",
]
LOSSLESS = (
    "/9j/xAAWAAEBAQAAAAAAAAAAAAAAAAADBAj/wwALCAAMABABABEA/9oACAEAAAYAAM/0000000000000001Kqqqqqqqqq1Kqqqqq"
    "qqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqqqqq1Kqqqqqq"
    "qqqg/9k="
)


@pytest.mark.parametrize("data", ARITHMETIC, ids=["sequential", "progressive"])
def test_arithmetic_coding(data):
    truth = shown(encoded("JPEG", "L", quality=90)).astype(int)
    np.testing.assert_array_equal(shown(base64.b64decode(data)), truth)


def test_jpeg_without_losses():
    np.testing.assert_array_equal(shown(base64.b64decode(LOSSLESS))[..., 0], PICTURE)


def changed(data: bytes, marker: int, place: int, value: int) -> bytes:
    """The same JPEG with another byte in a segment; ``place`` -1 is the marker itself."""
    found = data.index(bytes([0xFF, marker])) + 2 + place
    return data[:found] + bytes([value]) + data[found + 1 :]


def test_layouts_of_jpeg_that_are_refused_by_name():
    grey, colour, inks = (encoded("JPEG", mode) for mode in ("L", "RGB", "CMYK"))
    cases = {
        "samples of 12 bits": changed(grey, 0xC0, 2, 12),
        "several frames (hierarchical coding)": changed(grey, 0xC0, -1, 0xC5),
        "3 components without losses": changed(colour, 0xC0, -1, 0xC3),
        "the coding of JPEG-LS": changed(grey, 0xC0, -1, 0xF7),
        "2 components": changed(colour, 0xC0, 7, 2),
        "four components and no word of Adobe's on what 0 means": inks.replace(b"Adobe", b"Other"),
    }
    for what, data in cases.items():
        assert reason(data) == f"UnsupportedLayoutError: JPEG with {what} is not decoded"
    assert np.abs(shown(inks).astype(int)[..., 0] - PICTURE).max() <= 12


# -- other formats -------------------------------------------------------------------------------------

SIGNED = ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "JPEG2000", "ICO", "DDS", "QOI"]


@pytest.mark.parametrize("format", SIGNED)
def test_a_damaged_file_is_called_by_its_format(format):
    whole = encoded(format, **({"sizes": [(16, 12)], "bitmap_format": "bmp"} if format == "ICO" else {}))
    assert shown(whole).shape[2] == 3
    for length in (16, 20, 26, 30, len(whole) // 3):
        said = reason(whole[:length])
        assert "not an image in any known format" not in said
        if said.startswith("UnidentifiedImageError"):
            assert said.startswith(
                f"UnidentifiedImageError: {format} that is damaged, cut off or in a layout"
            )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0\0\0\x20ftypisom" + bytes(50), "video or sound"),
        (b"\0\0\0\x14ftypqt  " + bytes(50), "video or sound"),
        (b"\x1a\x45\xdf\xa3" + bytes(50), "video or sound"),
        (b"RIFF\0\0\0\0AVI LIST", "video or sound"),
        (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
        (b"\0\0\0\x18ftypcrx " + bytes(50), "camera raw"),
        (b"FUJIFILMCCD-RAW ", "camera raw"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"\n<HTML>", "a web page"),
        (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="x">', "SVG"),
        (b"\xef\xbb\xbf<svg>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (gzip.compress(b"x"), "a compressed file"),
        (b"II\xbc\x01" + bytes(20), "JPEG XR"),
        (b"#?RADIANCE\n", "OpenEXR and Radiance"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"P7\nWIDTH 2\n", "PAM"),
        (b"PF\n2 1\n-1.0\n", "PAM, and PFM of colours"),
        (b"gimp xcf v011\0", "XCF"),
        (b"\1\0\0\0" + bytes(36) + b" EMF", "drawing commands"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_formats_that_are_refused_by_name(data, what):
    assert reason(data).startswith(f"UnsupportedFormat: {what}")


@pytest.mark.parametrize("data", [b"hello", b"simple text", b"{}", bytes(300), b"\x7fELF" + bytes(80)])
def test_what_is_nothing_stays_nothing(data):
    assert reason(data) == "UnidentifiedImageError: not an image in any known format"


def test_camera_raw_in_tiff_is_not_its_thumbnail():
    tags = [
        (254, 1),
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert "a small copy of another" in reason(data)
