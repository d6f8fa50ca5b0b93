"""PatchGAN: a convolutional discriminator of overlapping patches.

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
from vqgan.discriminators.convolution import DiscriminatorConv, leaky_relu, level_widths
from vqgan.errors import UserError

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
    """``[B, H, W, 3]`` images in [-1, 1] to ``[B, h, w, 1]`` logits, one per patch.

    4x4 convolutions: ``layers`` that halve height and width, then two that take one row and one column
    each, so h is H / 2^layers - 2. The inner ones have BatchNorm. In training mode it normalises by the
    statistics of the whole batch, across devices too under :func:`jax.jit`, and moves its running
    averages, which it normalises by after ``eval()``. With spectral normalisation there is no BatchNorm.
    """

    def __init__(self, config: DiscriminatorConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        widths = level_widths(config.channels, config.layers)
        common: dict[str, Any] = {"spectral_norm": config.spectral_norm, "dtype": dtype, "rngs": rngs}
        first = PatchBlock(3, widths[0], stride=2, norm=False, **common)
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
        """Logits, float32.

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
