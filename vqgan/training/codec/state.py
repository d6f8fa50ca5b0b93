"""What changes while a VQGAN is trained: plain arrays, saved and restored as they are.

Checkpoints hold the fields by their names.
"""

from typing import Any, NamedTuple

import jax

from vqgan.functional import Arrays
from vqgan.losses import LecamState


class GeneratorState(NamedTuple):
    """The autoencoder's side.

    Attributes:
      params: parameters of encoder, quantizer and decoder by dotted name.
      average: exponential moving average of them.
      others: the quantizer's statistics.
      optimizer: state of its optimizer.
      usage: ``[K]`` int32, how often each code was chosen since the last revival.
      updates: number of updates that were not skipped.
    """

    params: Arrays
    average: Arrays
    others: Arrays
    optimizer: Any
    usage: jax.Array
    updates: jax.Array


class DiscriminatorState(NamedTuple):
    """The discriminator's side.

    Attributes:
      params: its parameters by dotted name.
      others: running statistics and power iterations.
      optimizer: state of its optimizer.
      lecam: averages of its logits.
    """

    params: Arrays
    others: Arrays
    optimizer: Any
    lecam: LecamState


class CodecTrainState(NamedTuple):
    """Both sides, and the count of steps whose loss or gradients were not finite."""

    generator: GeneratorState
    discriminator: DiscriminatorState
    skipped: jax.Array
    skipped_in_row: jax.Array


class Phase(NamedTuple):
    """What takes part in a step; one compilation for each.

    Attributes:
      quantize: latents go through the quantizer, not straight to the decoder.
      adversarial: the discriminator and its loss have come in.
    """

    quantize: bool
    adversarial: bool


class StepDraws(NamedTuple):
    """What a step has by its number: randomness, and the Gumbel temperature."""

    key: jax.Array
    temperature: jax.Array
