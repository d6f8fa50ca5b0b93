"""Training crops lie inside their image, follow the seed, and leave no image out."""

import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.data.image_crops import (
    CropBatches,
    CropConfig,
    center_crop_resize,
    crop_batches,
    random_crop,
)

EIGHT = CropConfig(size=8)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose first two channels tell where a pixel is."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2)


def unmirrored(crop: np.ndarray) -> np.ndarray:
    return crop if crop[0, 0, 1] <= crop[0, -1, 1] else crop[:, ::-1]


def sides(crop: CropConfig, height: int, width: int) -> np.ndarray:
    """Heights of 300 random squares, as their first column tells them."""
    rng = np.random.default_rng(0)
    image = coordinates(height, width)
    crops = [random_crop(image, crop, rng)[:, 0, 0].astype(int) for _ in range(300)]
    return np.array([column[-1] - column[0] for column in crops])


@settings(max_examples=60)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 2**32 - 1))
def test_crop_is_a_square_inside_the_image(height: int, width: int, seed: int) -> None:
    crop = random_crop(coordinates(height, width), CropConfig(size=4), np.random.default_rng(seed))
    assert crop.shape == (4, 4, 3)
    assert crop.dtype == np.uint8
    rows, columns = (unmirrored(crop)[..., channel].astype(int) for channel in (0, 1))
    assert rows.max() <= height
    assert columns.max() <= width
    assert abs((rows[-1, 0] - rows[0, 0]) - (columns[0, -1] - columns[0, 0])) <= 3  # no distortion


def test_image_of_the_crops_size_is_taken_whole() -> None:
    image = coordinates(8, 8)
    rng = np.random.default_rng(0)
    crops = [random_crop(image, EIGHT, rng) for _ in range(40)]
    mirrored = [np.array_equal(crop, image[:, ::-1]) for crop in crops]
    straight = [np.array_equal(crop, image) for crop in crops]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert 10 < sum(mirrored) < 30
    unflipped = [random_crop(image, CropConfig(size=8, flip=False), rng) for _ in range(20)]
    assert all(np.array_equal(crop, image) for crop in unflipped)


def test_places_and_sides_vary() -> None:
    rng = np.random.default_rng(0)
    crops = [unmirrored(random_crop(coordinates(200, 120), EIGHT, rng)).astype(int) for _ in range(300)]
    heights = np.array([crop[-1, 0, 0] - crop[0, 0, 0] for crop in crops])
    tops = np.array([crop[0, 0, 0] for crop in crops])
    assert heights.min() < 10
    assert heights.max() > 90
    assert tops.min() < 20
    assert tops.max() > 150
    assert np.median(heights) < 45  # log-uniform between 8 and 120: half below 31


def test_shares_bound_the_squares() -> None:
    found = sides(CropConfig(size=8, least_share=0.5, most_share=0.75), 200, 120)
    # The first and last rows of a square of 60 to 90, reduced to 8, are centred 7/8 of its side apart.
    assert 60 * 7 / 8 - 3 <= found.min() < 57
    assert 75 < found.max() <= 90 * 7 / 8 + 3


def test_squares_smaller_than_the_crop_only_on_request() -> None:
    small = CropConfig(size=40, least_share=0.1)
    assert sides(small, 80, 80).min() >= 38
    assert sides(CropConfig(size=40, least_share=0.1, upsample=True), 80, 80).min() < 12
    with pytest.raises(ValueError, match="30 pixels is too small for crops of 40"):
        random_crop(coordinates(30, 80), small, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"size": 0}, "crop.size is 0"),
        ({"least_share": 0.9, "most_share": 0.5}, "the least first"),
        ({"most_share": 1.5}, "between 0 and 1"),
        ({"upsample": True}, "set both"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], match: str, refused: Any) -> None:
    with refused(match):
        CropConfig(**{"size": 8, **fields})


def test_centre_square() -> None:
    assert np.array_equal(center_crop_resize(coordinates(10, 15), 10), coordinates(10, 15)[:, 2:12])
    blocks = np.kron(np.arange(12, dtype=np.uint8).reshape(2, 6), np.ones((16, 16), np.uint8))
    halves = center_crop_resize(np.stack([blocks] * 3, axis=2), 2)  # columns 32 to 63 of 96
    assert halves[..., 0].tolist() == [[2, 3], [8, 9]]
    assert center_crop_resize(coordinates(5, 7), 9).shape == (9, 9, 3)


def flat_images(count: int) -> list[np.ndarray]:
    """Images whose pixels are all their number."""
    return [np.full((9 + number, 12, 3), number, np.uint8) for number in range(count)]


class Slow:
    """Images that come after uneven delays; some are rejects."""

    def __init__(self, images: list[np.ndarray], rejects: tuple[int, ...] = ()) -> None:
        self.images = images
        self.rejects = rejects

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> np.ndarray | None:
        time.sleep(0.002 * (number * 7 % 3))
        return None if number in self.rejects else self.images[number]


@pytest.fixture
def batches() -> Iterator[Callable[..., CropBatches]]:
    """``crop_batches`` with crops of 8 pixels and few threads, closed afterwards."""
    opened: list[CropBatches] = []

    def open_batches(images: Any, batch_size: int = 4, seed: int = 0, **changes: Any) -> CropBatches:
        opened.append(crop_batches(images, EIGHT, batch_size, seed, **{"threads": 2, **changes}))
        return opened[-1]

    yield open_batches
    for stream in opened:
        stream.close()


def numbers(stream: Iterator[np.ndarray], count: int) -> list[int]:
    """Which flat image each of the first crops shows, to whole batches."""
    shown: list[int] = []
    while len(shown) < count:
        shown.extend(int(crop[0, 0, 0]) for crop in next(stream))
    return shown


def rounds(shown: list[int], size: int) -> list[list[int]]:
    return [sorted(shown[start : start + size]) for start in range(0, len(shown) - size + 1, size)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_each_image_once_before_any_again(batch_size: int, batches: Any) -> None:
    stream = batches(flat_images(7), batch_size)
    assert next(stream).shape == (batch_size, 8, 8, 3)
    found = rounds(numbers(batches(flat_images(7), batch_size), 42), 7)
    assert len(found) >= 6
    assert found == [list(range(7))] * len(found)


def test_rejects_are_skipped_and_nothing_else(batches: Any) -> None:
    shown = numbers(batches(Slow(flat_images(7), rejects=(2, 5))), 40)
    assert rounds(shown, 5) == [[0, 1, 3, 4, 6]] * 8


def test_order_changes_from_round_to_round_and_with_the_seed(batches: Any) -> None:
    shown = numbers(batches(flat_images(7), 7), 21)
    orders = {tuple(shown[:7]), tuple(shown[7:14]), tuple(shown[14:])}
    orders.add(tuple(numbers(batches(flat_images(7), 7, seed=1), 7)))
    assert len(orders) == 4


def noise(count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(count)]


def test_batches_depend_on_the_seed_and_not_on_threads(batches: Any) -> None:
    one, four = batches(noise(), threads=1), batches(Slow(noise()), threads=4)
    other = batches(noise(), seed=6)
    for _ in range(6):
        batch = next(one)
        np.testing.assert_array_equal(batch, next(four))
        assert not np.array_equal(batch, next(other))


def test_crops_differ_from_round_to_round(batches: Any) -> None:
    stream = batches(noise(1), 1)
    assert len({next(stream).tobytes() for _ in range(8)}) == 8


def test_resume_gives_the_same_next_batches(batches: Any) -> None:
    images = Slow(noise(), rejects=(3,))
    whole = batches(images)
    expected = [next(whole) for _ in range(9)]
    for done in (0, 1, 5):
        stopped = batches(images)
        for _ in range(done):
            next(stopped)
        state = json.loads(json.dumps(stopped.get_state()))
        resumed = batches(images, threads=3)
        next(resumed)  # a position is set, whatever was before
        resumed.set_state(state)
        assert resumed.get_state() == state
        for batch in expected[done:]:
            np.testing.assert_array_equal(next(resumed), batch)


RESUME = """
import hashlib, json, sys
import numpy as np
from vqgan.data.image_crops import CropConfig, crop_batches
rng = np.random.default_rng(3)
images = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(5)]
stream = crop_batches(images, CropConfig(size=8), 4, 0, threads=1)
stream.set_state(json.loads(sys.argv[1]))
print(hashlib.sha256(b"".join(next(stream).tobytes() for _ in range(3))).hexdigest())
"""


def test_resume_in_a_fresh_process(batches: Any) -> None:
    stream = batches(noise())
    for _ in range(3):
        next(stream)
    state = json.dumps(stream.get_state())
    expected = hashlib.sha256(b"".join(next(stream).tobytes() for _ in range(3))).hexdigest()
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", RESUME, state], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected
    assert done.stderr == ""  # also when threads still run at the end


def test_position_of_other_data_is_refused(batches: Any, refused: Any) -> None:
    state = batches(noise(5)).get_state()
    for other in (batches(noise(4)), batches(noise(5), seed=1), batches(noise(10), shard_count=2)):
        with refused("saved position is of other training data"):
            other.set_state(state)


@pytest.mark.parametrize("blocks", [None, [range(4), range(4, 5), range(5, 9), range(9, 11)]])
def test_shards_share_nothing_and_leave_nothing_out(blocks: Any, batches: Any) -> None:
    parts = []
    for index in range(3):
        shown = numbers(batches(flat_images(11), 1, shard_index=index, shard_count=3, blocks=blocks), 22)
        size = len(set(shown))
        assert rounds(shown, size) == [sorted(set(shown))] * (len(shown) // size)
        parts.append(sorted(set(shown)))
    assert sorted(itertools.chain(*parts)) == list(range(11))
    if blocks is None:
        assert sorted(map(len, parts)) == [3, 4, 4]
    else:
        assert [0, 1, 2, 3, 9, 10] in parts  # blocks 0 and 3 of the first host, whole


def test_hosts_draw_differently(batches: Any) -> None:
    same = noise(1) * 2
    first, second = (batches(same, 1, shard_index=index, shard_count=2) for index in (0, 1))
    assert not np.array_equal(next(first), next(second))


def test_images_of_which_none_can_be_used_end_it(batches: Any, refused: Any) -> None:
    stream = batches(Slow(flat_images(5), rejects=(0, 1, 2, 3, 4)), name="folder/")
    with refused("folder/: not one of 5 images can be used"):
        next(stream)
    with refused("not one of 2 images"):  # of this host
        next(batches(Slow(flat_images(4), rejects=(0, 2)), shard_count=2))


def test_too_few_images_are_refused(batches: Any, refused: Any) -> None:
    with refused("folder/: 0 images are too few"):
        batches([], name="folder/")
    with refused("2 images are too few for shard 2 of 3"):
        batches(flat_images(2), shard_index=2, shard_count=3)
    with refused("4 images in 1 blocks are too few for shard 1 of 2"):
        batches(flat_images(4), shard_index=1, shard_count=2, blocks=[range(4)])
    with refused("a batch of 0 crops"):
        batches(flat_images(2), 0)
    with pytest.raises(ValueError, match="blocks do not cover 4 images"):
        batches(flat_images(4), blocks=[range(3)])


def test_errors_of_images_reach_the_caller(batches: Any) -> None:
    with pytest.raises(ValueError, match="too small for crops of 8"):
        next(batches([np.zeros((5, 9, 3), np.uint8)]))


def test_nothing_after_the_end(batches: Any) -> None:
    stream = batches(noise())
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)
