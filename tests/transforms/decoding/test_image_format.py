"""How images are encoded."""

import io

import numpy as np
import pytest
from PIL import Image

from transforms.decoding.image_format import ImageFormat
from vqgan.errors import UserError


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """A colour gradient, uint8 [40, 56, 3]."""
    y, x = np.mgrid[:40, :56]
    return np.stack([y * 6, x * 4, 255 - y * 3 - x * 2], axis=-1).astype(np.uint8)


def decoded(data: bytes) -> tuple[np.ndarray, str | None]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")), image.format


def test_png_loses_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (17, 9, 3), dtype=np.uint8)
    found, kind = decoded(ImageFormat().encode(pixels))
    assert kind == "PNG"
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(("encoding", "kind"), [("webp", "WEBP"), ("jpeg", "JPEG")])
def test_lossy_forms(smooth: np.ndarray, encoding: str, kind: str) -> None:
    good, bad = (ImageFormat("tar", encoding, quality).encode(smooth) for quality in (95, 5))
    found, name = decoded(good)
    assert name == kind
    errors = [np.abs(decoded(data)[0].astype(int) - smooth).mean() for data in (good, bad)]
    assert errors[0] < 2 < errors[1]
    assert len(good) > len(bad)
    assert found.shape == smooth.shape


@pytest.mark.parametrize("encoding", ["png", "webp", "jpeg"])
def test_same_pixels_same_bytes(smooth: np.ndarray, encoding: str) -> None:
    assert ImageFormat("tar", encoding).encode(smooth) == ImageFormat("tar", encoding).encode(smooth.copy())


def test_default_qualities_are_written_down() -> None:
    """A default that changes one day must not continue a run that began with another."""
    assert [ImageFormat("tar", name).quality for name in ("png", "webp", "jpeg")] == [None, 90, 95]


@pytest.mark.parametrize(
    ("container", "encoding", "quality", "message"),
    [
        ("zip", "png", None, "container 'zip'"),
        ("tar", "gif", None, "image format 'gif': known are png, webp, jpeg"),
        ("tar", "png", 90, "--quality 90: png loses nothing"),
        ("tar", "jpeg", 0, "--quality 0: it must lie between 1 and 100"),
        ("files", "webp", 101, "--quality 101"),
    ],
)
def test_refused(container: str, encoding: str, quality: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageFormat(container, encoding, quality)


def test_sizes() -> None:
    ImageFormat("files", "webp").check_size(16383, 16383)
    with pytest.raises(UserError, match="images of 16384x64: webp ends at 16383 a side; choose png"):
        ImageFormat("files", "webp").check_size(64, 16384)
