"""PSNR, L1 and codebook usage by hand-computed values; SSIM against its formula in plain loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from vqgan.metrics.codebook_usage import codebook_usage
from vqgan.metrics.image import mean_absolute_error, mean_psnr, psnr, ssim


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


def test_mean_absolute_error_by_hand() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    others = images.copy()
    others[0] = 255
    others[1, 0, 0] = (3, 6, 12)  # 21 levels over 12 values
    assert mean_absolute_error(images, others).tolist() == [255, 1.75, 0]
    assert mean_absolute_error(others, images).tolist() == [255, 1.75, 0]


def direct_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The formula, window by window, with weights summed one by one."""
    weights = {
        (i, j): math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for i in range(11) for j in range(11)
    }
    total = sum(weights.values())
    values = []
    for channel in range(3):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (part[top : top + 11, left : left + 11, channel].astype(float) for part in (x, y))
                mean_a = sum(w * a[at] for at, w in weights.items()) / total
                mean_b = sum(w * b[at] for at, w in weights.items()) / total
                var_a = sum(w * (a[at] - mean_a) ** 2 for at, w in weights.items()) / total
                var_b = sum(w * (b[at] - mean_b) ** 2 for at, w in weights.items()) / total
                both = sum(w * (a[at] - mean_a) * (b[at] - mean_b) for at, w in weights.items()) / total
                brightness = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
                values.append(brightness * (2 * both + 58.5225) / (var_a + var_b + 58.5225))
    return sum(values) / len(values)


def test_ssim_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (3, 13, 12, 3), np.uint8)
    others = np.clip(images + rng.normal(0, 40, images.shape), 0, 255).astype(np.uint8)
    others[2] = images[2][:, ::-1]
    expected = [direct_ssim(x, y) for x, y in zip(images, others, strict=True)]
    np.testing.assert_allclose(ssim(images, others), expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(others, images), expected, rtol=1e-10)


def test_ssim_of_flat_images_by_hand() -> None:
    images = np.full((3, 11, 11, 3), 100, np.uint8)
    others = images.copy()
    others[1] = 200
    others[2, ..., 0] = 0  # one of three channels; the others are equal
    darker = 6.5025 / (100**2 + 6.5025)
    brighter = (2 * 100 * 200 + 6.5025) / (100**2 + 200**2 + 6.5025)
    np.testing.assert_allclose(ssim(images, others), [1, brighter, (darker + 2) / 3], rtol=1e-9)


def test_ssim_of_equal_and_of_opposite_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 20, 3), np.uint8)
    assert ssim(images, images).tolist() == [1, 1, 1, 1]
    assert (ssim(images, 255 - images) < -0.5).all()
    assert ssim(images[:0], images[:0]).shape == (0,)


def test_ssim_of_images_smaller_than_its_window() -> None:
    for size in [(10, 40), (40, 10)]:
        small = np.zeros((1, *size, 3), np.uint8)
        with pytest.raises(ValueError, match="sides of at least 11"):
            ssim(small, small)


@pytest.mark.parametrize("figure", [ssim, mean_absolute_error])
def test_only_equal_shapes_of_bytes(figure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        figure(images, images[:1])
    with pytest.raises(ValueError, match="must be uint8"):
        figure(images, images.astype(np.float32))
    with pytest.raises(ValueError, match="must be uint8"):
        figure(images[..., :0], images[..., :0])
    with pytest.raises(ValueError, match="must be uint8"):
        figure(np.zeros((2, 16, 16, 17), np.uint8), np.zeros((2, 16, 16, 17), np.uint8))


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


def test_mean_psnr_leaves_out_images_without_error() -> None:
    assert mean_psnr(np.asarray([20.0, np.inf, 30.0])) == 25.0
    assert mean_psnr(np.asarray([np.inf])) == np.inf
