"""Files of other channels than RGB: what is taken from them, and what is refused."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry
from transforms.images.decode import Reject, decode_image, prepare, upright_size
from transforms.images.npy import ArrayImage, ChannelsError, to_values, write_array
from vqgan.channels import ChannelsConfig
from vqgan.errors import UserError

from .writers import write_tiff

RGB_FILE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def config(count: int, colour: str = "reject", **ranges: tuple[tuple[float, float], ...]) -> DecodeConfig:
    return DecodeConfig(colour=colour, channels=ChannelsConfig(count, **ranges))


def decoded(data: bytes, decode: DecodeConfig) -> np.ndarray:
    return np.asarray(decode_image(data, decode).image)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    sink = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(sink, "PNG")
    return sink.getvalue()


def tiff(samples: np.ndarray, *, planar: bool = False, photometric: int = 1) -> bytes:
    """Samples beyond the first one, or those of RGB, have no meaning that the file tells."""
    extra = [0] * (samples.shape[2] - (3 if photometric == 2 else 1))
    return write_tiff(samples, photometric, 8 * samples.itemsize, planar=planar, extra=extra)


def refusal(data: bytes, decode: DecodeConfig) -> str:
    with pytest.raises(Reject) as caught:
        decode_image(data, decode)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_grey_of_pictures() -> None:
    grey = RGB_FILE[..., 0]
    for data in (png(grey), png(grey, "RGB"), png(grey, "LA")):
        np.testing.assert_array_equal(decoded(data, config(1))[..., 0], grey)
    assert "colour image where grey is wanted" in refusal(png(RGB_FILE), config(1))
    luma = np.asarray(Image.fromarray(RGB_FILE).convert("L"))
    np.testing.assert_array_equal(decoded(png(RGB_FILE), config(1, "grey"))[..., 0], luma)


def test_alpha_is_kept() -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (6, 5, 4), np.uint8)
    np.testing.assert_array_equal(decoded(png(rgba), config(4)), rgba)
    np.testing.assert_array_equal(decoded(png(RGB_FILE), config(4))[..., 3], 255)
    la = rgba[..., :2]
    np.testing.assert_array_equal(decoded(png(la), config(2)), la)
    assert "6 channels are wanted: give TIFF or .npy" in refusal(png(rgba), config(6))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
def test_samples_of_tiff(dtype: type, planar: bool) -> None:
    top = np.iinfo(dtype).max
    samples = np.random.default_rng(2).integers(0, top + 1, (7, 4, 6), dtype)
    expected = np.rint(samples * (255 / top))
    np.testing.assert_array_equal(decoded(tiff(samples, planar=planar), config(6)), expected)
    assert "5 channels are wanted" in refusal(tiff(samples, planar=planar), config(5))


def test_ranges_by_channel() -> None:
    samples = np.array([[[0, 50, 90], [100, 150, 5000]]], np.uint16)
    ranges = ((0, 100), (50, 150), (0, 9000))
    for data in (tiff(samples, photometric=2), write_array(samples), write_array(np.asfortranarray(samples))):
        found = decoded(data, config(3, ranges=ranges))
        np.testing.assert_array_equal(found, [[[0, 0, 3], [255, 255, 142]]])
    back = to_values(np.array([0, 255, 142]), ChannelsConfig(3, ranges=ranges))
    np.testing.assert_allclose(back, [0, 150, 5011.8], atol=0.1)


def test_floats_need_a_range() -> None:
    values = np.full((3, 3, 2), 0.5, np.float32)
    assert "state their range with model.channels.ranges" in refusal(write_array(values), config(2))
    assert decoded(write_array(values), config(2, ranges=((0, 1),)))[0, 0, 0] == 128
    values[1, 1, 1] = np.nan
    assert "not finite" in refusal(write_array(values), config(2, ranges=((0, 1),)))


def test_geometry_is_that_of_pictures() -> None:
    """Channels are resized one by one, as a picture's are; also with views, padding and filters."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 3), np.uint8)
    for geometry in (
        Geometry(16, views="ten-crop"),
        Geometry(16, resize="pad"),
        Geometry((8, 24), filter="adm"),
        Geometry(16, views="random-crops"),
    ):
        picture = prepare(png(pixels), "key", DecodeConfig(), geometry).pixels
        channels = prepare(write_array(pixels), "key", config(3, ranges=((0, 255),)), geometry).pixels
        np.testing.assert_array_equal(channels, picture)


def test_arrays_are_no_pictures() -> None:
    data = write_array(np.zeros((2, 2), np.uint8))
    assert refusal(data, DecodeConfig())
    assert upright_size(data, config(1)) == (2, 2)
    assert "an array of 1 channels where 4 are wanted" in refusal(data, config(4))


def test_bounds() -> None:
    samples = np.zeros((8, 8, 12), np.uint8)
    small = DecodeConfig(max_pixels=100, channels=ChannelsConfig(12))
    assert "more than max_pixels" in refusal(tiff(samples), small)
    assert "more than max_pixels" in refusal(write_array(samples), small)


DTYPES = [np.dtype(name) for name in ("u1", "<u2", ">u2", "<u4", "i2", "<f4", ">f8", "<f2")]


@given(st.data(), st.sampled_from(DTYPES), st.booleans())
def test_arrays_read_as_numpy_reads_them(draws: st.DataObject, dtype: np.dtype, fortran: bool) -> None:
    shape = draws.draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
    values = draws.draw(arrays(dtype, shape))
    sink = io.BytesIO()
    np.save(sink, np.asfortranarray(values) if fortran else values, allow_pickle=False)
    read = ArrayImage(sink.getvalue()).samples
    np.testing.assert_array_equal(read.reshape(shape), values)


@given(st.binary(max_size=200), st.integers(0, 150), st.integers(0, 60))
def test_damaged_arrays_are_refused_in_a_line(noise: bytes, place: int, cut: int) -> None:
    """Whatever the header says: it is compared, never evaluated."""
    whole = write_array(np.zeros((3, 4, 2), np.uint16))
    damaged = (whole[:place] + noise + whole[place + len(noise) :])[: len(whole) - cut]
    try:
        assert ArrayImage(damaged).samples.nbytes <= len(damaged)
    except ChannelsError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_pickles_are_never_read() -> None:
    sink = io.BytesIO()
    np.save(sink, np.array([[{"a": 1}]], object), allow_pickle=True)
    with pytest.raises(ChannelsError, match="another kind than numbers"):
        ArrayImage(sink.getvalue())
    deep = b"\x93NUMPY\1\0" + struct.pack("<H", 4000) + b"(" * 4000
    with pytest.raises(ChannelsError, match="another kind than numbers"):
        ArrayImage(deep)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"count": 0}, "must lie in 1 to 16"),
        ({"count": 17}, "must lie in 1 to 16"),
        ({"count": 4, "ranges": ((0, 1), (0, 1))}, "has 2 pairs: give one, or one for each of the 4"),
        ({"count": 1, "ranges": ((1, 1),)}, "give the lower value first"),
        ({"count": 1, "input_ranges": ((0, float("nan")),)}, "give the lower value first"),
    ],
)
def test_channels_that_cannot_be(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ChannelsConfig(**settings)  # type: ignore[arg-type]
