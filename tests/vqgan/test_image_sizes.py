"""Sizes are read as they are written, the nearest ones fit, and an image goes to the bucket most like it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqgan.config_json import from_dict, to_dict
from vqgan.image_sizes import (
    ImageSize,
    describe_bucket,
    describe_size,
    largest_inside,
    nearest_bucket,
    parse_buckets,
    read_size,
    shape_of_size,
    simplified_size,
    sizes_that_fit,
)
from vqgan.training.codec.config import DataConfig

sides = st.integers(1, 10_000)
sizes = st.tuples(sides, sides).map(simplified_size)
shapes = [(256, 256), (256, 384), (384, 256), (128, 512)]


@given(sizes)
def test_a_size_is_read_as_it_is_written(size: ImageSize) -> None:
    height, width = shape_of_size(size)
    for text in (describe_size(size), describe_bucket(size), f"{height} × {width}", f"{height}X{width}"):
        assert read_size("--image-size", text) == size
    assert read_size("--image-size", [height, width]) == size
    assert isinstance(size, int) == (height == width)


@pytest.mark.parametrize(
    "value",
    ["", "x", "256x", "x256", "1x2x3", "-3", "3.5", "9" * 99, 2.5, True, None, [], [1, 2, 3], [1, "a"]],
)
def test_what_is_no_size_is_refused(value: Any, refused: Any) -> None:
    with refused("^--image-size .*: give the side of a square such as 256, or HEIGHTxWIDTH such as 256x384$"):
        read_size("--image-size", value)


def test_a_configuration_holds_squares_as_one_number() -> None:
    for given_size, written in [(64, 64), ([64, 64], 64), ("64x96", [64, 96]), ([64, 96], [64, 96])]:
        config = from_dict(DataConfig, {"crop_size": given_size, "validation_size": given_size})
        assert to_dict(config)["crop_size"] == to_dict(config)["validation_size"] == written
        assert from_dict(DataConfig, to_dict(config)) == config
    assert DataConfig(crop_size=(64, 64)) == DataConfig(crop_size=64)


@given(sides, sides, st.integers(1, 64))
def test_nearest_sizes_fit(height: int, width: int, multiple: int) -> None:
    found = [shape_of_size(size) for size in sizes_that_fit(height, width, multiple)]
    assert 1 <= len(found) <= 4
    for rows, columns in found:
        assert rows % multiple == columns % multiple == 0
        for side, near in ((height, rows), (width, columns)):
            assert abs(near - side) < multiple
            assert near >= multiple


@given(st.integers(1, 5000), st.integers(1, 5000), st.tuples(st.integers(1, 900), st.integers(1, 900)))
def test_the_largest_part_of_an_aspect(height: int, width: int, size: tuple[int, int]) -> None:
    rows, columns = largest_inside(height, width, size)
    assert rows == height or columns == width
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    off = []  # by how much the other side differs from what it would be without rounding
    if rows == height:
        off.append(abs(columns - max(1, rows * size[1] / size[0])))
    if columns == width:
        off.append(abs(rows - max(1, columns * size[0] / size[1])))
    assert min(off) <= 0.5 + 1e-6
    assert largest_inside(width, height, size[::-1]) == (columns, rows)


@given(sides, sides, st.permutations(shapes))
def test_an_image_goes_to_the_aspect_nearest_to_its_own(
    width: int, height: int, buckets: list[tuple[int, int]]
) -> None:
    distances = [abs(math.log(width / height) - math.log(w / h)) for h, w in buckets]
    assert distances[nearest_bucket(width, height, buckets)] <= min(distances) + 1e-12


def test_of_two_buckets_equally_near_the_first_is_taken() -> None:
    assert [nearest_bucket(100, 100, order) for order in ([(2, 4), (4, 2)], [(4, 2), (2, 4)])] == [0, 0]
    assert nearest_bucket(100, 101, [(2, 4), (4, 2)]) == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("64x64,128", "64x64 and 128x128 have one aspect ratio"),
        ("64x96,96x64,128x192", "64x96 and 128x192 have one aspect ratio"),
        ("64,wide", "--buckets 'wide': give the side"),
        ("64x96 96x64", "such as 256x384; and a comma between sizes"),
        ("", "--buckets '': give the side"),
        ({"64": 1}, "give the side"),
        (",".join(f"1x{n}" for n in range(1, 66)), "65 sizes; give at most 64"),
    ],
)
def test_buckets_that_are_refused(value: Any, says: str, refused: Any) -> None:
    with refused(says):
        parse_buckets("--buckets", value)


def test_buckets_are_read_from_texts_and_lists() -> None:
    assert (
        parse_buckets("--buckets", "64x64, 64x96")
        == parse_buckets("--buckets", [64, [64, 96]])
        == (64, (64, 96))
    )
    assert parse_buckets("--buckets", None) == ()
    assert parse_buckets("--buckets", "64,64x96,") == (64, (64, 96))
    assert parse_buckets("--buckets", 64) == (64,)  # as a configuration may have it
