"""A larger decoder that begins as a smaller one: deeper by blocks that do nothing yet, wider by copies.

Both are of *Net2Net: Accelerating Learning via Knowledge Transfer* (arXiv 1511.05641). A residual block whose
last convolution is zero gives back what it gets. A channel that is there twice changes nothing where whatever
reads it divides its weight between the two; group normalisation does not notice, as each group has the same
numbers as before. The division is drawn at random, so that the two go different ways in training.
"""

import dataclasses

import numpy as np

from vqgan.codec_checkpoint import Weights
from vqgan.config import ModelConfig
from vqgan.model.parameters import codec_parameter_shapes, decoder_attention

Shape = tuple[int, ...]

LEAST_SHARE = 0.25  # of a weight that is divided in two: below it one of the copies would learn slowly
LAST_LAYERS = ("conv2", "out")  # of a residual block and of an attention


def differ_in_size_alone(before: ModelConfig, after: ModelConfig) -> bool:
    """Tells whether nothing but the decoder's blocks and width (and dropout) differs."""
    return _without_size(before) == _without_size(after)


def with_tokens_of(codec: ModelConfig, config: ModelConfig) -> ModelConfig:
    """Returns a configuration whose decoder's size is said in fields that a codec's fingerprint leaves out.

    ``decoder_res_blocks`` has always been a part of it, ``decoder_added_blocks`` is not.

    Args:
      codec: whose tokens are to stay.
      config: the same with another decoder; one that differs otherwise is given back as it is.
    """
    if not differ_in_size_alone(codec, config):
        return config
    base = dataclasses.replace(config, decoder_res_blocks=codec.decoder_res_blocks, decoder_added_blocks=0)
    return dataclasses.replace(base, decoder_added_blocks=config.decoder_blocks - base.decoder_blocks)


def can_grow_decoder(before: ModelConfig, after: ModelConfig) -> bool:
    """Tells whether a decoder can be made into another one that gives the same images.

    The other has more blocks per level, or is wider by a whole factor, or both; nothing else differs. A
    wider attention would weigh places differently, and one without a shortcut does something in any block.
    """
    wider, rest = divmod(after.decoder_width, before.decoder_width)
    added = after.decoder_blocks - before.decoder_blocks
    attends = before.mid_attention or bool(decoder_attention(before))
    return (
        differ_in_size_alone(before, after)
        and before.vit is None
        and (wider >= 1 and not rest and added >= 0)
        and not (wider > 1 and (attends or before.shortcut_from_branch))
        and not (added and decoder_attention(before) and before.attention == "linear")
    )


def grow_decoder(
    weights: Weights, before: ModelConfig, after: ModelConfig, seed: int = 0
) -> dict[str, np.ndarray]:
    """Returns the parameters of a larger decoder that gives the same images, but for rounding.

    Of what is added only the last layers are named, zeros: the others may be anything, and stay random.

    Args:
      weights: of the decoder, by dotted name.
      before: its configuration.
      after: one that :func:`can_grow_decoder` takes.
      seed: of the shares in which weights are divided.
    """
    rng = np.random.default_rng(seed)
    shapes = codec_parameter_shapes(after)["decoder"]
    grown = {name: _widened(value, shapes[name], rng) for name, value in weights.items()}
    added = [name for name in shapes if name not in weights and name.split(".")[-2] in LAST_LAYERS]
    return grown | {name: np.zeros(shapes[name], np.float32) for name in added}


def _without_size(config: ModelConfig) -> ModelConfig:
    """Returns the architecture but for the decoder's blocks and width, and for dropout."""
    return dataclasses.replace(
        config, decoder_res_blocks=None, decoder_added_blocks=0, decoder_ch=None, dropout=0.0
    )


def _widened(value: np.ndarray, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Copies channels: kernels are ``[..., in, out]``, biases, scales and the like ``[out]``."""
    value = np.repeat(value, shape[-1] // value.shape[-1], axis=-1)
    copies = shape[-2] // value.shape[-2] if value.ndim > 1 else 1
    if copies == 1:
        return value
    shares = rng.uniform(LEAST_SHARE, 1 - LEAST_SHARE, (*value.shape[:-1], copies, value.shape[-1]))
    shares /= shares.sum(axis=-2, keepdims=True)
    return (value[..., None, :] * shares).reshape(shape).astype(np.float32)
