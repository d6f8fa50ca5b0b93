"""Training crops lie inside their picture, follow the seed, and leave no picture out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.data.images import crop_batches, random_crop


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose first two channels tell where a pixel is."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2)


def unmirrored(crop: np.ndarray) -> np.ndarray:
    return crop if crop[0, 0, 1] <= crop[0, -1, 1] else crop[:, ::-1]


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 2**32 - 1))
def test_crop_is_a_square_inside_the_picture(height: int, width: int, seed: int) -> None:
    crop = random_crop(coordinates(height, width), 4, np.random.default_rng(seed))
    assert crop.shape == (4, 4, 3)
    assert crop.dtype == np.uint8
    rows, columns = (unmirrored(crop)[..., channel].astype(int) for channel in (0, 1))
    assert rows.max() <= height
    assert columns.max() <= width
    assert abs((rows[-1, 0] - rows[0, 0]) - (columns[0, -1] - columns[0, 0])) <= 3  # no distortion


def test_picture_of_the_crops_size_is_taken_whole() -> None:
    picture = coordinates(8, 8)
    rng = np.random.default_rng(0)
    crops = [random_crop(picture, 8, rng) for _ in range(40)]
    mirrored = [np.array_equal(crop, picture[:, ::-1]) for crop in crops]
    straight = [np.array_equal(crop, picture) for crop in crops]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert 10 < sum(mirrored) < 30


def test_places_and_sides_vary() -> None:
    rng = np.random.default_rng(0)
    crops = [unmirrored(random_crop(coordinates(200, 120), 8, rng)).astype(int) for _ in range(300)]
    sides = np.array([crop[-1, 0, 0] - crop[0, 0, 0] for crop in crops])
    tops = np.array([crop[0, 0, 0] for crop in crops])
    assert sides.min() < 10
    assert sides.max() > 90
    assert tops.min() < 20
    assert tops.max() > 150
    assert np.median(sides) < 45  # log-uniform between 8 and 120: half below 31


def flat_pictures(count: int) -> list[np.ndarray]:
    return [np.full((9 + index, 12, 3), 10 * index, np.uint8) for index in range(count)]


def taken(batches: int, batch_size: int, seed: int = 0, count: int = 7) -> list[int]:
    """Which picture each crop of the first batches is of."""
    stream = crop_batches(flat_pictures(count), 8, batch_size, seed)
    return [int(row[0, 0, 0]) // 10 for _ in range(batches) for row in next(stream)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_each_picture_once_before_any_again(batch_size: int) -> None:
    order = taken(21, batch_size)
    epochs = [sorted(order[start : start + 7]) for start in range(0, len(order) - 6, 7)]
    assert epochs == [list(range(7))] * len(epochs)


def test_order_changes_from_round_to_round_and_with_the_seed() -> None:
    first, second = taken(1, 7), taken(2, 7)[7:]
    assert first != second
    assert first != taken(1, 7, seed=1)


def test_same_seed_same_batches() -> None:
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(3)]
    one, other, third = (crop_batches(pictures, 8, 4, seed) for seed in (5, 5, 6))
    for _ in range(4):
        batch = next(one)
        assert batch.shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(batch, next(other))
        assert not np.array_equal(batch, next(third))
