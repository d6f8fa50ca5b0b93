"""A residual discriminator with blurred downsampling: one logit per image.

The discriminator of *Analyzing and Improving the Image Quality of StyleGAN* (arXiv 1912.04958, figure 7c
and appendix B). Other than there, weights start at He's scale (arXiv 1502.01852) instead of being scaled
at run time: one learning rate then suits both kinds of discriminator.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.discriminators.architecture import DiscriminatorConfig
from vqgan.discriminators.patch import LEAK, DiscriminatorConv, leaky_relu, level_widths
from vqgan.errors import UserError

BLUR = (1, 3, 3, 1)
GROUP = 4
LAST_SIDE = 4
DEVIATION_EPSILON = 1e-8

# Keep the mean square of activations: before a leaky ReLU, and where none follows.
_HE = nnx.initializers.variance_scaling(2 / (1 + LEAK**2), "fan_in", "normal")
_LINEAR = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")


class StyleGANDiscriminator(nnx.Module):
    """``[B, R, R, C]`` images in [-1, 1] to ``[B, 1]`` logits, R being the configured resolution.

    Residual blocks halve the images until 4 pixels are left; then the spread within groups of images
    joins as a channel, so that a lack of variety shows, and a 4x4 convolution sees all that is left.
    Without spectral normalisation there is no state beside parameters.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        *,
        channels: int = 3,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(
            DiscriminatorConv, spectral_norm=config.spectral_norm, dtype=dtype, rngs=rngs
        )
        halvings = (config.resolution // LAST_SIDE).bit_length() - 1
        widths = level_widths(config.channels, halvings)
        last = widths[-1]
        self.stem = conv(channels, widths[0], 1, kernel_init=_HE)
        self.blocks = nnx.List(
            StyleGANBlock(
                widths[i], widths[i + 1], spectral_norm=config.spectral_norm, dtype=dtype, rngs=rngs
            )
            for i in range(halvings)
        )
        self.mix = conv(last + 1, last, 3, padding=1, kernel_init=_HE)
        self.gather = conv(last, last, LAST_SIDE, kernel_init=_HE)
        self.out = conv(last, 1, 1, kernel_init=_LINEAR)
        self.resolution = config.resolution

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits, float32.

        Raises:
          UserError: the images do not have the configured size.
        """
        self._check(images)
        x = leaky_relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        x = leaky_relu(self.mix(with_deviation(x)))  # (B, 4, 4, C)
        x = leaky_relu(self.gather(x))  # (B, 1, 1, C)
        return self.out(x)[:, 0, 0, :].astype(jnp.float32)

    def _check(self, images: jax.Array) -> None:
        _, height, width, _ = images.shape
        if (height, width) != (self.resolution, self.resolution):
            raise UserError(
                f"images of {width}x{height} pixels do not fit this discriminator: it takes squares of "
                f"{self.resolution} pixels; set discriminator.resolution to the size of the crops"
            )


class StyleGANBlock(nnx.Module):
    """Two 3x3 convolutions, the second of which halves, beside a shortcut that does the same."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        spectral_norm: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(DiscriminatorConv, spectral_norm=spectral_norm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, in_channels, 3, padding=1, kernel_init=_HE)
        self.conv2 = conv(in_channels, out_channels, 3, stride=2, kernel_init=_HE)
        self.shortcut = conv(in_channels, out_channels, 1, kernel_init=_LINEAR, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = leaky_relu(self.conv1(x))  # (B, h, w, in)
        # Padded by 2, the blurred map has h + 1 rows, of which the convolution makes h / 2.
        h = leaky_relu(self.conv2(blur(h, padding=2, stride=1)))  # (B, h/2, w/2, out)
        shortcut = self.shortcut(blur(x, padding=1, stride=2))
        return (h + shortcut) / math.sqrt(2)  # of two parts of equal variance


def blur(x: jax.Array, *, padding: int, stride: int) -> jax.Array:
    """Filters by the low-pass [1, 3, 3, 1] / 8 along height and width, with zeros around (arXiv 1904.11486).

    Sums of shifted copies rather than a convolution by channel, which is slow on a CPU.

    Args:
      x: ``[B, h, w, C]``.
      padding: zeros on each side.
      stride: keep one row and column in so many.

    Returns:
      ``[B, (h + 2 padding - 4) // stride + 1, ..., C]``.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for axis in (1, 2):
        count = x.shape[axis] - len(BLUR) + 1
        shifted = (
            tap / sum(BLUR) * jax.lax.slice_in_dim(x, start, start + count, stride, axis)
            for start, tap in enumerate(BLUR)
        )
        x = sum(shifted, start=jnp.zeros((), x.dtype))
    return x


def with_deviation(x: jax.Array) -> jax.Array:
    """Appends how much the images of a group differ, as one more channel (arXiv 1710.10196, section 3).

    The standard deviation over the group at each place and channel, averaged to one number per group. A
    group is that many consecutive images: the largest divisor of the batch size up to 4. In a group of
    one the channel says nothing, so a batch size divisible by 2 is wise.

    Args:
      x: ``[B, h, w, C]``.

    Returns:
      ``[B, h, w, C + 1]``.
    """
    batch, height, width, channels = x.shape
    group = max(size for size in range(1, GROUP + 1) if batch % size == 0)
    grouped = x.astype(jnp.float32).reshape(batch // group, group, height, width, channels)
    deviation = jnp.sqrt(jnp.var(grouped, axis=1) + DEVIATION_EPSILON)  # (groups, h, w, C)
    spread = jnp.repeat(deviation.mean(axis=(1, 2, 3)), group)[:, None, None, None]  # (B, 1, 1, 1)
    return jnp.concatenate([x, jnp.broadcast_to(spread, (batch, height, width, 1)).astype(x.dtype)], axis=3)
