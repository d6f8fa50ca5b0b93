"""What every network for Fréchet distances has in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose pooled features a Fréchet distance compares.

    Attributes:
      name: short name of network and weights, for file and scalar names.
      distance: what the Fréchet distance over these features is called. Only Inception with the weights
        of the original gives "FID"; figures over other networks or weights are not comparable with it.
      dimension: number of features D.
      weights: arrays of the network, a pytree.
      forward: ``(weights, uint8 [N, H, W, 3])`` to float32 ``[N, D]``, compiled once per shape.
    """

    name: str
    distance: str
    dimension: int
    weights: Any
    forward: Callable[[Any, Any], jax.Array]

    def features(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Features of images of any size, which the network's own rule resizes.

        Args:
          images: uint8 ``[N, H, W, 3]``. Another shape is another compilation: keep N fixed.

        Returns:
          float32 ``[N, D]``.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 [N, H, W, 3], not {images.dtype} {images.shape}")
        return self.forward(self.weights, images)


def convolve(
    x: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    stride: int = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "VALID",
    groups: int = 1,
) -> jax.Array:
    """A convolution with bias in full float32, which accelerators do not use unless told to.

    Args:
      x: float32 ``[N, H, W, C]``.
      weights: HWIO kernel and bias.
      stride: in both directions.
      padding: "VALID", "SAME" in TensorFlow's sense, or before and behind in both directions.
      groups: number of groups of channels; C for a depthwise convolution.
    """
    kernel, bias = weights
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=jax.lax.Precision.HIGHEST,
    )
    return y + bias[None, None, None, :]
