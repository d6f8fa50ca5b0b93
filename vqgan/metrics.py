"""Figures of quality: PSNR of uint8 images, and how evenly a codebook is used."""

import dataclasses

import numpy as np


def psnr(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, in dB, for uint8 values with peak 255.

    Args:
      images: uint8 ``[N, H, W, 3]``.
      reconstructions: the same shape.

    Returns:
      float64 ``[N]``; infinite where the two are equal.
    """
    difference = images.astype(np.float64) - reconstructions.astype(np.float64)
    mse = np.mean(difference**2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / mse)


@dataclasses.dataclass(frozen=True)
class CodebookUsage:
    """How a set of tokens spreads over the codebook.

    Attributes:
      used: codes that occur at least once.
      entropy: empirical entropy in bits per token.
      perplexity: ``2 ** entropy``, the size of an evenly used codebook of that entropy.
    """

    used: int
    entropy: float
    perplexity: float


def codebook_usage(histogram: np.ndarray) -> CodebookUsage:
    """Usage from the number of times that each code occurs, ``[K]``."""
    counts = histogram[histogram > 0].astype(np.float64)
    if not counts.size:
        return CodebookUsage(used=0, entropy=0.0, perplexity=0.0)
    p = counts / counts.sum()
    entropy = max(0.0, float(-(p * np.log2(p)).sum()))
    return CodebookUsage(used=int(counts.size), entropy=entropy, perplexity=float(2**entropy))
