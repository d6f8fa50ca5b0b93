"""Distances between images and their reconstructions: PSNR, L1, SSIM.

All are of uint8 ``[N, H, W, C]`` and computed in float64, one value for each image. A model's output is
rounded to uint8 before it is measured, as a file of it would be.
"""

import math

import numpy as np

from vqgan.channels import MOST_CHANNELS

SSIM_WINDOW = 11
"""Side of SSIM's window in pixels, and the smallest side of an image that it is defined for."""


def psnr(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Computes the peak signal-to-noise ratio of each image, in dB, for uint8 values with peak 255.

    Args:
      images: uint8 ``[N, H, W, C]``.
      reconstructions: the same shape.

    Returns:
      float64 ``[N]``; infinite where the two are equal.
    """
    difference = images.astype(np.float64) - reconstructions.astype(np.float64)
    mse = np.mean(difference**2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / mse)


def mean_absolute_error(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Averages over pixels and channels the absolute difference (L1), in levels of 0 to 255.

    Divide by 255 for values in [0, 1], by 127.5 for values in [-1, 1].

    Args:
      images: uint8 ``[N, H, W, C]``.
      reconstructions: the same shape.

    Returns:
      float64 ``[N]`` in [0, 255].
    """
    _check_images(images, reconstructions)
    difference = images.astype(np.float64) - reconstructions.astype(np.float64)
    return np.asarray(np.mean(np.abs(difference), axis=(1, 2, 3)))


def ssim(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Computes structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004, equation 13, averaged as in 17).

    As the paper has it: a Gaussian window of 11x11 with standard deviation 1.5 and sum 1, weighted
    moments without Bessel's correction, K1 = 0.01, K2 = 0.03, data range 255. Windows that reach over
    the border are left out, images are not reduced first. The paper is about grey images: here each of
    the channels, such as R, G and B, is compared by itself, and the image's value is the mean over them.

    Args:
      images: uint8 ``[N, H, W, C]``, sides at least 11.
      reconstructions: the same shape.

    Returns:
      float64 ``[N]``, 1 where the two are equal, else below.

    Raises:
      ValueError: other shapes or types.
    """
    _check_images(images, reconstructions)
    if min(images.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"images {images.shape}: SSIM needs sides of at least {SSIM_WINDOW} pixels")
    # One image at a time: its moments fit into a processor's cache.
    return np.array([_ssim(x, y) for x, y in zip(images, reconstructions, strict=True)], np.float64)


def _ssim(image: np.ndarray, reconstruction: np.ndarray) -> float:
    """Returns SSIM of ``[H, W, C]``."""
    x, y = image.astype(np.float64), reconstruction.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = _windowed(x * y) - product
    variances = _windowed(x**2 + y**2) - squares
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * product + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((squares + c1) * (variances + c2))))


def _windowed(values: np.ndarray) -> np.ndarray:
    """Returns means under the Gaussian window, ``[H, W, C]`` to ``[H - 10, W - 10, C]``."""
    radius = SSIM_WINDOW // 2
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    height, width = values.shape[0] - 2 * radius, values.shape[1] - 2 * radius
    # The window is the product of a column and a row; each is symmetric.
    rows = weights[radius] * values[radius : radius + height]
    for i in range(radius):
        mirrored = SSIM_WINDOW - 1 - i
        rows += weights[i] * (values[i : i + height] + values[mirrored : mirrored + height])
    means: np.ndarray = weights[radius] * rows[:, radius : radius + width]
    for i in range(radius):
        mirrored = SSIM_WINDOW - 1 - i
        means += weights[i] * (rows[:, i : i + width] + rows[:, mirrored : mirrored + width])
    return means


def _check_images(images: np.ndarray, reconstructions: np.ndarray) -> None:
    for array in (images, reconstructions):
        if array.dtype != np.uint8 or array.ndim != 4 or not 1 <= array.shape[-1] <= MOST_CHANNELS:
            raise ValueError(f"images must be uint8 [N, H, W, C], got {array.dtype} {array.shape}")
    if images.shape != reconstructions.shape:
        raise ValueError(f"images {images.shape} and reconstructions {reconstructions.shape} differ in shape")


def mean_psnr(values: np.ndarray) -> float:
    """Averages the images' PSNR, in dB, over those that differ from their original at all.

    An image that equals its original has no finite PSNR. Where all do, the mean is infinite.

    Args:
      values: ``[N]``, at least one, as :func:`psnr` gives them.
    """
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if len(finite) else math.inf
