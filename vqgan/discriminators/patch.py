"""PatchGAN: a convolutional discriminator of overlapping patches; and what all discriminators are made of.

*Image-to-Image Translation with Conditional Adversarial Networks* (arXiv 1611.07004, section 6.1.2), with
the layers and the initialisation of its reference implementation, which that of *Taming Transformers*
(arXiv 2012.09841) took over.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.discriminators.architecture import DiscriminatorConfig
from vqgan.errors import UserError

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
    """Returns one round.

    The left singular vector ``[inputs]`` of ``right``, and the right one ``[C]`` of that.
    """
    left = _unit(_dot(matrix, right))
    return left, _unit(_dot(matrix.T, left))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators multiply in TF32 by default, whose error would be that of every kernel's size.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _unit(vector: jax.Array) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + EPSILON)


INIT_STD = 0.02
BATCH_NORM_EPSILON = 1e-5
# What torch calls a momentum of 0.1, its default: the share that the past keeps.
BATCH_NORM_MOMENTUM = 0.9

_conv = functools.partial(
    DiscriminatorConv,
    size=4,
    kernel_init=nnx.initializers.normal(INIT_STD),
    padding=1,  # on both sides, as torch pads; "SAME" would shift a stride of 1
)


class PatchDiscriminator(nnx.Module):
    """``[B, H, W, C]`` images in [-1, 1] to ``[B, h, w, 1]`` logits, one per patch.

    4x4 convolutions: ``layers`` that halve height and width, then two that take one row and one column
    each, so h is H / 2^layers - 2. The inner ones have BatchNorm. In training mode it normalises by the
    statistics of the whole batch, across devices too under :func:`jax.jit`, and moves its running
    averages, which it normalises by after ``eval()``. With spectral normalisation there is no BatchNorm.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        *,
        channels: int = 3,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = level_widths(config.channels, config.layers)
        common: dict[str, Any] = {"spectral_norm": config.spectral_norm, "dtype": dtype, "rngs": rngs}
        first = PatchBlock(channels, widths[0], stride=2, norm=False, **common)
        inner = [
            PatchBlock(
                widths[level - 1],
                widths[level],
                stride=2 if level < config.layers else 1,
                norm=not config.spectral_norm,
                **common,
            )
            for level in range(1, config.layers + 1)
        ]
        self.blocks = nnx.List([first, *inner])
        self.out = _conv(widths[-1], 1, **common)
        self.layers, self.least_side = config.layers, config.least_side

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits, float32.

        Raises:
          UserError: the images are too small to hold a patch.
        """
        self._check(images)
        x = images
        for block in self.blocks:
            x = block(x)
        return self.out(x).astype(jnp.float32)  # (B, h, w, 1)

    def _check(self, images: jax.Array) -> None:
        _, height, width, _ = images.shape
        least = self.least_side
        if min(height, width) < least:
            raise UserError(
                f"images of {width}x{height} pixels are too small for this discriminator: "
                f"discriminator.layers={self.layers} needs {least} pixels a side; take larger crops or "
                "fewer layers"
            )


class PatchBlock(nnx.Module):
    """Convolution, BatchNorm unless ``norm`` is off, leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: bool,
        spectral_norm: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = _conv(
            in_channels,
            out_channels,
            stride=stride,
            use_bias=not norm,  # BatchNorm has its own
            spectral_norm=spectral_norm,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = _batch_norm(out_channels, rngs=rngs) if norm else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)  # (B, h, w, out)
        if self.norm is not None:
            x = self.norm(x.astype(jnp.float32)).astype(self.dtype)
        return leaky_relu(x)


def _batch_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels,
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        scale_init=_scale_init,
        use_fast_variance=False,
        dtype=jnp.float32,
        rngs=rngs,
    )


def _scale_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return 1 + INIT_STD * jax.random.normal(key, shape, dtype)
