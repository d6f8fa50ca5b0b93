"""What every quantizer offers."""

from typing import ClassVar, NamedTuple, Protocol

import jax
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


class Statistic(nnx.Variable):
    """What a quantizer learns without gradients beside its codebook; no part of a codec."""


class Quantizer(Protocol):
    """Latents to tokens and back.

    Attributes:
      has_codebook: whether it is a :class:`vqgan.quantizers.nearest.NearestQuantizer`, whose codes can
        be placed on latents and revived (``replace_codes``) and which takes the rotation trick.
    """

    has_codebook: ClassVar[bool]

    def __call__(
        self,
        latents: jax.Array,
        *,
        rotation: bool = False,
        temperature: jax.Array | float = 1.0,
        key: jax.Array | None = None,
        entropy_temperature: float = 0.0,
    ) -> Quantized:
        """Quantizes latents, with gradients for training.

        Args:
          latents: ``[B, h, w, D]`` of any float type; all arithmetic is float32.
          rotation: the rotation trick in place of the straight-through gradient; see ``has_codebook``.
          temperature: of the Gumbel softmax, read only where there is a ``key``; others ignore it.
          key: draws Gumbel noise; others ignore it.
          entropy_temperature: T of the soft choice, proportional to ``exp(-|latent - code|^2 / T)``,
            that the entropy loss measures; 0 for no entropy loss. Papers on LFQ give 1 / T.

        Raises:
          UserError: ``rotation`` where it means nothing.
        """
        ...

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens, for inference."""
        ...

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        ...

    def observe(self, latents: jax.Array, tokens: jax.Array, decay: jax.Array | float) -> None:
        """Learns in place what is learnt without gradients, after the gradient step.

        Args:
          latents: ``[B, h, w, D]``, the whole batch over all devices.
          tokens: ``[B, h, w]``, what the forward pass chose for them.
          decay: share of the past that is kept, in [0, 1).
        """
        ...


def refuse_rotation(rotation: bool, quantizer: str) -> None:
    """Stops where the rotation trick is asked of a quantizer without a nearest code.

    Raises:
      UserError: ``rotation`` is on.
    """
    if rotation:
        raise UserError(
            f"the rotation trick is on and model.quantizer is {quantizer}: "
            f"switch it off, or take one of nearest, cosine, ema"
        )
