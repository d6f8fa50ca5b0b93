"""Tokens from a learned projection: the head that is trained with the Gumbel-softmax relaxation.

*Categorical Reparameterization with Gumbel-Softmax* (arXiv 1611.01144). Inference takes the largest
logit, without noise or temperature.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.quantizers.base import DEFAULT_OPTIONS, Quantized, QuantizeOptions, Quantizer, refuse_rotation
from vqgan.quantizers.nearest import map_blocks, relative_gap


def relaxed_choice(
    logits: jax.Array, temperature: jax.Array | float, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Draws a Gumbel-softmax sample of the categorical distribution with the given logits (equation 2).

    Args:
      logits: ``[N, K]``.
      temperature: above 0; towards 0 the sample becomes one-hot.
      key: of the noise; without it there is neither noise nor temperature.

    Returns:
      ``[N, K]`` logits with the noise, whose argmax is an exact sample, and ``[N, K]`` softmax of them.
    """
    if key is None:
        return logits, jax.nn.softmax(logits, axis=-1)
    noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    return noisy, jax.nn.softmax(noisy / temperature, axis=-1)


def _divergence_from_even(logits: jax.Array) -> jax.Array:
    """Returns the mean KL divergence, in nats, of ``[N, K]`` logits' softmax from the even distribution."""
    choice = jax.nn.softmax(logits, axis=-1)
    size = float(logits.shape[-1])
    return jnp.mean(jnp.sum(choice * (jnp.log(choice + 1e-10) + jnp.log(size)), axis=-1))


class GumbelQuantizer(Quantizer):
    """A projection ``[D, K]`` to logits and a codebook ``[K, D]``, whose places mean nothing to it."""

    def __init__(self, codebook_size: int, embed_dim: int, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(embed_dim, codebook_size, rngs=rngs)
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (codebook_size, embed_dim)))

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Chooses a code for each latent, drawn by the key or the likeliest; straight through the softmax.

        The gradient reaches the codes that were chosen, and the logits as if codes had been mixed by
        the softmax. The commitment loss is the KL divergence of the softmax (without noise, at
        temperature 1) from an even use. Without a key there is neither noise nor temperature.
        """
        refuse_rotation(options, "gumbel")
        logits = self._logits(latents.reshape(-1, latents.shape[-1]))  # (N, K)
        noisy, soft = relaxed_choice(logits, options.temperature, options.key)
        tokens = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
        fixed = jax.lax.stop_gradient(self.codebook[...])
        mixing = jnp.matmul(soft - jax.lax.stop_gradient(soft), fixed, precision=jax.lax.Precision.HIGHEST)
        shape = latents.shape
        return Quantized(
            codes=(self.lookup(tokens) + mixing).reshape(shape),
            tokens=tokens.reshape(shape[:-1]),
            codebook_loss=jnp.zeros(()),
            commitment_loss=_divergence_from_even(logits),
            entropy_loss=jnp.zeros(()),
        )

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents into ``[B, h, w]`` int32 tokens."""
        flat = latents.reshape(-1, latents.shape[-1])
        size = self.codebook[...].shape[0]
        best = map_blocks(lambda part: jnp.argmax(self._logits(part), axis=1).astype(jnp.int32), flat, size)
        return best.reshape(latents.shape[:-1])

    def margins(self, latents: jax.Array) -> jax.Array:
        """Returns the gap ``[B, h, w]`` of the two largest logits, as a share of the larger magnitude."""
        flat = latents.reshape(-1, latents.shape[-1])
        size = self.codebook[...].shape[0]
        gaps = map_blocks(lambda part: relative_gap(self._logits(part)), flat, size)
        return gaps.reshape(latents.shape[:-1])

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, h, w]`` tokens into ``[B, h, w, D]`` code vectors."""
        return self.codebook[...][tokens]

    def _logits(self, flat: jax.Array) -> jax.Array:
        """Projects ``[N, D]`` to ``[N, K]``, in float32 at the highest precision, so that no argmax flips."""
        assert self.projection.bias is not None
        kernel, bias = self.projection.kernel[...], self.projection.bias[...]
        products = jnp.matmul(flat.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        return products + bias[None, :]
