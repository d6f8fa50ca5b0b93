"""What the discriminators are made of, in NHWC layout."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.discriminators.spectral import SpectralNorm

LEAK = 0.2
MAX_MULTIPLE = 8


class Conv(nnx.Module):
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


def leaky_relu(x: jax.Array) -> jax.Array:
    """The slope is 1 above 0 and 0.2 below."""
    return nnx.leaky_relu(x, LEAK)


def level_widths(channels: int, halvings: int) -> list[int]:
    """Channels at each level from the highest resolution down: doubled each time, at most 8 times."""
    return [channels * min(2**level, MAX_MULTIPLE) for level in range(halvings + 1)]
