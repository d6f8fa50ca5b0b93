"""What the transformer of a prior is made of: linear layers, norms, embeddings, two-dimensional positions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vqgan.prior.config import PriorConfig
from vqgan.prior.text import Text

ROTARY_BASE = 10_000.0
START = (-1.0, -1.0)
"""Coordinates of the start token: outside the grid."""
STANDARD_DEVIATION = 0.02  # of initial weights, as in GPT-2
EPSILON = 1e-5


def linear(
    inputs: int, outputs: int, has_bias: bool, dtype: DTypeLike, rngs: nnx.Rngs, depth: int | None = None
) -> nnx.Linear:
    """Makes a linear layer.

    Those that end a branch, of which there are ``2 * depth``, start smaller by the root of that number, so
    that the sum of all branches does not grow with depth (GPT-2's rule).
    """
    deviation = STANDARD_DEVIATION if depth is None else STANDARD_DEVIATION / math.sqrt(2 * depth)
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=has_bias,
        dtype=dtype,
        kernel_init=nnx.initializers.normal(deviation),
        dot_general=product,
        rngs=rngs,
    )


def product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """Multiplies ``[..., I]`` by ``[I, O]`` where ``nnx.Linear`` asks for a ``dot_general``.

    The sums are those of :func:`jax.lax.dot_general`, and so are the gradients; but all positions are rows of
    one matrix, and the gradient of the weights is the product of two matrices as well. XLA's CPU compiler
    hands these to a library, while it makes loops and transposing copies of what automatic differentiation
    writes.
    """
    rows = x.reshape(-1, x.shape[-1])  # (B * T, I)
    return _matrix_product(rows, kernel).reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return gradient @ kernel.T, x.T @ gradient


_matrix_product.defvjp(_forward, _backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU, ``x * cdf(x)`` of the normal distribution (arXiv 1606.08415), in float32.

    :func:`jax.nn.gelu` takes ``erfc``, whose branches XLA's CPU compiler writes to memory one by one; and
    what they leave for the gradient is computed again here, which is faster than to read it.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    return ((gradient * (_normal_cdf(x) + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x: jax.Array) -> jax.Array:
    """Returns the distribution function of the normal distribution, float32."""
    return 0.5 * (1 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))


def norm(width: int, config: PriorConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm | nnx.LayerNorm:
    """Makes RMSNorm or LayerNorm, as the layout of the blocks has it."""
    if config.block == "llama":
        return nnx.RMSNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
    return LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation (arXiv 1607.06450) in float32, with its own gradient.

    The variance is the mean square of the centred values: the fast one, E[x^2] - E[x]^2, cancels digits.
    """

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalises ``[..., D]`` over D; nothing can be masked.

        Raises:
          ValueError: a mask is given.
        """
        if mask is not None:
            raise ValueError("a mask is given to a norm that takes whole rows")
        assert self.scale is not None  # as by default
        assert self.bias is not None
        rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])  # (N, D)
        return _layer_norm(rows, self.scale[...], self.bias[...]).astype(self.dtype).reshape(x.shape)


@jax.custom_vjp
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    normal, _ = _standardised(x)
    return normal * scale[None] + bias[None]


def _standardised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns ``x`` with mean 0 and variance 1 over its last axis, and what its centred values were times."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + EPSILON)
    return centred * factor, factor


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _layer_norm(x, scale, bias), (x, scale)


def _layer_norm_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale = saved
    normal, factor = _standardised(x)
    scaled = gradient * scale[None]
    along = jnp.mean(scaled * normal, axis=-1, keepdims=True)
    by_x = factor * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normal * along)
    return by_x, jnp.sum(gradient * normal, axis=0), jnp.sum(gradient, axis=0)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def embedding(rows: int, config: PriorConfig, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    """Makes a table of vectors."""
    init = nnx.initializers.normal(STANDARD_DEVIATION)
    return nnx.Param(init(rngs.params(), (rows, config.width)))


def coordinates(config: PriorConfig) -> np.ndarray:
    """Returns row and column of every position of the sequence, in units of the token grid.

    The condition's tokens lie over the image that they describe: where its grid is coarser or finer,
    its cells' centres are scaled to the token grid.

    A text lies outside of the grid, on the diagonal that ends at the start token.

    Returns:
      float32 ``[P + L, 2]``.
    """
    parts = [_cells(config.grid, config.grid)]
    if config.start_token or not config.text_length:
        parts.insert(0, np.array([START], np.float32))
    if config.condition_length:
        parts.insert(0, _cells(config.condition_grid, config.grid))
    if config.text_length:
        before = np.arange(-config.text_length - 1, -1, dtype=np.float32)  # the last one at -2
        parts.insert(0, np.stack([before, before], axis=-1))
    return np.concatenate(parts)


def _cells(grid: tuple[int, int], onto: tuple[int, int]) -> np.ndarray:
    """Returns centres of a grid's cells in raster order, where the cells of ``onto`` are at whole numbers."""
    axes = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(grid, onto, strict=True)]
    rows, columns = np.meshgrid(*axes, indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=-1).astype(np.float32)  # (h * w, 2)


def rotary_table(config: PriorConfig) -> np.ndarray:
    """Returns the angles of rotary positions (RoFormer, arXiv 2104.09864), in two dimensions or in one.

    In two, half of a head's pairs of features turn with the row, the other half with the column, each at
    frequencies ``ROTARY_BASE ** (-k / n)``; in one, all of them with the place in the sequence.

    Returns:
      float32 ``[P + L, head_width / 2]``.
    """
    if config.rotary == "sequence":
        pairs = config.head_width // 2
        frequencies = ROTARY_BASE ** (-np.arange(pairs, dtype=np.float32) / pairs)
        return np.arange(config.prefix + config.length, dtype=np.float32)[:, None] * frequencies
    count = config.head_width // 4  # of a head's width / 2 pairs, half turn with each coordinate
    frequencies = ROTARY_BASE ** (-np.arange(count, dtype=np.float32) / count)
    angles = coordinates(config)[:, :, None] * frequencies  # (P + L, 2, head_width / 4)
    return angles.reshape(len(angles), -1)


def apply_rotary(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the pairs ``(x[k], x[k + D/2])`` of features by the angles of their positions.

    Args:
      x: ``[B, T, H, D]``.
      angles: ``[T, D / 2]``.

    Returns:
      The shape and type of ``x``; computed in float32.
    """
    half = (*x.shape[:-1], x.shape[-1] // 2)
    cos, sin = (jnp.broadcast_to(f(angles)[None, :, None], half) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)


class TextEmbedding(nnx.Module):
    """Makes inputs of a text: rows of a table for words, two layers with a GELU between for vectors."""

    def __init__(self, config: PriorConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        self.table = embedding(config.text_words, config, rngs) if config.text_words else None
        given, width = config.text_width, config.width
        self.inner = _projection(given, width, dtype, rngs) if given else None
        self.outer = _projection(width, width, dtype, rngs) if given else None
        self.null = nnx.Param(jnp.zeros((config.text_length, given))) if config.text_null else None

    def __call__(self, text: Text) -> jax.Array:
        """Embeds texts, to ``[B, T, D]``."""
        if self.table is not None:
            return jnp.take(self.table[...], text.values, axis=0)
        assert self.inner is not None  # a text is words or vectors
        assert self.outer is not None
        # The tanh form of the GELU is what LlamaGen's caption embedder has.
        out: jax.Array = self.outer(nnx.gelu(self.inner(text.values), approximate=True))
        return out

    def complete(self, text: Text | None, batch: int) -> Text:
        """Returns texts where rows without any have what stands for none; all of them where None is given."""
        text = Text.absent(self.config, batch, jnp) if text is None else text
        return self.drop(text, jnp.zeros(batch, bool))

    def drop(self, text: Text, dropped: jax.Array) -> Text:
        """Returns texts without those that are marked in ``dropped``, bool ``[B]``.

        Where vectors were learned for no text they take the places of the text's, as in LlamaGen; of a row
        without any text they take all. Else nothing of the text is seen.
        """
        if self.null is None:
            return text._replace(mask=text.mask & ~dropped[:, None])
        empty = ~jnp.any(text.mask, axis=1)  # (B,)
        gone = (dropped | empty)[:, None, None]
        values = jnp.where(gone, self.null[...].astype(text.values.dtype), text.values)
        return Text(values, text.mask | empty[:, None])


def _projection(inputs: int, outputs: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """Makes a layer that keeps the size of what it is given: encoders differ in that of their vectors."""
    return nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, dot_general=product, rngs=rngs)
