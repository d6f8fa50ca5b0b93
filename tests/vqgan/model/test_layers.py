"""Each layer against plain numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqgan.model.layers import (
    Attention,
    Downsample,
    GroupNorm,
    ResBlock,
    SpatialNorm,
    Upsample,
    haar_merge,
    haar_split,
)

F32 = jnp.float32


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def group_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int, epsilon: float = 1e-6
) -> np.ndarray:
    x = x.astype(np.float64)
    split = x.reshape(*x.shape[:3], groups, -1)
    mean = split.mean(axis=(1, 2, 4), keepdims=True)
    variance = split.var(axis=(1, 2, 4), keepdims=True)
    return ((split - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


def make_group_norm(channels: int, groups: int) -> GroupNorm:
    norm = GroupNorm(channels, groups, dtype=F32, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.asarray(normal(channels, seed=1))
    norm.bias[...] = jnp.asarray(normal(channels, seed=2))
    return norm


@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (8, 1), (8, 8), (12, 3)])
def test_group_norm_equals_float64(channels: int, groups: int) -> None:
    x = normal(2, 3, 5, channels) * np.arange(1, channels + 1, dtype=np.float32) + 0.5
    norm = make_group_norm(channels, groups)
    expected = group_norm(x, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), groups)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_group_norm_equals_flax() -> None:
    x = jnp.asarray(normal(2, 4, 4, 8))
    norm = make_group_norm(8, 4)
    theirs = nnx.GroupNorm(8, num_groups=4, epsilon=1e-6, use_fast_variance=False, rngs=nnx.Rngs(0))
    theirs.scale[...], theirs.bias[...] = norm.scale[...], norm.bias[...]
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(norm(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_group_norm_keeps_digits_of_large_means() -> None:
    """E[x^2] - E[x]^2 has no digit left here: 1e8 - 1e8."""
    x = normal(1, 8, 8, 8) + np.float32(1e4)
    norm = make_group_norm(8, 4)
    expected = group_norm(x, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), 4)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=5e-3)


def test_group_norm_of_a_constant_is_the_bias() -> None:
    """The epsilon is inside the root; without it this is not a number."""
    norm = make_group_norm(8, 4)
    np.testing.assert_array_equal(norm(jnp.full((1, 2, 2, 8), 3.0))[0, 0, 0], norm.bias[...])


def test_group_norm_epsilon() -> None:
    x = normal(1, 4, 4, 8) * np.float32(1e-3)  # a variance of 1e-6, like the epsilon
    norm = make_group_norm(8, 4)
    expected = group_norm(x, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), 4)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_group_norm_computes_in_float32_and_returns_its_type() -> None:
    x = jnp.asarray(normal(1, 4, 4, 8) + 100, jnp.bfloat16)
    norm = make_group_norm(8, 4)
    exact = norm(x.astype(jnp.float32))
    norm.dtype = jnp.bfloat16
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(x), exact.astype(jnp.bfloat16))


def strided_convolution(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3, stride 2, one row of zeros below and one column on the right."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))
    rows, columns = ((side + 1 - 3) // 2 + 1 for side in x.shape[1:3])
    windows = [[padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for j in range(columns)] for i in range(rows)]
    return np.einsum("ijbuvc,uvcd->bijd", np.array(windows), kernel) + bias


@pytest.mark.parametrize(("height", "width"), [(6, 4), (5, 7)])
def test_downsample_pads_right_and_bottom(height: int, width: int) -> None:
    x = normal(2, height, width, 4)
    layer = Downsample(4, with_conv=True, dtype=F32, rngs=nnx.Rngs(0))
    assert layer.conv is not None
    layer.conv.bias[...] = jnp.arange(4.0)
    expected = strided_convolution(x, np.asarray(layer.conv.kernel[...]), np.arange(4.0))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


def test_downsample_without_convolution_averages() -> None:
    x = normal(2, 6, 4, 3)
    layer = Downsample(3, with_conv=False, dtype=F32, rngs=nnx.Rngs(0))
    expected = x.reshape(2, 3, 2, 2, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-6)


def test_upsample_without_convolution_repeats() -> None:
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    layer = Upsample(1, with_conv=False, dtype=F32, rngs=nnx.Rngs(0))
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(layer(x)[0, :, :, 0], expected)


def test_upsample_smooths_the_repetition() -> None:
    x = jnp.asarray(normal(1, 3, 2, 4))
    layer = Upsample(4, with_conv=True, dtype=F32, rngs=nnx.Rngs(0))
    assert layer.conv is not None
    repeated = np.repeat(np.repeat(np.asarray(x), 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(layer(x), layer.conv(jnp.asarray(repeated)), atol=1e-6)


def dense(layer: nnx.Conv, x: np.ndarray) -> np.ndarray:
    assert layer.bias is not None
    return x @ np.asarray(layer.kernel[...], np.float64)[0, 0] + np.asarray(layer.bias[...], np.float64)


def attention(layer: Attention, x: np.ndarray) -> np.ndarray:
    norm = layer.norm
    normed = group_norm(x, np.asarray(norm.scale[...]), np.asarray(norm.bias[...]), norm.groups)
    positions = normed.reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(part, positions) for part in (layer.query, layer.key, layer.value))
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(x.shape[-1]))
    mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
    return x + dense(layer.out, mixed).reshape(x.shape)


def test_attention_equals_float64() -> None:
    x = normal(2, 3, 5, 8)
    layer = Attention(8, norm_groups=4, dtype=F32, rngs=nnx.Rngs(3))
    for index, part in enumerate((layer.query, layer.key, layer.value, layer.out)):
        part.bias[...] = jnp.asarray(normal(8, seed=index))
    np.testing.assert_allclose(layer(jnp.asarray(x)), attention(layer, x), atol=2e-5)


def res_block(in_channels: int, out_channels: int, dropout: float = 0.0) -> ResBlock:
    return ResBlock(in_channels, out_channels, norm_groups=4, dropout=dropout, dtype=F32, rngs=nnx.Rngs(0))


def test_residual_block_with_a_silent_branch_is_its_shortcut() -> None:
    x = jnp.asarray(normal(1, 4, 4, 8))
    same, wider = res_block(8, 8), res_block(8, 12)
    for block in (same, wider):
        block.conv2.kernel[...] = jnp.zeros_like(block.conv2.kernel[...])
    assert same.shortcut is None
    np.testing.assert_array_equal(same(x), x)
    assert wider.shortcut is not None
    np.testing.assert_allclose(wider(x), dense(wider.shortcut, np.asarray(x)), atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    x = jnp.asarray(normal(1, 4, 4, 8))
    block = res_block(8, 8, dropout=0.5)
    first, second = block(x), block(x)
    assert not np.array_equal(first, second)
    block.eval()
    plain = res_block(8, 8)
    for name in ("norm1", "conv1", "norm2", "conv2"):
        nnx.update(getattr(plain, name), nnx.state(getattr(block, name)))
    np.testing.assert_array_equal(block(x), plain(x))


def test_spatial_norm_is_scaled_and_shifted_by_the_codes_of_each_place() -> None:
    norm = SpatialNorm(64, 3, dtype=F32, rngs=nnx.Rngs(0))
    x, codes = normal(2, 4, 6, 64), normal(2, 2, 3, 3, seed=1)
    plain = group_norm(x, np.ones(64), np.zeros(64), 32)
    enlarged = codes.repeat(2, axis=1).repeat(2, axis=2)
    gain, shift = (
        enlarged @ np.asarray(layer.kernel[...])[0, 0] + np.asarray(layer.bias[...])
        for layer in (norm.gain, norm.shift)
    )
    np.testing.assert_allclose(norm(jnp.asarray(x), jnp.asarray(codes)), plain * gain + shift, atol=1e-4)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_haar_patches_keep_the_range_and_come_back(patch: int) -> None:
    x = normal(2, 16, 8, 3)
    split = np.asarray(haar_split(jnp.asarray(x), patch))
    assert split.shape == (2, 16 // patch, 8 // patch, 3 * patch**2)
    # The first channels are the averages of patches: sums over two are divided by two at each step.
    averages = x.reshape(2, 16 // patch, patch, 8 // patch, patch, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(split[..., :3], averages, atol=1e-5)
    np.testing.assert_allclose(haar_merge(jnp.asarray(split), patch), x, atol=1e-5)


def test_haar_channels_are_low_low_low_high_high_low_high_high() -> None:
    """Of one patch of 2 x 2, the first letter along the width."""
    found = haar_split(jnp.asarray([[[[1.0], [2.0]], [[5.0], [10.0]]]]), 2)
    (a, b), (c, d) = (1, 2), (5, 10)
    expected = np.array([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]) / 4
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-6)
