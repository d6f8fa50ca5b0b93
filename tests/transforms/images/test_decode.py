"""Any file becomes upright RGB pixels or a reject, and nothing else."""

import gc
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, IptcImagePlugin, PngImagePlugin

from transforms.images import color
from transforms.images import decode as decoding
from transforms.images.crops import Geometry
from transforms.images.decode import DecodeConfig, Reject, open_image, prepare
from transforms.images.decode import decode_image as decode
from vqgan.config_json import from_dict, to_dict
from vqgan.errors import UserError

TESTDATA = Path(__file__).parents[2] / "testdata"
PHOTOS = sorted((TESTDATA / "photos").glob("*.jpg"))
HOSTILE = TESTDATA / "hostile"
CONFIG = DecodeConfig()
SMALL = Geometry(image_size=16, resize="stretch")


def table() -> list[list[str]]:
    return [line.split("\t") for line in (HOSTILE / "outcomes.tsv").read_text().splitlines()[1:]]


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / (np.mean((a.astype(float) - b) ** 2) + 1e-9)))


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def outcome(data: bytes, config: DecodeConfig) -> str:
    """``row``, or a reject's stage and what it says; anything else that is raised fails the test."""
    try:
        prepared = prepare(data, "", config, SMALL)
    except Reject as reject:
        return f"{reject.stage}: {reject.error}: {reject.message}"
    return f"row of {prepared.pixels.reshape(1, 16, 16, 3).dtype}"


def peak_growth_mb(code: str) -> float:
    """Megabytes that the peak memory of a fresh process grows by while it runs ``code``."""
    script = f"""
import io, pathlib, resource
from transforms.images.decode import *
from transforms.images.crops import Geometry
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(pathlib.Path({str(HOSTILE / "tRNS_null_1x1.png")!r}).read_bytes(), "", DecodeConfig(), Geometry())
before = peak()
{code}
print((peak() - before) / 1024)
"""
    # Linux counts in kilobytes.
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    return float(result.stdout)


# -- the collection of odd files -----------------------------------------------------------------------


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0])
def test_hostile_file(row: list[str]) -> None:
    data = (HOSTILE / row[0]).read_bytes()
    if row[1] == "reject":
        with pytest.raises(Reject) as caught:
            prepare(data, row[0], CONFIG, SMALL)
        assert [caught.value.stage, caught.value.error] == row[2:4]
        return
    prepared = prepare(data, row[0], CONFIG, SMALL)
    assert [prepared.width, prepared.height] == [int(value) for value in row[2:4]]
    assert prepared.pixels.mean((0, 1, 2)) == pytest.approx([int(value) for value in row[4:]], abs=2)


def test_every_hostile_file_is_in_the_table() -> None:
    names = {path.name for path in HOSTILE.iterdir()} - {"README.md", "outcomes.tsv"}
    assert names == {row[0] for row in table()}


def test_folder_of_hostile_files() -> None:
    folder = os.environ.get("VQGAN_HOSTILE_IMAGES")
    if not folder:
        pytest.skip("set VQGAN_HOSTILE_IMAGES to a folder of odd images to decode them all")
    for path in sorted(Path(folder).iterdir()):
        assert outcome(path.read_bytes(), CONFIG).startswith(("row", "read:", "decode:", "filter:"))


@settings(max_examples=150)
@given(st.sampled_from(table()), st.randoms(use_true_random=False), st.integers(1, 8))
def test_damaged_file_is_a_row_or_a_reject(row: list[str], rng: random.Random, flips: int) -> None:
    data = bytearray((HOSTILE / row[0]).read_bytes())
    for _ in range(flips):
        data[rng.randrange(min(len(data), 512))] = rng.randrange(256)
    assert outcome(bytes(data), DecodeConfig(max_pixels=1 << 20)).startswith(("row", "decode:"))


# -- limits and filters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limits", "stage", "error"),
    [
        ((40, 30), {"max_pixels": 1199}, "decode", "DecompressionBombError"),
        ((40, 30), {"max_bytes": 60}, "read", "FileTooLarge"),
        ((40, 30), {"min_side": 31}, "filter", "TooSmall"),
        ((40, 30), {"max_area": 1199}, "filter", "TooLarge"),
        ((40, 10), {"max_aspect": 3.9}, "filter", "TooElongated"),
        ((10, 40), {"max_aspect": 3.9}, "filter", "TooElongated"),
    ],
)
def test_limit(size: tuple[int, int], limits: dict[str, int], stage: str, error: str) -> None:
    data = encoded(Image.fromarray(noise(*size)))
    with pytest.raises(Reject) as caught:
        open_image(data, DecodeConfig(**limits))
    assert (caught.value.stage, caught.value.error) == (stage, error)


def test_limits_are_inclusive() -> None:
    data = encoded(Image.fromarray(noise(40, 10)))
    limits = DecodeConfig(max_pixels=400, max_bytes=len(data), min_side=10, max_area=400, max_aspect=4.0)
    assert decode(data, limits).image.size == (40, 10)


def test_empty_file() -> None:
    with pytest.raises(Reject, match="empty") as caught:
        prepare(b"", "", CONFIG, SMALL)
    assert (caught.value.stage, caught.value.error) == ("read", "EmptyFile")


@pytest.mark.parametrize(
    "wrong", [{"max_pixels": 0}, {"max_bytes": 0}, {"min_side": 0}, {"max_area": 0}, {"max_aspect": 0.5}]
)
def test_configuration_error_is_one_line(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))) as caught:
        DecodeConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_configuration_survives_json() -> None:
    config = DecodeConfig(max_area=5, max_aspect=2.0)
    assert from_dict(DecodeConfig, to_dict(config)) == config


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def tiled_tiff(side: int, tile: int, data: bytes) -> bytes:
    """A deflated grey TIFF of one tile, which may be far larger than the image."""
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + data


def bombs() -> dict[str, bytes]:
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, 999, 22)
    return {
        "png": png_header(60000, 60000),
        "icon": icon + png_header(60000, 60000),
        "icns": b"icns"
        + struct.pack(">I", 200)
        + b"ic10"
        + struct.pack(">I", 192)
        + png_header(60000, 60000),
        "column": png_header(1, 50_000_000),
        "ppm": b"P6 60000 60000 255\n",
        "tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65000, 65000, 24, 0),
        "tile": tiled_tiff(16, 40000, zlib.compress(bytes(300_000_000), 1)),
    }


@pytest.mark.parametrize("name", ["png", "icon", "icns", "column", "ppm", "tga"])
def test_decompression_bomb(name: str) -> None:
    with pytest.raises(Reject) as caught:
        prepare(bombs()[name], "", CONFIG, SMALL)
    assert (caught.value.stage, caught.value.error) == ("decode", "DecompressionBombError")


def test_decompression_bombs_take_no_memory(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    code = f"""
for path in pathlib.Path({str(tmp_path)!r}).iterdir():
    try:
        prepare(path.read_bytes(), "", DecodeConfig(), Geometry())
    except Reject as reject:
        assert reject.error == "DecompressionBombError", (path, reject.error, reject)
    else:
        raise AssertionError(path)
"""
    assert peak_growth_mb(code) < 30


def test_tiles_within_the_limit_are_read() -> None:
    data = tiled_tiff(16, 32, zlib.compress(bytes([200]) * 1024))
    assert prepare(data, "", CONFIG, SMALL).pixels.min() == 200


def test_large_transparent_image_takes_twice_its_own_memory() -> None:
    # 24 megapixels: 96 MB as RGBA and as much as RGB.
    code = """
out = io.BytesIO(); Image.new("LA", (6000, 4000)).save(out, "PNG"); before = peak()
prepare(out.getvalue(), "", DecodeConfig(), Geometry(image_size=64))
"""
    assert peak_growth_mb(code) < 260


def test_raised_limit_reaches_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(noise(40, 30)))
    assert decode(data, DecodeConfig(max_pixels=5000)).image.size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 5000
    decode(data, DecodeConfig(max_pixels=2000))
    assert Image.MAX_IMAGE_PIXELS == 5000  # never lowered under another thread


# -- nothing is executed, nothing leaks ----------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) show\n"


def iptc(payload: bytes) -> bytes:
    """An IPTC record whose payload Pillow's plugin would open as whatever it is."""

    def field(record: int, dataset: int, body: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, dataset, len(body)) + body

    head = field(3, 60, b"\1\0") + field(3, 65, b"\1") + field(3, 20, b"\0\x08") + field(3, 30, b"\0\x08")
    return head + field(3, 120, b"\1") + field(8, 10, payload)


@pytest.mark.parametrize(
    "data",
    [
        EPS,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS,
        iptc(EPS),
        struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 32, len(EPS), 22) + EPS,
        b"\xff\xd8" + EPS,
        (HOSTILE / "zero_bb.eps").read_bytes(),
    ],
    ids=["eps", "dos-eps", "iptc", "icon", "jpeg", "file"],
)
def test_postscript_is_never_run(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    fake = tmp_path / "gs"
    fake.write_text(f"#!/bin/sh\ntouch {ran}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Reject):
        prepare(data, "", CONFIG, SMALL)
    assert not ran.exists()


def test_refused_format_is_named() -> None:
    with pytest.raises(Reject, match="never executed") as caught:
        prepare(EPS, "", CONFIG, SMALL)
    assert caught.value.error == "UnsupportedFormat"


def test_plugins_that_are_not_image_decoders_are_left_out() -> None:
    left_out = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FITS", "SPIDER", "IMT", "MCIDAS"}
    assert not (left_out | {IptcImagePlugin.IptcImageFile.format}) & set(decoding._FORMATS)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError, ValueError, SyntaxError, NotImplementedError, IndexError, struct.error, OverflowError),
        *(MemoryError, zlib.error, RuntimeError, RecursionError, EOFError, Image.DecompressionBombError),
    ],
)
def test_any_error_is_a_reject(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: object) -> None:
        raise error("two\nlines of <_io.BytesIO object at 0x7f00dead>")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", fail)
    with pytest.raises(Reject) as caught:
        prepare(encoded(Image.fromarray(noise(4, 4))), "", CONFIG, SMALL)
    assert (caught.value.stage, caught.value.error) == ("decode", error.__name__)
    assert "\n" not in caught.value.message
    assert "0x" not in caught.value.message


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", fail)
    with pytest.raises(error):
        prepare(encoded(Image.fromarray(noise(4, 4))), "", CONFIG, SMALL)


def test_reject_survives_pickling() -> None:
    reject = pickle.loads(pickle.dumps(Reject("decode", "OSError", "no")))
    assert (reject.stage, reject.error, reject.message, str(reject)) == ("decode", "OSError", "no", "no")


@pytest.mark.parametrize("action", ["always", "error"])
def test_warnings_of_pillow_do_not_leak(action: str) -> None:
    palette = Image.fromarray(noise(8, 8)).convert("P")
    data = encoded(palette, transparency=bytes(range(256)))
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22) + data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        assert decode(icon, CONFIG)[1:3] == (8, 8)  # Pillow: "Image was not the expected size"
        decode(data, CONFIG)
        gc.collect()
    assert not caught


def test_images_are_freed_without_the_garbage_collector() -> None:
    code = f"""
import gc; gc.disable()
files = [pathlib.Path(path).read_bytes() for path in {[str(path) for path in PHOTOS[:2]]!r}]
out = io.BytesIO(); Image.new("P", (1000, 1000)).save(out, "GIF"); files.append(out.getvalue())
for _ in range(30):
    for data in files: prepare(data, "", DecodeConfig(), Geometry())
"""
    assert peak_growth_mb(code) < 40


def test_threads_give_the_same_pixels() -> None:
    geometry = Geometry(image_size=64, views="random-crops")
    files = [
        *PHOTOS,
        HOSTILE / "lab-green.tif",
        HOSTILE / "200x32_la_bl_rle.tga",
        HOSTILE / "icc_profile.avif",
    ]
    work = [(path.read_bytes(), path.name, CONFIG, geometry) for path in files] * 3
    alone = [prepare(*item) for item in work]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: prepare(*item), work))
    for a, b in zip(alone, together, strict=True):
        assert a[1:] == b[1:]
        np.testing.assert_array_equal(a.pixels, b.pixels)


# -- orientation, frames, drafts -----------------------------------------------------------------------

# How an upright array must be stored, so that each EXIF orientation turns it upright again.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, -1),
}


def oriented(upright: np.ndarray, orientation: int, format: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    return encoded(stored, format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})]
)
def test_orientation(orientation: int, format: str, options: dict[str, object]) -> None:
    upright = noise(23, 11)
    decoded = decode(oriented(upright, orientation, format, **options), CONFIG)
    assert decoded[1:] == (23, 11, (0, 0, 23, 11))
    np.testing.assert_array_equal(np.asarray(decoded.image), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_reduced_jpeg(orientation: int) -> None:
    # Odd sides: the last pixel of the reduced image lies partly outside, on another side once turned.
    x, y = np.meshgrid(np.arange(509), np.arange(333))
    upright = np.stack([x // 2, 255 - x // 2, y // 2], -1).astype(np.uint8)
    data = oriented(upright, orientation, "JPEG", quality=95)
    geometry = Geometry(image_size=20, resize="stretch")
    reduced = prepare(data, "", CONFIG, geometry)
    full = prepare(data, "", DecodeConfig(jpeg_draft=False), geometry)
    assert decode(data, CONFIG, 20).image.size in [(64, 42), (128, 84)]
    assert reduced[1:] == full[1:]
    assert reduced[2:] == (509, 333)
    error = reduced.pixels.astype(int) - full.pixels
    assert np.abs(error.mean((0, 1, 2))).max() < 0.3
    assert np.abs(error).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 255, "6", 6.5])
def test_undefined_orientation_is_upright(orientation: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "getexif", lambda image: {0x0112: orientation})
    assert decode(encoded(Image.fromarray(noise(5, 3))), CONFIG)[1:3] == (5, 3)


def test_broken_exif_is_upright() -> None:
    upright = noise(5, 3)
    data = encoded(Image.fromarray(upright), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    np.testing.assert_array_equal(np.asarray(decode(data, CONFIG).image), upright)


def test_orientation_from_xmp() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"></x:xmpmeta>')
    assert decode(encoded(Image.fromarray(noise(5, 3)), pnginfo=info), CONFIG)[1:3] == (3, 5)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    red, green, blue = pixels(decode(data, CONFIG).image).mean((0, 1))
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
def test_draft_keeps_twice_the_wanted_side(format: str) -> None:
    photo = Image.open(PHOTOS[0]).convert("RGB").resize((1001, 667))
    data = encoded(photo, format)
    for wanted, scale in [(30, 8), (41, 8), (42, 4), (83, 4), (84, 2), (166, 2), (167, 1), (700, 1)]:
        decoded = decode(data, CONFIG, wanted)
        assert decoded.image.size == (-(-1001 // scale), -(-667 // scale))
        assert decoded[1:] == (1001, 667, (0, 0, 1001 / scale, 667 / scale))
        assert scale == 1 or min(decoded.image.size) >= 2 * wanted


@pytest.mark.parametrize("size", [48, 64, 128, 150])
@pytest.mark.parametrize(
    "options",
    [{}, {"resize": "resize-crop"}, {"resize": "pad"}, {"views": "random-crops"}, {"views": "ten-crop"}],
    ids=str,
)
def test_draft_against_full_decode(size: int, options: dict[str, str]) -> None:
    geometry = Geometry(image_size=size, **options)
    for path in PHOTOS[size % 3 :: 3]:
        reduced = prepare(path.read_bytes(), "", CONFIG, geometry)
        full = prepare(path.read_bytes(), "", DecodeConfig(jpeg_draft=False), geometry)
        assert reduced[1:] == full[1:]
        assert psnr(reduced.pixels, full.pixels) > 35


def test_adm_filter_gets_every_pixel() -> None:
    geometry = Geometry(image_size=48, filter="adm")
    data = PHOTOS[0].read_bytes()
    full = prepare(data, "", DecodeConfig(jpeg_draft=False), geometry)
    np.testing.assert_array_equal(prepare(data, "", CONFIG, geometry).pixels, full.pixels)


def test_truncated_photo_is_a_reject() -> None:
    data = PHOTOS[0].read_bytes()
    for length in (len(data) // 2, len(data) - 3000, 1000):
        with pytest.raises(Reject) as caught:
            prepare(data[:length], "", CONFIG, SMALL)
        assert caught.value.stage == "decode"


# -- colours -------------------------------------------------------------------------------------------


def as_rgb(image: Image.Image) -> np.ndarray:
    result = color.to_rgb(image)
    assert result.mode == "RGB"
    assert result.size == image.size
    return pixels(result)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def test_plain_rgb_is_not_copied() -> None:
    image = Image.fromarray(noise(4, 4))
    assert color.to_rgb(image) is image


def test_alpha_over_white() -> None:
    rgba = noise(40, 30, 4)
    expected = over_white(rgba[..., :3], rgba[..., 3])
    image = Image.fromarray(rgba)
    np.testing.assert_allclose(as_rgb(image), expected, atol=1)
    np.testing.assert_allclose(as_rgb(image.convert("RGBa")), expected, atol=2)


def test_grey_alpha_over_white() -> None:
    la = noise(40, 30, 2)
    expected = over_white(la[..., :1].repeat(3, -1), la[..., 1])
    image = Image.fromarray(la)
    np.testing.assert_allclose(as_rgb(image), expected, atol=1)
    np.testing.assert_allclose(as_rgb(image.convert("La")), expected, atol=2)


def test_palette_alpha_over_white() -> None:
    palette, index = noise(256, 1)[0], noise(20, 10, 1)[..., 0]
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(as_rgb(image), palette[index])
    alpha = np.arange(256)[index]
    image.info["transparency"] = bytes(range(256))
    np.testing.assert_allclose(as_rgb(image), over_white(palette[index], alpha), atol=1)
    np.testing.assert_allclose(as_rgb(image.convert("PA")), over_white(palette[index], alpha), atol=1)


def test_transparent_palette_entry_over_white() -> None:
    palette, index = noise(256, 1)[0], noise(20, 10, 1)[..., 0]
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    expected = np.where(index[..., None] == index[4, 4], 255, palette[index].astype(int))
    for format in ("PNG", "GIF"):
        data = encoded(image, format, transparency=int(index[4, 4]))
        np.testing.assert_array_equal(pixels(decode(data, CONFIG).image), expected)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_transparent_colour_over_white(mode: str) -> None:
    image = Image.fromarray(noise(20, 10) // 200 * 100).convert(mode)
    values = pixels(image).reshape(10, 20, -1) * (255 if mode == "1" else 1)
    image.info["transparency"] = 0 if mode != "RGB" else (0, 100, 0)
    hit = (values == np.array(image.info["transparency"])).all(-1, keepdims=True)
    assert hit.any()
    np.testing.assert_array_equal(as_rgb(image), np.where(hit, 255, np.broadcast_to(values, (10, 20, 3))))


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "=i4")]
)
def test_16_bit_grey(mode: str, kind: str) -> None:
    values = np.arange(65536).astype(kind).reshape(256, 256)
    image = Image.frombytes(mode, (256, 256), values.tobytes())
    expected = np.round(np.arange(65536) / 257).reshape(256, 256, 1).repeat(3, -1)
    np.testing.assert_array_equal(as_rgb(image), expected)


def test_16_bit_grey_files() -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    expected = np.round(values / 257)
    for format in ("PNG", "TIFF", "PPM"):
        image = decode(encoded(Image.fromarray(values), format), CONFIG).image
        np.testing.assert_array_equal(pixels(image)[..., 1], expected)
    image = decode(encoded(Image.fromarray(values), transparency=640), CONFIG).image
    np.testing.assert_array_equal(pixels(image)[..., 1], np.where(values == 640, 255, expected))


def test_32_bit_integers_are_clipped() -> None:
    image = Image.fromarray(np.array([[-5, 0, 257, 65535, 70000, 2**31 - 1]], np.int32))
    assert as_rgb(image)[0, :, 0].tolist() == [0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 0.5, 1.01], [0, 0, 1]),
        ([-3, 100.4, 300], [0, 100, 255]),
        ([1, 1, 1], [255, 255, 255]),
    ],
)
def test_floating_point(values: list[float], expected: list[int]) -> None:
    assert as_rgb(Image.fromarray(np.array([values], np.float32)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_floats_are_rejected(value: float) -> None:
    data = encoded(Image.fromarray(np.array([[0, value, 1]], np.float32)), "TIFF")
    with pytest.raises(Reject, match="not finite") as caught:
        prepare(data, "", CONFIG, SMALL)
    assert (caught.value.stage, caught.value.error) == ("decode", "ValueError")


def test_cmyk() -> None:
    cmyk = noise(20, 10, 4).astype(int)
    image = Image.frombytes("CMYK", (20, 10), cmyk.astype(np.uint8).tobytes())
    expected = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    np.testing.assert_allclose(as_rgb(image), expected, atol=1)
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # Pillow stores it inverted, as Adobe does
    np.testing.assert_allclose(
        pixels(decode(encoded(flat, "JPEG"), CONFIG).image)[8, 8], (0, 255, 255), atol=3
    )


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    smooth = Image.fromarray(noise(20, 10))
    np.testing.assert_allclose(as_rgb(smooth.convert(mode)), pixels(smooth), atol=8)


def test_lab() -> None:
    # Red of sRGB is L* 54.29, a* 80.81, b* 69.89 under D50.
    grey = Image.frombytes("LAB", (3, 1), bytes([255, 0, 0, 0, 0, 0, round(54.29 * 2.55), 81, 70]))
    np.testing.assert_allclose(as_rgb(grey)[0], [(255, 255, 255), (0, 0, 0), (255, 0, 0)], atol=6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "I;16", "I", "F", "LAB"])
def test_bands_give_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bands = {"RGBA": 4, "LA": 2, "PA": 2, "I;16": 2, "I": 1, "F": 1, "LAB": 3}[mode]
    image = Image.fromarray(noise(20, 33, bands).squeeze() if mode in ("RGBA", "LA") else noise(20, 33))
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(
            noise(20, 33)[..., 0].astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]) * 250
        )
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    elif mode == "LAB":
        image = Image.frombytes("LAB", (20, 33), noise(20, 33).tobytes())
    assert image.mode == mode
    whole = as_rgb(image)
    monkeypatch.setattr(color, "BAND", 20 * 7 + 3)
    np.testing.assert_array_equal(as_rgb(image), whole)


def test_message_names_no_address() -> None:
    with pytest.raises(Reject) as caught:
        prepare(b"not an image", "", CONFIG, SMALL)
    assert re.fullmatch(r"[a-z ]+", caught.value.message)
