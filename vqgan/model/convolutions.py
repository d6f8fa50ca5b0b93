"""3x3 convolutions as a processor computes them fast: those of few channels, and those after an enlargement.

A processor convolves by a matrix product of image patches with the kernel. Its columns are the output's
channels: where these are few, or there are few inputs, most of its vector units lie idle. And where each
pixel was repeated before, most products are computed twice. Both are rearranged here into larger or fewer
products, and many channels are left to :mod:`vqgan.model.winograd`; accelerators have kernels of their own
and get the convolution as it is written. ``benchmarks/convolutions.py`` shows what each gains.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vqgan.model.winograd import LAYOUT, block_rows, convolve_columns

FULL_WIDTH = 32
"""Output channels from which on the matrix product has no idle units to fill."""
FEW = 4
"""Channels of an image, at the first layer or the last: there, four pixels are computed as one."""


def on_processor() -> bool:
    """Returns whether programs that are being traced will run on a processor."""
    return jax.default_backend() == "cpu"


def convolve_images(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    **settings: Any,
) -> jax.Array:
    """Convolves like ``jax.lax.conv_general_dilated``, whose place it takes in a layer.

    On a processor, neighbouring pixels of a 3x3 convolution with few channels are computed as one pixel with
    more of them: a kernel that is wider by zeros, at a stride of as many pixels.

    Args:
      x: ``[B, H, W, C]``.
      kernel: ``[kh, kw, C, D]``.
      strides: of the window.
      padding: as JAX takes it.
      lhs_dilation: of ``x``.
      rhs_dilation: of the kernel.
      **settings: passed on.

    Returns:
      ``[B, H', W', D]``: of the same numbers, in sums that may be ordered differently.
    """
    pixels = _pixels_at_once(kernel.shape, x.shape[2]) if on_processor() else 1
    plain = (
        tuple(strides) == (1, 1)
        and all(d == 1 for d in (*lhs_dilation, *rhs_dilation))
        and list(padding) == [(1, 1), (1, 1)]
    )
    rows = block_rows(x.shape, kernel.shape, x.dtype) if plain else 0
    if rows:
        return convolve_columns(x, kernel, rows)
    if pixels == 1 or not plain:
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, lhs_dilation, rhs_dilation, **settings
        )
    # (3, 3 + pixels - 1, C, pixels, D): output pixel i of a window begins at its column i
    shifted = [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
    wide = jnp.stack(shifted, axis=3).reshape(3, 2 + pixels, kernel.shape[2], -1)
    y = jax.lax.conv_general_dilated(
        x, wide, (1, pixels), padding, **settings
    )  # (B, H, W / pixels, pixels D)
    return y.reshape(*x.shape[:3], kernel.shape[3])


def _pixels_at_once(kernel: Sequence[int], width: int) -> int:
    """Returns how many neighbouring pixels pay to be computed as one."""
    height_width, (inputs, outputs) = tuple(kernel[:2]), kernel[2:]
    if height_width != (3, 3) or max(inputs, outputs) > FULL_WIDTH:
        return 1
    pixels = 4 if min(inputs, outputs) <= FEW else 2
    return pixels if outputs < FULL_WIDTH and width % pixels == 0 else 1


def convolve_doubled(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Repeats each pixel of ``[B, H, W, C]`` twice in both directions and convolves with ``[3, 3, C, D]``.

    Of the nine neighbours of a pixel of the enlarged image only four differ, so a 2x2 kernel of sums does:
    one for each of the four places that a pixel can have among its repetitions, at the small size. That
    is 4/9 of the products.

    Returns:
      ``[B, 2 H, 2 W, D]``, up to the rounding of the sums of weights.
    """
    batch, height, width, _ = x.shape
    phases = [
        jax.lax.conv_general_dilated(
            x, part, (1, 1), ((1 - row, row), (1 - column, column)), dimension_numbers=LAYOUT
        )
        for row, rows in enumerate(_neighbour_sums(kernel, 0))
        for column, part in enumerate(_neighbour_sums(rows, 1))
    ]
    y = jnp.stack(phases, axis=3).reshape(batch, height, width, 2, 2, -1)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)  # (B, 2 H, 2 W, D)
    return y if bias is None else y + bias[None, None, None, :]


def _neighbour_sums(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Adds up what falls on one pixel: for its first repetition, then for its second."""
    before, middle, after = jnp.split(kernel, 3, axis)
    return (
        jnp.concatenate([before, middle + after], axis),
        jnp.concatenate([before + middle, after], axis),
    )
