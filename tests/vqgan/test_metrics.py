"""PSNR and codebook usage by hand-computed values."""

import math

import numpy as np
import pytest

from vqgan.metrics import codebook_usage, psnr


def test_psnr_by_hand() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    others = images.copy()
    others[0] = 255  # mse 255^2: 0 dB
    others[1] = 51  # a fifth of the peak: 20 log10 5
    others[2, 0, 0, 0] = 255  # a twelfth of 255^2: 10 log10 12
    expected = [0.0, 13.979400086720377, 10.791812460476248]
    np.testing.assert_allclose(psnr(images, others), expected, rtol=1e-12)


def test_psnr_does_not_wrap_around() -> None:
    black, white = np.zeros((1, 1, 1, 3), np.uint8), np.full((1, 1, 1, 3), 255, np.uint8)
    assert psnr(black, white) == psnr(white, black) == 0


def test_psnr_of_equal_images_is_infinite() -> None:
    images = np.full((2, 4, 4, 3), 9, np.uint8)
    values = psnr(images, images)
    assert values.shape == (2,)
    assert np.isposinf(values).all()


def test_usage_by_hand() -> None:
    usage = codebook_usage(np.array([2, 0, 1, 1, 0]))
    assert usage.used == 3
    assert usage.entropy == pytest.approx(1.5)
    assert usage.perplexity == pytest.approx(2 * math.sqrt(2))


def test_usage_of_an_even_codebook() -> None:
    usage = codebook_usage(np.full(1024, 7))
    assert (usage.used, usage.entropy, usage.perplexity) == (1024, 10.0, 1024.0)


def test_usage_of_one_code() -> None:
    usage = codebook_usage(np.array([0, 5]))
    assert (usage.used, usage.entropy, usage.perplexity) == (1, 0.0, 1.0)
    assert math.copysign(1, usage.entropy) == 1


@pytest.mark.parametrize("size", [0, 4])
def test_usage_of_nothing(size: int) -> None:
    usage = codebook_usage(np.zeros(size, np.int64))
    assert (usage.used, usage.entropy, usage.perplexity) == (0, 0.0, 0.0)
