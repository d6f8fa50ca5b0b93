"""Nearest code whose codebook follows its latents by moving averages instead of by a gradient.

*Neural Discrete Representation Learning* (arXiv 1711.00937), appendix A.1.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.quantizers.base import Quantized, Statistic
from vqgan.quantizers.nearest import NearestQuantizer

SMOOTHING = 1e-5  # added to every code's count: Laplace smoothing


class EMAQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` without gradient or codebook loss; :meth:`observe` moves it.

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

    def __call__(
        self,
        latents: jax.Array,
        *,
        rotation: bool = False,
        temperature: jax.Array | float = 1.0,
        key: jax.Array | None = None,
        entropy_temperature: float = 0.0,
    ) -> Quantized:
        """As the nearest code's, with a codebook loss of zero."""
        result = super().__call__(latents, rotation=rotation, entropy_temperature=entropy_temperature)
        return result._replace(codebook_loss=jnp.zeros(()))

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Moves each code to the average of the latents that chose it (equations of appendix A.1).

        Under ``jit`` with a batch that is split over devices, sums run over the whole batch. A code
        that nothing chooses for thousands of steps drifts to the origin, as its count sinks below the
        smoothing; revival is for these.
        """
        codebook = self.codebook[...]
        flat = jax.lax.stop_gradient(latents).reshape(-1, codebook.shape[1]).astype(jnp.float32)
        chosen = tokens.reshape(-1)
        new = self.counts[...] == 0
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
