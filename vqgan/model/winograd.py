"""3x3 convolutions of many channels with half the products, for a processor that encodes or decodes.

*Fast Algorithms for Convolutional Neural Networks* (arXiv 1509.09308): by F(4, 3), Winograd's minimal
filtering, four neighbouring outputs of a filter of three taps take six products instead of twelve. It is
applied to columns alone: each of six sums of rows is convolved with a 1x3 kernel, which XLA does as fast
as any other. On both axes a quarter of the products would do, but XLA's loops over 36 sums cost what that
saves. ``benchmarks/convolutions.py`` shows what layers and codecs gain.
"""

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

LAYOUT = ("NHWC", "HWIO", "NHWC")
OUTPUTS = 4
"""Rows that are computed together, of six rows of input."""
LEAST_CHANNELS = 128
"""On either side; with fewer, sums of rows cost what products save."""
LEAST_PIXELS = 1024
WEIGHTS_PER_PIXEL = 64
"""Products of input and output channels that a pixel must stand for, at most: the kernel's own sums are made
anew in each call, and read once for each block of rows."""

# Whether programs that are being traced are for one core; None where convolutions are left as they are
_one_core: contextvars.ContextVar[bool | None] = contextvars.ContextVar("one_core", default=None)


def with_fewer_products(function: Callable[..., Any], one_core: bool) -> Callable[..., Any]:
    """Returns the function, to be traced for a processor, with convolutions by :func:`convolve_columns`.

    Only what is never differentiated is to be traced so.

    Args:
      function: of arrays.
      one_core: rows are computed in blocks that stay in a core's caches, and not at once. Results are the
        same to the last bit.
    """

    def traced(*arguments: Any) -> Any:
        token = _one_core.set(one_core)
        try:
            return function(*arguments)
        finally:
            _one_core.reset(token)

    return traced


def block_rows(shape: Sequence[int], kernel: Sequence[int], dtype: Any) -> int:
    """Returns the rows, in fours, of a block of :func:`convolve_columns`; 0 where it does not pay.

    Args:
      shape: of the input, ``[B, H, W, C]``.
      kernel: shape of a kernel for stride 1, ``[kh, kw, C, D]``.
      dtype: of both.
    """
    one_core = _one_core.get()
    _, height, width, _ = shape
    size, channels = tuple(kernel[:2]), kernel[2:]
    least = channels[0] * channels[1] / WEIGHTS_PER_PIXEL
    if one_core is None or size != (3, 3) or dtype != jnp.float32 or min(channels) < LEAST_CHANNELS:
        return 0
    if height % OUTPUTS or height * width < max(LEAST_PIXELS, least):
        return 0
    fours = height // OUTPUTS
    if not one_core:
        return fours
    blocks = [rows for rows in range(1, fours + 1) if fours % rows == 0]
    return next((rows for rows in blocks if rows * width >= least), fours)


def convolve_columns(x: jax.Array, kernel: jax.Array, rows: int) -> jax.Array:
    """Convolves ``[B, H, W, C]`` with ``[3, 3, C, D]`` at stride 1 and a border of one pixel.

    Args:
      x: of a height that ``4 rows`` divides.
      kernel: weights.
      rows: of a block, in fours.

    Returns:
      ``[B, H, W, D]``, up to rounding: of outputs about 1, some 1e-5.
    """
    batch, height, width, _ = x.shape
    fours = height // OUTPUTS
    kernels = _kernel_sums(kernel)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))

    def add_block(number: jax.Array, y: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(padded, number * rows * OUTPUTS, rows * OUTPUTS + 2, 1)
        taps = [part[:, i : i + (rows - 1) * OUTPUTS + 1 : OUTPUTS] for i in range(OUTPUTS + 2)]
        products = [
            jax.lax.conv_general_dilated(row, weights, (1, 1), ((0, 0), (1, 1)), dimension_numbers=LAYOUT)
            for row, weights in zip(_input_sums(*taps), kernels, strict=True)
        ]
        # one by one: XLA would put the four together value by value, which is slower than all the rest
        for place, row in enumerate(_output_sums(*products)):
            y = jax.lax.dynamic_update_slice(y, row[:, :, None], (0, number * rows, place, 0, 0))
        return y

    y = jnp.zeros((batch, fours, OUTPUTS, width, kernel.shape[3]), x.dtype)
    return jax.lax.fori_loop(0, fours // rows, add_block, y).reshape(batch, height, width, -1)


def _kernel_sums(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Returns G g of the paper, section 4.3, for the rows of a kernel."""
    first, middle, last = jnp.split(kernel, 3)
    outer, inner = (first + last) / 6, middle / 6
    outer_wide, inner_wide = first / 24 + last / 6, middle / 12
    return (
        first / 4,
        -(outer + inner),
        inner - outer,
        outer_wide + inner_wide,
        outer_wide - inner_wide,
        last,
    )


def _input_sums(*d: jax.Array) -> tuple[jax.Array, ...]:
    """Returns B^T d of the paper, section 4.3, for six rows."""
    even, odd = d[4] - 4 * d[2], d[3] - 4 * d[1]
    even_wide, odd_wide = d[4] - d[2], 2 * (d[3] - d[1])
    return (
        4 * (d[0] - d[2]) - d[2] + d[4],
        even + odd,
        even - odd,
        even_wide + odd_wide,
        even_wide - odd_wide,
        4 * (d[1] - d[3]) - d[3] + d[5],
    )


def _output_sums(*m: jax.Array) -> tuple[jax.Array, ...]:
    """Returns A^T m of the paper, section 4.3: four rows."""
    even, odd, even_wide, odd_wide = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return m[0] + even + even_wide, odd + 2 * odd_wide, even + 4 * even_wide, odd + 8 * odd_wide + m[5]
