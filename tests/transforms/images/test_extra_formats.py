"""HEIF and JPEG XL: each layout against truth by construction, or refused by name; and without the extras."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transforms.images.decode import DecodeConfig, Reject
from transforms.images.decode import decode_image as decode
from transforms.images.extra_formats import open_jxl
from transforms.images.jxl import JxlHeader, read_jxl_header

JXL = Path(__file__).parents[2] / "testdata" / "jxl"
HEIGHT, WIDTH = 9, 12


def shown(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, DecodeConfig()).image).astype(float)


def refused(data: bytes, config: DecodeConfig | None = None) -> str:
    with pytest.raises(Reject) as caught:
        decode(data, config or DecodeConfig())
    assert "\n" not in str(caught.value)
    return f"{caught.value.error}: {caught.value}"


def samples(count: int, bits: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A ramp from the lowest value to the highest, the one that the files in testdata hold."""
    y, x, c = np.mgrid[:height, :width, :count]
    return (x * 3 + y * 5 + c * 7) * ((1 << bits) - 1) // 94


def over_white(values: np.ndarray, bits: int) -> np.ndarray:
    """Grey or RGB ``[H, W, 1 to 4]``, the last of an even number being alpha, as RGB from 0 to 255."""
    values = values * (255 / ((1 << bits) - 1))
    count = values.shape[-1]
    rgb = values[..., :3] if count > 2 else np.repeat(values[..., :1], 3, -1)
    return rgb if count % 2 else rgb * (values[..., -1:] / 255) + 255 - values[..., -1:]


# -- HEIF ----------------------------------------------------------------------------------------------


def heif(image: Image.Image, **options) -> bytes:
    """Without losses, in RGB."""
    pillow_heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    settings = {"quality": -1, "chroma": 444} | ({} if image.mode[0] == "L" else {"matrix_coefficients": 0})
    pillow_heif.from_pillow(image).save(out, **settings | options)
    return out.getvalue()


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("size", [(70, 66), (33, 47)])
def test_heif_of_8_bits(count, size):
    values = np.random.default_rng(count).integers(0, 256, (*size, count), dtype=np.uint8)
    data = heif(Image.fromarray(values.squeeze()))
    assert np.abs(shown(data) - over_white(values, 8)).max() <= (1 if count == 4 else 0)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_heif_of_more_bits(count, bits):
    pillow_heif = pytest.importorskip("pillow_heif")
    values = samples(count, bits, 66, 70).clip(0, (1 << bits) - 1)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[count]
    raw = np.ascontiguousarray(values.astype(np.uint16) << (16 - bits)).tobytes()
    out = io.BytesIO()
    settings = {"quality": -1, "chroma": 444} | ({} if count == 1 else {"matrix_coefficients": 0})
    written = pillow_heif.from_bytes(f"{mode};16", (70, 66), raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
        written.save(out, **settings)
    data = out.getvalue()
    assert pillow_heif.open_heif(io.BytesIO(data)).info["bit_depth"] == bits
    # But for grey the upper 8 bits are kept.
    assert np.abs(shown(data) - over_white(values, bits)).max() <= 1.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heif_is_turned_once(orientation):
    values = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation  # which the writer turns into the properties of the format
    data = heif(Image.fromarray(values), exif=exif.tobytes())
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.swapaxes(0, 1),
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).swapaxes(0, 1),
        8: np.rot90(values),
    }[orientation]
    decoded = decode(data, DecodeConfig())
    assert np.array_equal(np.asarray(decoded.image), turned)
    assert (decoded.height, decoded.width) == turned.shape[:2]


def test_heif_that_is_damaged_or_too_large():
    data = heif(Image.new("RGB", (64, 64)))
    for tenths in range(1, 10):
        assert refused(data[: len(data) * tenths // 10])
    assert "max_pixels is 4,000" in refused(data, DecodeConfig(max_pixels=4000))
    assert shown(data).shape == (64, 64, 3)


# -- JPEG XL -------------------------------------------------------------------------------------------

LAYOUTS = {
    "rgb-1": (3, 1),
    "rgb-10": (3, 10),
    "rgb-12": (3, 12),
    "rgb-16": (3, 16),
    "rgb-f16": (3, 8),
    "grey-10": (1, 10),
    "grey-16": (1, 16),
    "rgba-8": (4, 8),
    "rgba-16": (4, 16),
    "greyalpha-8": (2, 8),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_jxl_layouts(name):
    pytest.importorskip("pillow_jxl")
    count, bits = LAYOUTS[name]
    difference = shown((JXL / f"{name}.jxl").read_bytes()) - over_white(samples(count, bits), bits)
    assert np.abs(difference).max() <= 1.01


def jxl(image: Image.Image, **options) -> bytes:
    pytest.importorskip("pillow_jxl")
    out = io.BytesIO()
    image.save(out, "JXL", **{"lossless": True} | options)
    return out.getvalue()


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jxl_of_8_bits(mode, container):
    values = np.random.default_rng(5).integers(0, 256, (19, 35, len(mode)), dtype=np.uint8)
    values = values[..., :2] if mode == "LA" else values
    image = Image.fromarray(values.squeeze(), mode=None)
    assert image.mode == mode
    data = jxl(image, use_container=container)
    assert np.abs(shown(data) - over_white(values, 8)).max() <= 1
    assert read_jxl_header(data) == JxlHeader((35, 19), "")


@pytest.mark.parametrize("name", ["jpeg-boxes", "jpeg-6-boxes", "jpeg-6-bare"])
def test_jpeg_that_was_packed_into_jxl_is_turned_once(name):
    pytest.importorskip("pillow_jxl")
    ramp = samples(3, 8)
    truth = np.rot90(ramp, -1) if "6" in name else ramp
    difference = shown((JXL / f"{name}.jxl").read_bytes()) - truth
    assert np.abs(difference).max() <= 4  # the JPEG's own losses


def test_exif_does_not_turn_jxl():
    exif = Image.Exif()
    exif[274] = 6
    data = jxl(Image.new("RGB", (30, 20)), exif=exif.tobytes(), use_container=True)
    assert shown(data).shape == (20, 30, 3)


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (256, 256), (40, 30), (1200, 1000), (3000, 1), (9, 16), (1920, 1080)]
)
def test_sizes_in_jxl_headers(size):
    assert read_jxl_header(jxl(Image.new("L", size), effort=1)).size == size


def test_jxl_that_is_refused_before_it_is_decoded(monkeypatch):
    pillow_jxl = pytest.importorskip("pillow_jxl")
    animation, large = (JXL / "animation.jxl").read_bytes(), jxl(Image.new("L", (300, 200)))
    monkeypatch.setattr(pillow_jxl, "Decoder", None)
    assert refused(animation) == "UnsupportedLayoutError: JPEG XL with an animation is not decoded"
    assert "300x200 pixels; max_pixels is 59,999" in refused(large, DecodeConfig(max_pixels=59_999))


def test_jxl_that_is_damaged():
    whole = jxl(Image.fromarray(samples(3, 8).astype(np.uint8)))
    assert refused(whole[:3]) == "EOFError: the JPEG XL file ends in its header"
    for tenths in range(3, 10):
        assert "truncated or damaged" in refused(whole[: len(whole) * tenths // 10])


def bits(*fields: tuple[int, int]) -> bytes:
    """A bare codestream that begins with these numbers, each with its count of bits; the lowest bit first."""
    value = place = 0
    for number, count in fields:
        value |= number << place
        place += count
    return b"\xff\x0a" + value.to_bytes(place // 8 + 8, "little")


SMALL = ((1, 1), (0, 5), (1, 3), (0, 1), (0, 1))  # 8x8, with a header of its own, upright
DEPTH = ((0, 1), (0, 2), (1, 1))  # integers of 8 bits
ONE_EXTRA = (*SMALL, *DEPTH, (1, 2), (0, 1))  # which is not just alpha of 8 bits
PLAIN_EXTRA = ((0, 1), (0, 2), (0, 2), (0, 2))  # integers of 8 bits, of full size, without a name


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ([*SMALL, (0, 1), (3, 2), (31, 6)], "of 32 bits"),
        ([*ONE_EXTRA, (3, 2), (0, 6)], "with an extra channel of kind 18"),
        ([*ONE_EXTRA, (2, 2), (2, 4), *PLAIN_EXTRA], "with an extra channel of kind 4"),
        ([*ONE_EXTRA, (0, 2), *PLAIN_EXTRA, (1, 1)], "whose colours are multiplied by alpha"),
        ([*SMALL, *DEPTH, (3, 2), (99, 12)], "with 100 extra channels"),
        ([*SMALL[:4], (1, 1), (0, 3), (0, 1), (1, 1)], "with a preview"),
        ([*SMALL, *DEPTH, (1, 2), (1, 1)], ""),
    ],
)
def test_problems_in_jxl_headers(fields, problem):
    data = bits(*fields)
    assert read_jxl_header(data) == JxlHeader((8, 8), problem)
    if problem:
        assert refused(data) == f"UnsupportedLayoutError: JPEG XL {problem} is not decoded"


# -- without the extras --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "module", "line"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(50), "pillow_heif", "HEIF needs pillow_heif (extra 'heic')"),
        (b"\xff\x0a" + bytes(50), "pillow_jxl", "JPEG XL needs pillow_jxl (extra 'jxl')"),
    ],
)
def test_a_reject_names_the_extra(data, module, line, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert refused(data).startswith(
        f"UnsupportedFormat: {line}, not installed; install it with: pip install "
    )


def test_the_image_of_an_extra_is_decoded_once():
    image = open_jxl(jxl(Image.new("RGB", (5, 4), (1, 2, 3))))
    assert image.size == (5, 4)
    image.load()
    assert image.getpixel((0, 0)) == (1, 2, 3)
    image.load()
