"""Sheets: every image is where it belongs."""

import numpy as np
import pytest

from vqgan.image_grid import GAP, GREY, MARGIN, tile_images, tile_pairs


@pytest.mark.parametrize(("count", "columns"), [(1, 8), (3, 8), (8, 8), (9, 8), (5, 2), (3, 1)])
def test_places(count: int, columns: int) -> None:
    rng = np.random.default_rng(count)
    originals, reconstructions = rng.integers(0, 256, (2, count, 4, 6, 3), dtype=np.uint8)
    sheet = tile_pairs(originals, reconstructions, columns)
    across = min(count, columns)
    down = (count + across - 1) // across
    pair = 4 + MARGIN + 4
    assert sheet.shape == (down * pair + (down - 1) * GAP, across * 6 + (across - 1) * MARGIN, 3)
    assert sheet.dtype == np.uint8
    rest = np.ones(sheet.shape, bool)
    for index in range(count):
        top, left = index // across * (pair + GAP), index % across * (6 + MARGIN)
        for pixels, y in ((originals[index], top), (reconstructions[index], top + 4 + MARGIN)):
            np.testing.assert_array_equal(sheet[y : y + 4, left : left + 6], pixels)
            rest[y : y + 4, left : left + 6] = False
    assert (sheet[rest] == GREY).all()


def test_what_is_no_pair() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for originals, reconstructions in (
        (images, images[:1]),
        (images[:0], images[:0]),
        (images[0], images[0]),
        (images, images.astype(np.float32)),
    ):
        with pytest.raises(ValueError, match="expected"):
            tile_pairs(originals, reconstructions)


def test_contact_sheet() -> None:
    images = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    sheet = tile_images(images, columns=3)
    assert sheet.shape == (2 + MARGIN + 2, 3 * 3 + 2 * MARGIN, 3)
    np.testing.assert_array_equal(sheet[:2, 3 + MARGIN : 6 + MARGIN], images[1])
    np.testing.assert_array_equal(sheet[2 + MARGIN :, :3], images[3])
    assert (sheet[2 + MARGIN :, 2 * (3 + MARGIN) :] == GREY).all()  # there is no sixth
    assert tile_images(images[:2], columns=3).shape == (2, 3 * 2 + MARGIN, 3)
    for wrong in (images[:0], images[0], images.astype(np.float32)):
        with pytest.raises(ValueError, match="expected uint8"):
            tile_images(wrong)
