"""Images become rectangles of one height and width: undistorted unless asked, whichever side is longer."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transforms.images.config import DecodeConfig
from transforms.images.crops import Geometry, views
from transforms.images.decode import prepare, upright_size
from transforms.images.resize import render
from vqgan.config_json import from_dict, to_dict

WAYS = [
    {"resize": "center-crop"},
    {"resize": "resize-crop"},
    {"resize": "stretch"},
    {"resize": "pad"},
    {"filter": "adm"},
    {"views": "ten-crop"},
    {"views": "ten-crop", "resize": "resize-crop"},
    {"views": "random-crops", "random_crops": 2},
]
sides = st.integers(1, 90)


def encoded(image: Image.Image, encoding: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, encoding, exif=exif)
    return stream.getvalue()


@settings(max_examples=60)
@given(st.sampled_from(WAYS), sides, sides, sides, sides)
def test_views_have_the_size_and_lie_inside(
    way: dict[str, Any], w: int, h: int, rows: int, columns: int
) -> None:
    geometry = Geometry(image_size=(rows, columns), **way)
    image = Image.new("RGB", (w, h), (90, 90, 90))
    chosen = views(w, h, geometry, "key")
    pixels = render(image, (w, h), geometry, chosen)
    assert pixels.shape == (len(chosen), rows, columns, 3)
    for view in chosen:
        assert 0 <= view.left < view.right <= w
        assert 0 <= view.top < view.bottom <= h
    assert set(np.unique(pixels)) <= ({90} if way.get("resize") != "pad" else set(range(90, 256)))
    assert from_dict(Geometry, to_dict(geometry)) == geometry


@settings(max_examples=40)
@given(
    st.sampled_from([way for way in WAYS if way.get("views") != "random-crops"]), sides, sides, sides, sides
)
def test_an_image_on_its_side_gives_boxes_on_their_side(
    way: dict[str, Any], w: int, h: int, rows: int, columns: int
) -> None:
    upright = views(w, h, Geometry(image_size=(rows, columns), **way), "")
    lying = views(h, w, Geometry(image_size=(columns, rows), **way), "")
    # Of ten crops the second and third change places.
    order = [0, 2, 1, 3, 4] if way.get("views") == "ten-crop" else [0]
    for number, other in enumerate(order):
        left, top, right, bottom = lying[other][1:5]
        assert upright[number][1:5] == (top, left, bottom, right)


def test_the_middle_of_the_aspect_is_cropped() -> None:
    assert views(300, 300, Geometry(image_size=(20, 30)), "")[0][1:5] == (0, 50, 300, 250)
    assert views(600, 100, Geometry(image_size=(20, 30)), "")[0][1:5] == (225, 0, 375, 100)
    assert views(100, 600, Geometry(image_size=(30, 20)), "")[0][1:5] == (0, 225, 100, 375)
    exact = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    geometry = Geometry(image_size=(20, 30))
    pixels = render(Image.fromarray(exact), (30, 20), geometry, views(30, 20, geometry, ""))
    np.testing.assert_array_equal(pixels[0], exact)


def test_padding_is_white_on_both_sides() -> None:
    geometry = Geometry(image_size=(20, 30), resize="pad")
    pixels = render(Image.new("RGB", (10, 20)), (10, 20), geometry, views(10, 20, geometry, ""))[0]
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 20:] == 255).all()
    assert (pixels[:, 10:20] == 0).all()


@given(st.integers(2, 400), st.integers(2, 400), st.floats(0.1, 1), st.text(max_size=4))
def test_random_crops_keep_the_aspect(width: int, height: int, least: float, key: str) -> None:
    geometry = Geometry(image_size=(20, 30), views="random-crops", min_crop=least)
    for view in views(width, height, geometry, key):
        columns, rows = view.right - view.left, view.bottom - view.top
        assert abs(columns * 20 - rows * 30) <= 30 + 20  # each side is rounded twice


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_that_a_header_tells_is_that_of_the_upright_image(
    encoding: str, orientation: int | None
) -> None:
    data = encoded(Image.new("RGB", (40, 24)), encoding, orientation)
    prepared = prepare(data, "", DecodeConfig(), Geometry(image_size=8))
    assert upright_size(data, DecodeConfig()) == (prepared.width, prepared.height)


def test_squares_written_as_two_numbers_are_squares() -> None:
    assert to_dict(Geometry(image_size=(64, 64))) == to_dict(Geometry(image_size=64))
    assert to_dict(Geometry(image_size=(64, 96)))["image_size"] == [64, 96]


@pytest.mark.parametrize("size", [0, (0, 8), (8, 0), (8, 8193)])
def test_sizes_out_of_range(size: Any, refused: Any) -> None:
    with refused(r"geometry.image_size is .*: it must lie in \[1, 8192\]"):
        Geometry(image_size=size)
