"""What the discriminators are made of, in NHWC layout: convolutions, spectrally normalised or not."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

LEAK = 0.2
EPSILON = 1e-12
MAX_MULTIPLE = 8


class DiscriminatorConv(nnx.Module):
    """A square convolution, padded alike on all sides, whose kernel may be spectrally normalised.

    Kernel and normalisation are float32; what is multiplied is of type ``dtype``. The bias starts at 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        kernel_init: nnx.Initializer,
        stride: int = 1,
        padding: int = 0,
        use_bias: bool = True,
        spectral_norm: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_channels,), jnp.float32)) if use_bias else None
        self.spectral = SpectralNorm(out_channels, rngs=rngs) if spectral_norm else None
        self.stride = stride
        self.padding = padding
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        if self.spectral is not None:
            kernel = self.spectral(kernel)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)[None, None, None, :]


class SpectralNorm(nnx.Module):
    """Divides a kernel by its largest singular value (arXiv 1802.05957), by power iteration (algorithm 1).

    A kernel counts as a matrix of all its inputs (height, width and channels) by its output channels.
    The vector that the iteration starts from is kept from call to call in a ``BatchStat``, so it is no
    parameter. In training mode each call goes one round further; after ``eval()`` it stays as it is.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        start = jax.random.normal(rngs.params(), (channels,), jnp.float32)
        self.vector = nnx.BatchStat(_unit(start))
        self.deterministic = False  # set by train() and eval()

    def __call__(self, kernel: jax.Array) -> jax.Array:
        """Divides a kernel ``[..., C]`` by its norm. Gradients go through the norm."""
        matrix = kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])  # (inputs, C)
        right = self.vector[...]  # (C,)
        left, moved = _power_iteration(jax.lax.stop_gradient(matrix), right)
        if not self.deterministic:
            right = self.vector[...] = moved
        norm = _dot(left, _dot(matrix, right))
        return kernel / (norm + EPSILON)


def leaky_relu(x: jax.Array) -> jax.Array:
    """Returns ``x`` with a slope of 1 above 0 and of 0.2 below."""
    return nnx.leaky_relu(x, LEAK)


def level_widths(channels: int, halvings: int) -> list[int]:
    """Returns the channels at each level, highest resolution first: doubled each time, at most 8 times."""
    return [channels * min(2**level, MAX_MULTIPLE) for level in range(halvings + 1)]


def _power_iteration(matrix: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One round: the left singular vector ``[inputs]`` of ``right``, and the right one ``[C]`` of that."""
    left = _unit(_dot(matrix, right))
    return left, _unit(_dot(matrix.T, left))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators multiply in TF32 by default, whose error would be that of every kernel's size.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _unit(vector: jax.Array) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + EPSILON)
