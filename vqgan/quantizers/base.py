"""What every quantizer offers."""

from typing import NamedTuple, Protocol

import jax


class Quantized(NamedTuple):
    """Result of quantizing latents.

    Attributes:
      codes: ``[B, h, w, D]`` code vectors; their gradient reaches the latents straight through.
      tokens: ``[B, h, w]`` int32 code numbers.
      codebook_loss: scalar that draws codes to latents.
      commitment_loss: scalar that draws latents to codes, not yet weighted.
    """

    codes: jax.Array
    tokens: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array


class Quantizer(Protocol):
    """Latents to tokens and back."""

    def __call__(self, latents: jax.Array) -> Quantized:
        """Quantizes ``[B, h, w, D]`` latents, with gradients for training."""
        ...

    def tokens(self, latents: jax.Array) -> jax.Array:
        """``[B, h, w, D]`` latents to ``[B, h, w]`` int32 tokens, for inference."""
        ...

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``[B, h, w]`` tokens to ``[B, h, w, D]`` code vectors."""
        ...
