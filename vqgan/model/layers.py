"""Building blocks of the encoder and the decoder, in NHWC layout.

The blocks are those of *Taming Transformers* (arXiv 2012.09841, appendix B), which took them from
*Denoising Diffusion Probabilistic Models* (arXiv 2006.11239).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vqgan.config import SPATIAL_NORM_GROUPS
from vqgan.model.convolutions import convolve_doubled, convolve_images, on_processor

GROUP_NORM_EPSILON = 1e-6


def conv(
    in_channels: int,
    out_channels: int,
    size: int,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = True,
) -> nnx.Conv:
    """Makes a ``size`` by ``size`` convolution of stride 1 that keeps height and width."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        padding=size // 2,
        use_bias=use_bias,
        dtype=dtype,
        conv_general_dilated=convolve_images,
        rngs=rngs,
    )


class GroupNorm(nnx.Module):
    """Group normalisation (arXiv 1803.08494) whose variance is the mean square of the centred values.

    It sums over positions first and over the channels of a group last. That keeps channels innermost,
    which XLA vectorises: on a CPU several times faster than reducing a split channel axis. Flax's
    default variance, E[x^2] - E[x]^2, cancels digits that tokens of published checkpoints need.
    """

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (channels,)))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (channels,)))
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        """Normalises ``[B, h, w, C]``; ``codes`` are for :class:`SpatialNorm`."""
        scale, bias = (param[...][None, None, None, :] for param in (self.scale, self.bias))
        return _normalize_groups(x, self.groups, scale, bias).astype(self.dtype)


def _normalize_groups(x: jax.Array, groups: int, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalises ``[B, h, w, C]`` in float32; ``scale`` and ``bias`` are ``[1 or B, 1, 1, C]``."""
    x = x.astype(jnp.float32)
    centred = x - _group_mean(x, groups)
    variance = _group_mean(centred**2, groups)
    return centred * (jax.lax.rsqrt(variance + GROUP_NORM_EPSILON) * scale) + bias


def _group_mean(x: jax.Array, groups: int) -> jax.Array:
    """Reduces ``[B, h, w, C]`` to ``[B, 1, 1, C]``: each channel gets the mean of its group."""
    batch, _, _, channels = x.shape
    by_channel = x.mean(axis=(1, 2))  # (B, C)
    by_group = by_channel.reshape(batch, groups, -1).mean(axis=2)  # (B, G)
    return jnp.repeat(by_group, channels // groups, axis=1)[:, None, None, :]


class AdaptiveGroupNorm(nnx.Module):
    """Group normalisation whose scale and bias are read off the codes of the whole image.

    As Open-MAGVIT2 (arXiv 2409.04410) has it: the scale is a linear map of the codes' deviation over all
    places, with the variance of n - 1, and the bias one of their mean.
    """

    def __init__(self, code_dim: int, channels: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gamma = nnx.Linear(code_dim, channels, rngs=rngs)
        self.beta = nnx.Linear(code_dim, channels, rngs=rngs)
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: jax.Array, codes: jax.Array) -> jax.Array:
        """Normalises ``[B, H, W, C]`` by ``[B, h, w, D]`` codes."""
        codes = codes.astype(jnp.float32)
        mean = codes.mean(axis=(1, 2))  # (B, D)
        places = codes.shape[1] * codes.shape[2]
        squares = jnp.sum((codes - mean[:, None, None, :]) ** 2, axis=(1, 2))
        deviation = jnp.sqrt(squares / max(places - 1, 1) + GROUP_NORM_EPSILON)
        scale, bias = (
            layer(statistic)[:, None, None, :]  # (B, 1, 1, C)
            for layer, statistic in ((self.gamma, deviation), (self.beta, mean))
        )
        return _normalize_groups(x, self.groups, scale, bias).astype(self.dtype)


class SpatialNorm(GroupNorm):
    """Group normalisation that the codes at each place scale and shift.

    *MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation* (arXiv 2209.09002), equation 4.
    Codes are repeated to the size of what is normalised, after the 1x1 convolutions, which do not mind.
    """

    def __init__(self, channels: int, code_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(channels, SPATIAL_NORM_GROUPS, dtype=dtype, rngs=rngs)
        self.gain = conv(code_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.shift = conv(code_channels, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        """Normalises ``[B, H, W, C]``; ``codes`` are ``[B, h, w, D]`` of an h and w that divide its sides."""
        assert codes is not None
        factor = x.shape[1] // codes.shape[1]
        gain, shift = (repeat_pixels(layer(codes), factor) for layer in (self.gain, self.shift))
        return super().__call__(x) * gain + shift


def repeat_pixels(x: jax.Array, factor: int) -> jax.Array:
    """Enlarges ``[B, h, w, C]`` by repeating rows and columns ``factor`` times."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def make_norm(
    channels: int, groups: int, code_channels: int | None, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> GroupNorm:
    """Makes a group normalisation, a spatial one where ``code_channels`` says of what codes."""
    if code_channels is None:
        return GroupNorm(channels, groups, dtype=dtype, rngs=rngs)
    return SpatialNorm(channels, code_channels, dtype=dtype, rngs=rngs)


class ResBlock(nnx.Module):
    """Two normalised 3x3 convolutions beside a shortcut.

    With ``shortcut_from_branch`` a shortcut that changes the width reads what the second convolution
    gave instead of the block's input, as the published MaskGIT tokenizer (arXiv 2202.04200) does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm_groups: int,
        dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        shortcut_from_branch: bool = False,
        code_channels: int | None = None,
    ):
        self.shortcut_from_branch = shortcut_from_branch
        self.norm1 = make_norm(in_channels, norm_groups, code_channels, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, out_channels, 3, dtype=dtype, rngs=rngs, use_bias=use_bias)
        self.norm2 = make_norm(out_channels, norm_groups, code_channels, dtype=dtype, rngs=rngs)
        # Without dropout there is no random state either, so inference modules hold parameters only.
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.conv2 = conv(out_channels, out_channels, 3, dtype=dtype, rngs=rngs, use_bias=use_bias)
        width = out_channels if shortcut_from_branch else in_channels
        self.shortcut = (
            conv(width, out_channels, 1, dtype=dtype, rngs=rngs, use_bias=use_bias)
            if in_channels != out_channels
            else None
        )

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        h = self.conv1(nnx.silu(self.norm1(x, codes)))  # (B, h, w, out)
        h = nnx.silu(self.norm2(h, codes))
        if self.dropout is not None:
            h = self.dropout(h)
        h = self.conv2(h)
        if self.shortcut is not None:
            x = self.shortcut(h if self.shortcut_from_branch else x)
        return x + h


class Attention(nnx.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(
        self,
        channels: int,
        *,
        norm_groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        code_channels: int | None = None,
    ):
        self.norm = make_norm(channels, norm_groups, code_channels, dtype=dtype, rngs=rngs)
        self.query = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.key = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.value = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.out = conv(channels, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        batch, height, width, channels = x.shape
        normed = self.norm(x, codes)
        q, k, v = (
            layer(normed).reshape(batch, height * width, 1, channels)  # (B, h*w, heads, D)
            for layer in (self.query, self.key, self.value)
        )
        attended = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + self.out(attended)


class LinearAttention(nnx.Module):
    """Single-head attention whose cost is linear in the number of positions.

    Keys are normalised over positions, then queries read the sum of their products with the values:
    the form of *Efficient Attention* (arXiv 1812.01243) without its normalisation of the queries, as
    latent-diffusion uses it: no group normalisation, no residual connection, no bias on the way in.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = conv(channels, 3 * channels, 1, dtype=dtype, rngs=rngs, use_bias=False)
        self.out = conv(channels, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        batch, height, width, channels = x.shape
        q, k, v = jnp.split(self.qkv(x).reshape(batch, height * width, 3 * channels), 3, axis=-1)
        weights = jax.nn.softmax(k.astype(jnp.float32), axis=1).astype(k.dtype)  # over positions
        context = jnp.einsum("bnd,bne->bde", weights, v)  # (B, D, D), whatever the number of positions
        return self.out(jnp.einsum("bde,bnd->bne", context, q).reshape(x.shape))


class Downsample(nnx.Module):
    """Halves height and width.

    The convolution is padded on the right and bottom only, as in the reference; "SAME" would differ. A
    ``symmetric`` one is padded on all sides.
    """

    def __init__(
        self,
        channels: int,
        *,
        with_conv: bool,
        symmetric: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        padding = (1, 1) if symmetric else (0, 1)
        self.conv = (
            nnx.Conv(
                channels,
                channels,
                (3, 3),
                strides=2,
                padding=(padding, padding),
                dtype=dtype,
                rngs=rngs,
            )
            if with_conv
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.conv is not None:
            return self.conv(x)
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class Upsample(nnx.Module):
    """Doubles height and width by repetition, then smooths with a learned 3x3 convolution."""

    def __init__(self, channels: int, *, with_conv: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, dtype=dtype, rngs=rngs) if with_conv else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.conv is None or not on_processor():
            x = repeat_pixels(x, 2)
            return x if self.conv is None else self.conv(x)
        bias = None if self.conv.bias is None else self.conv.bias[...]
        x, kernel, bias = self.conv.promote_dtype((x, self.conv.kernel[...], bias), dtype=self.conv.dtype)
        return convolve_doubled(x, kernel, bias)


class SubPixelUpsample(nnx.Module):
    """Doubles height and width: a 3x3 convolution gives each pixel the channels of four.

    *Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
    Network* (arXiv 1609.05158). The four are the outer part of the channels, row by row.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(channels, 4 * channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = self.conv(x).reshape(batch, height, width, 2, 2, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)


def haar_split(x: jax.Array, patch: int) -> jax.Array:
    """Turns ``[B, H, W, C]`` into wavelets of patches, ``[B, H / patch, W / patch, C * patch**2]``.

    Each step of the Haar transform (Haar, 1910) halves the sides and gives the sums and differences of
    neighbours, first along the width: channels are low-low, low-high, high-low, high-high. As in
    Cosmos-Tokenizer each is halved, so that values stay in the range of pixels.
    """
    for _ in range(patch.bit_length() - 1):
        halves = _haar_pair(x[:, :, 0::2], x[:, :, 1::2])
        parts = [part for half in halves for part in _haar_pair(half[:, 0::2], half[:, 1::2])]
        x = jnp.concatenate(parts, axis=-1) / 2
    return x


def haar_merge(x: jax.Array, patch: int) -> jax.Array:
    """Undoes :func:`haar_split`."""
    for _ in range(patch.bit_length() - 1):
        parts = jnp.split(x, 4, axis=-1)
        low, high = (_interleave(*_haar_pair(*parts[i : i + 2]), axis=1) for i in (0, 2))
        x = _interleave(*_haar_pair(low, high), axis=2) * 2
    return x


def _haar_pair(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (first + second) * math.sqrt(0.5), (first - second) * math.sqrt(0.5)


def _interleave(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
    """Puts the rows (or columns) of two arrays in turns."""
    shape = list(first.shape)
    shape[axis] *= 2
    return jnp.stack([first, second], axis=axis + 1).reshape(shape)
