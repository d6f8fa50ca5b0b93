"""What every quantizer offers, and what it is asked for in training."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vqgan.errors import UserError


class Quantized(NamedTuple):
    """Result of quantizing latents. Losses are float32 scalars, zero where a quantizer has none.

    Attributes:
      codes: ``[B, h, w, D]`` float32 code vectors, through which gradients reach the latents.
      tokens: ``[B, h, w]`` int32 code numbers.
      codebook_loss: draws codes to latents.
      commitment_loss: draws latents to codes, not yet weighted.
      entropy_loss: sharpens the choice of each latent and spreads all choices over the codes.
    """

    codes: jax.Array
    tokens: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array
    entropy_loss: jax.Array


@dataclasses.dataclass(frozen=True)
class QuantizeOptions:
    """How latents are quantized in training; a quantizer ignores what means nothing to it.

    Attributes:
      rotation: the rotation trick in place of the straight-through gradient, for quantizers with
        ``has_codebook``; the others refuse it.
      temperature: of the Gumbel softmax, read only where there is a ``key``.
      key: draws Gumbel noise.
      entropy_temperature: T of the soft choice, proportional to ``exp(-|latent - code|^2 / T)``,
        that the entropy loss measures; 0 for no entropy loss. Papers on LFQ give 1 / T.
    """

    rotation: bool = False
    temperature: jax.Array | float = 1.0
    key: jax.Array | None = None
    entropy_temperature: float = 0.0


DEFAULT_OPTIONS = QuantizeOptions()


class Statistic(nnx.Variable):
    """What a quantizer learns without gradients beside its codebook; no part of a codec."""


class Quantizer(nnx.Module):
    """Latents to tokens and back.

    Attributes:
      has_codebook: whether it is a :class:`vqgan.quantizers.nearest.NearestQuantizer`, whose codes can
        be placed on latents and revived (``replace_codes``) and which takes the rotation trick.
    """

    has_codebook: ClassVar[bool] = False

    def __call__(self, latents: jax.Array, options: QuantizeOptions = DEFAULT_OPTIONS) -> Quantized:
        """Quantizes latents ``[B, h, w, D]`` of any float type in float32, with gradients for training.

        Raises:
          UserError: ``options.rotation`` where it means nothing.
        """
        raise NotImplementedError

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Turns ``[B, h, w, D]`` latents into ``[B, h, w]`` int32 tokens, for inference."""
        raise NotImplementedError

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Turns ``[B, h, w]`` tokens into ``[B, h, w, D]`` code vectors."""
        raise NotImplementedError

    def code_vectors(self, size: int) -> jax.Array:
        """Returns ``[size, D]`` float32, for each code the vector that :meth:`lookup` gives."""
        return self.lookup(jnp.arange(size))

    def margins(self, latents: jax.Array) -> jax.Array:
        """Tells how clear the token of each of ``[B, h, w, D]`` latents is.

        Returns:
          ``[B, h, w]`` float32, from 0 for a tie. A quantizer that cannot tell calls no token clear.
        """
        return jnp.zeros(latents.shape[:-1])

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Learns in place what is learnt without gradients, after the gradient step; by default nothing.

        Args:
          latents: ``[B, h, w, D]``, the whole batch over all devices.
          tokens: ``[B, h, w]``, what the forward pass chose for them.
          decay: share of the past that is kept, in [0, 1).
        """


def refuse_rotation(options: QuantizeOptions, quantizer: str) -> None:
    """Stops where the rotation trick is asked of a quantizer without a nearest code.

    Raises:
      UserError: ``options.rotation`` is on.
    """
    if options.rotation:
        raise UserError(
            f"the rotation trick is on and model.quantizer is {quantizer}: "
            f"switch it off, or take one of nearest, cosine, ema"
        )


def straight_through(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns ``codes`` whose gradient reaches ``latents`` unchanged, and reaches the codes not at all.

    *Neural Discrete Representation Learning* (arXiv 1711.00937), section 3.2.
    """
    return latents + jax.lax.stop_gradient(codes - latents)
