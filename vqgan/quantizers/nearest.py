"""Quantizers with a codebook and the nearest-neighbour rule: by gradient, by angle, by moving averages.

*Neural Discrete Representation Learning* (arXiv 1711.00937), equations 1 to 3. The loss has the
paper's form: the codebook term is unweighted and the commitment term carries beta (the trainer's).
Gradients reach the latents straight through, or by the rotation trick.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.errors import UserError
from vqgan.losses import code_affinity, entropy_loss
from vqgan.model.convolutions import on_processor
from vqgan.quantizers.base import (
    DEFAULT_OPTIONS,
    Quantized,
    QuantizeOptions,
    Quantizer,
    Statistic,
    straight_through,
)

# Distances of one block of latents to all codes are held at once: 64 MiB of float32.
MAX_DISTANCES = 1 << 24
LEAST_NORM = 1e-12  # the least norm that is divided by, as in the reference
NO_DIRECTION = 1e-6  # a shorter vector has no direction to turn from or to
CODES_AT_ONCE = 64  # that a processor compares; 16 to 256 take about as long
SMOOTHING = 1e-5  # of moving averages, added to every code's count: Laplace smoothing


def nearest_code(latents: jax.Array, codebook: jax.Array) -> jax.Array:
    """Finds the code with the least Euclidean distance, the one of the lowest index on a tie.

    Always in float32 at the highest matrix precision: accelerators multiply in TF32 or bfloat16 by
    default, which flips the argmin between near codes.

    Args:
      latents: ``[N, D]``.
      codebook: ``[K, D]``.

    Returns:
      ``[N]`` int32.
    """
    latents = latents.astype(jnp.float32)
    codebook = codebook.astype(jnp.float32)
    squares = jnp.sum(codebook**2, axis=1)  # (K,)

    def block(part: jax.Array) -> jax.Array:
        if on_processor():
            return _nearest_by_parts(part, codebook, squares)
        return jnp.argmin(_shifted_distances(part, codebook, squares), axis=1).astype(jnp.int32)

    held = min(codebook.shape[0], CODES_AT_ONCE) if on_processor() else codebook.shape[0]
    return map_blocks(block, latents, held)


def _shifted_distances(latents: jax.Array, codebook: jax.Array, squares: jax.Array) -> jax.Array:
    """Returns ``[N, K]`` squared distances less ``|z|^2``, which is the same for every code."""
    # |z - e|^2 = |z|^2 - 2 z.e + |e|^2
    products = jnp.matmul(latents, codebook.T, precision=jax.lax.Precision.HIGHEST)
    return squares[None, :] - 2 * products


def _nearest_by_parts(latents: jax.Array, codebook: jax.Array, squares: jax.Array) -> jax.Array:
    """Finds the nearest codes as a processor does it fast: ``argmin`` over all codes takes it value by value.

    Column c of a part of the codebook competes only with column c of the other parts, so that values are
    compared by whole vectors; the columns' best are compared at the end. An earlier part keeps a tie, and
    of tied columns the lowest code wins, as in ``argmin``.
    """
    codes = codebook.shape[0]
    width = min(codes, CODES_AT_ONCE)
    missing = -codes % width
    padded = jnp.pad(codebook, ((0, missing), (0, 0))).reshape(-1, width, codebook.shape[1])
    squares = jnp.pad(squares, (0, missing), constant_values=jnp.inf).reshape(-1, width)

    def compare(best: tuple[jax.Array, jax.Array], part: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        least, parts = best
        distances = _shifted_distances(latents, part[0], part[1])  # (N, width)
        nearer = distances < least
        return (jnp.where(nearer, distances, least), jnp.where(nearer, part[2], parts)), None

    numbers = jnp.arange(len(padded), dtype=jnp.int32)
    shape = (latents.shape[0], width)
    start = (jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32))
    (least, parts), _ = jax.lax.scan(compare, start, (padded, squares, numbers))
    candidates = parts * width + jnp.arange(width, dtype=jnp.int32)[None, :]
    is_least = least == jnp.min(least, axis=1, keepdims=True)
    return jnp.min(jnp.where(is_least, candidates, codes - 1), axis=1)


def relative_gap(scores: jax.Array) -> jax.Array:
    """Returns the gap ``[N]`` of the two largest of ``[N, K]`` scores, as a share of the larger magnitude."""
    best = jax.lax.top_k(scores, 2)[0]  # (N, 2)
    largest = jnp.maximum(jnp.max(jnp.abs(best), axis=1), LEAST_NORM)
    return (best[:, 0] - best[:, 1]) / largest


def map_blocks(block: Callable[[jax.Array], jax.Array], latents: jax.Array, codes: int) -> jax.Array:
    """Maps ``block`` over ``[N, D]`` latents in parts, so that few distances to ``codes`` are held at once.

    Args:
      block: ``[n, D]`` to ``[n]``.
      latents: ``[N, D]``.
      codes: values per latent that ``block`` holds.
    """
    count = latents.shape[0]
    rows = max(1, MAX_DISTANCES // codes)
    if count <= rows:
        return block(latents)
    blocks = -(-count // rows)
    rows = -(-count // blocks)
    padded = jnp.pad(latents, ((0, blocks * rows - count), (0, 0)))
    return jax.lax.map(block, padded.reshape(blocks, rows, -1)).reshape(-1)[:count]


def unit_length(vectors: jax.Array) -> jax.Array:
    """Divides ``[..., D]`` vectors by their length, in float32; zero stays zero, with a finite gradient."""
    vectors = vectors.astype(jnp.float32)
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, LEAST_NORM**2))


def rotation_trick(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns ``codes`` as latents that were turned and stretched by a linear map that counts as constant.

    *Restructuring Vector Quantization with the Rotation Trick* (arXiv 2410.06424), section 4.2: with
    e a latent, q its code, hats for unit length and r the unit vector along their sum,
    ``q = |q| / |e| (I - 2 r r^T + 2 q^ e^^T) e``. The gradient of e is thereby the code's, turned back
    and rescaled. Where latent or code have no direction the gradient goes straight through.

    Args:
      latents: ``[..., D]`` float32.
      codes: ``[..., D]`` float32, one for each latent.

    Returns:
      ``[..., D]``: the values of ``codes``, up to rounding.
    """

    def dot(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.sum(left * right, axis=-1, keepdims=True)  # (..., 1)

    e, q = jax.lax.stop_gradient((latents, codes))  # the map is a constant; only its argument learns
    lengths = [jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True)) for vectors in (e, q)]
    e, q = unit_length(e), unit_length(q)
    r = unit_length(e + q)
    turned = latents - 2 * r * dot(r, latents) + 2 * q * dot(e, latents)
    rotated = turned * (lengths[1] / jnp.maximum(lengths[0], NO_DIRECTION))
    exact = straight_through(rotated, codes)
    clear = jnp.minimum(*lengths) > NO_DIRECTION
    return jnp.where(clear, exact, straight_through(latents, codes))


class NearestQuantizer(Quantizer):
    """A codebook ``[K, D]`` and the nearest-neighbour rule."""

    has_codebook: ClassVar[bool] = True

    def __init__(self, codebook_size: int, embed_dim: int, *, rngs: nnx.Rngs):
        bound = 1.0 / codebook_size
        self.codebook = nnx.Param(
            jax.random.uniform(rngs.params(), (codebook_size, embed_dim), minval=-bound, maxval=bound)
        )

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Chooses the nearest codes; gradients go straight through, or by the rotation trick."""
        latents, codebook = self.comparable(latents), self._codes()
        flat = latents.reshape(-1, latents.shape[-1])
        tokens = nearest_code(flat, codebook).reshape(latents.shape[:-1])
        codes = codebook[tokens]
        entropy = jnp.zeros(())
        if options.entropy_temperature:
            entropy = entropy_loss(code_affinity(flat, codebook), options.entropy_temperature)
        return Quantized(
            codes=rotation_trick(latents, codes) if options.rotation else straight_through(latents, codes),
            tokens=tokens,
            codebook_loss=jnp.mean((codes - jax.lax.stop_gradient(latents)) ** 2),
            commitment_loss=jnp.mean((jax.lax.stop_gradient(codes) - latents) ** 2),
            entropy_loss=entropy,
        )

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents into ``[B, h, w]`` int32 tokens."""
        flat = self.comparable(latents.reshape(-1, latents.shape[-1]))
        return nearest_code(flat, self._codes()).reshape(latents.shape[:-1])

    def margins(self, latents: jax.Array) -> jax.Array:
        """Returns the gap ``[B, h, w]`` of the two least squared distances, as a share of the larger."""
        codes = self._codes()
        squares = jnp.sum(codes**2, axis=1)  # (K,)

        def block(part: jax.Array) -> jax.Array:
            products = jnp.matmul(part, codes.T, precision=jax.lax.Precision.HIGHEST)  # (n, K)
            return relative_gap(2 * products - squares[None, :] - jnp.sum(part**2, axis=1)[:, None])

        flat = self.comparable(latents.reshape(-1, latents.shape[-1]))
        return map_blocks(block, flat, codes.shape[0]).reshape(latents.shape[:-1])

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, h, w]`` tokens into ``[B, h, w, D]`` code vectors."""
        return self.comparable(self.codebook[...][tokens])

    def comparable(self, vectors: jax.Array) -> jax.Array:
        """Brings ``[..., D]`` latents or codes into the float32 space where distances are taken.

        Whoever places codes by clustering does it there.
        """
        return vectors.astype(jnp.float32)

    def replace_codes(self, mask: jax.Array, codes: jax.Array) -> None:
        """Puts ``codes [K, D]`` where ``mask [K]`` is true, in place."""
        self.codebook[...] = jnp.where(mask[:, None], codes.astype(jnp.float32), self.codebook[...])

    def _codes(self) -> jax.Array:
        """Returns the whole codebook ``[K, D]``, comparable."""
        return self.comparable(self.codebook[...])


class CosineQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` of any lengths; both lookup directions use the codes' directions only.

    *Vector-quantized Image Modeling with Improved VQGAN* (arXiv 2110.04627), section 3.2. With few
    dimensions (8 or so) it keeps large codebooks in use. Losses are those of the normalised vectors.
    """

    def comparable(self, vectors: jax.Array) -> jax.Array:
        """Brings ``[..., D]`` vectors to unit length."""
        return unit_length(vectors)


class InnerProductQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` whose code of the largest inner product with a latent is its token.

    *Scalable Image Tokenization with Index Backpropagation Quantization* (arXiv 2412.02692), section 3.2.
    Codes differ in length, so this is neither the nearest one nor that of the least angle.
    """

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Refuses: the paper's softmax over all codes is not implemented."""
        raise UserError("model.quantizer inner_product is for imported codecs: it cannot be trained")

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents into ``[B, h, w]`` int32 tokens."""
        codebook = self._codes()

        def block(part: jax.Array) -> jax.Array:
            products = jnp.matmul(part, codebook.T, precision=jax.lax.Precision.HIGHEST)  # (n, K)
            return jnp.argmax(products, axis=1).astype(jnp.int32)

        flat = self.comparable(latents.reshape(-1, latents.shape[-1]))
        return map_blocks(block, flat, codebook.shape[0]).reshape(latents.shape[:-1])

    def margins(self, latents: jax.Array) -> jax.Array:
        """Returns the gap ``[B, h, w]`` of the two largest products, as a share of the larger magnitude."""
        codebook = self._codes()

        def block(part: jax.Array) -> jax.Array:
            return relative_gap(jnp.matmul(part, codebook.T, precision=jax.lax.Precision.HIGHEST))

        flat = self.comparable(latents.reshape(-1, latents.shape[-1]))
        return map_blocks(block, flat, codebook.shape[0]).reshape(latents.shape[:-1])


class UnitCodesQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` whose nearest code is a token, and whose codes are decoded at unit length.

    So the port of Janus (arXiv 2410.13848) in transformers does; the original normalises in both directions.
    """

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Refuses: what is decoded is not what was compared."""
        raise UserError("model.quantizer nearest_unit is for imported codecs: it cannot be trained")

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, h, w]`` tokens into ``[B, h, w, D]`` code vectors of unit length."""
        return unit_length(super().lookup(tokens))


class EMAQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` without gradient or codebook loss; :meth:`observe` moves it by moving averages.

    *Neural Discrete Representation Learning* (arXiv 1711.00937), appendix A.1.

    Attributes:
      counts: ``[K]`` moving average of how many latents of a batch chose each code. Zero for a code
        without a past, which then counts as one latent at its own place: so it is at the start, after
        :meth:`replace_codes`, and when training goes on from a codec, which has no statistics.
      sums: ``[K, D]`` moving average of the sum of those latents.
    """

    def __init__(self, codebook_size: int, embed_dim: int, *, rngs: nnx.Rngs):
        super().__init__(codebook_size, embed_dim, rngs=rngs)
        self.counts = Statistic(jnp.zeros(codebook_size))
        self.sums = Statistic(jnp.zeros((codebook_size, embed_dim)))

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Chooses as the nearest code's does, with a codebook loss of zero."""
        result = super().__call__(latents, options)
        return result._replace(codebook_loss=jnp.zeros(()))

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Moves each code to the average of the latents that chose it (equations of appendix A.1).

        Under ``jit`` with a batch that is split over devices, sums run over the whole batch. A code
        that nothing chooses for thousands of steps drifts to the origin, as its count sinks below the
        smoothing; revival is for these.
        """
        codebook = self.codebook[...]
        flat = jax.lax.stop_gradient(latents).reshape(-1, codebook.shape[1]).astype(jnp.float32)  # (N, D)
        chosen = tokens.reshape(-1)  # (N,)
        new = self.counts[...] == 0  # (K,): these count as one latent at their own place
        counts = jnp.where(new, 1.0, self.counts[...])
        sums = jnp.where(new[:, None], codebook, self.sums[...])
        counts = decay * counts + (1 - decay) * jnp.zeros_like(counts).at[chosen].add(1.0)
        sums = decay * sums + (1 - decay) * jnp.zeros_like(sums).at[chosen].add(flat)
        total = jnp.sum(counts)
        smooth = (counts + SMOOTHING) / (total + len(counts) * SMOOTHING) * total  # (K,)
        self.counts[...], self.sums[...] = counts, sums
        self.codebook[...] = sums / smooth[:, None]

    def replace_codes(self, mask: jax.Array, codes: jax.Array) -> None:
        """Puts ``codes [K, D]`` where ``mask [K]`` is true; those codes forget their past."""
        super().replace_codes(mask, codes)
        self.counts[...] = jnp.where(mask, 0.0, self.counts[...])

    def _codes(self) -> jax.Array:
        return jax.lax.stop_gradient(super()._codes())
