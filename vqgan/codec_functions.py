"""A codec as pure functions of weights and arrays, for programs of other people.

``jit``, ``grad``, ``vmap`` and sharding work on them as on any function: weights are an argument, nothing
is kept, and nothing is compiled or put on a device but by the caller.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from vqgan.codec_checkpoint import module_state
from vqgan.config import UNTRAINED_QUANTIZERS, ModelConfig
from vqgan.errors import UserError
from vqgan.model.vqgan import TokenDecoder, TokenEncoder, network_range
from vqgan.quantizers import make_quantizer
from vqgan.quantizers.base import straight_through

PartWeights = dict[str, dict[str, jax.Array]]
"""Arrays by dotted name, of each part: ``encoder``, ``quantizer``, ``decoder``."""

UNIT_RANGE = (0.0, 1.0)
_LEVELS = 255


class Encoded(NamedTuple):
    """What an encoder makes of images.

    Attributes:
      tokens: int32 ``[N, h, w]``, or ``[N, L]`` of a codec whose layout is no grid.
      codes: float32 ``[N, h, w, D]`` (``[N, L, D]`` of a sequence), the tokens' vectors, up to rounding;
        gradients pass through them to the latents by the straight-through estimator.
      latents: float32, of the same shape, before quantization.
    """

    tokens: jax.Array
    codes: jax.Array
    latents: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class CodecFunctions:
    """Pure functions of one codec; :meth:`vqgan.Codec.functions` makes them.

    >>> import jax, jax.numpy as jnp
    >>> from vqgan import Codec
    >>> functions = Codec.load("tiny").functions()
    >>> encoded = jax.jit(functions.encode)(functions.weights, jnp.zeros((1, 64, 64, 3)))
    >>> encoded.tokens.shape, encoded.codes.shape
    ((1, 8, 8), (1, 8, 8, 8))

    Each takes ``weights`` first: :attr:`weights`, or arrays in their place that were moved, cut over devices
    or trained. Images are float ``[N, H, W, C]`` in :attr:`value_range`; sides are multiples of the
    downsampling.

    Attributes:
      config: architecture.
      weights: float32 arrays of each part, by their dotted names; no ``decoder`` where a codec has none.
      value_range: of the images, which is taken at its word: nothing is clipped, either way.
    """

    config: ModelConfig
    weights: PartWeights = dataclasses.field(repr=False)
    value_range: tuple[float, float]
    modules: Mapping[str, nnx.Module] = dataclasses.field(repr=False)

    def encode(self, weights: PartWeights, images: jax.Array) -> Encoded:
        """Turns float images ``[N, H, W, C]`` into tokens, code vectors and latents.

        Gradients of ``codes`` reach images and weights as in training, straight through the quantizer; the
        codes themselves have none. So do those of a codec that cannot be trained here.
        """
        latents = self._part(weights, "encoder")(
            self._scaled(images, self.value_range, network_range(self.config))
        )
        latents = latents.astype(jnp.float32)
        quantizer = self._part(weights, "quantizer")
        if self.config.quantizer not in UNTRAINED_QUANTIZERS:
            quantized = quantizer(latents)
            return Encoded(quantized.tokens, quantized.codes, latents)
        tokens = quantizer.tokens(latents)
        return Encoded(tokens, straight_through(latents, quantizer.lookup(tokens)), latents)

    def decode(self, weights: PartWeights, codes: jax.Array) -> jax.Array:
        """Turns code vectors ``[N, h, w, D]``, or others in their place, into float images ``[N, H, W, C]``.

        For tokens, look them up first.

        Raises:
          UserError: a codec without a decoder.
        """
        images = self._part(weights, "decoder")(codes)
        return self._scaled(images, network_range(self.config), self.value_range)

    def quantize(self, weights: PartWeights, latents: jax.Array) -> jax.Array:
        """Turns latents ``[N, h, w, D]`` into int32 tokens ``[N, h, w]``."""
        tokens: jax.Array = self._part(weights, "quantizer").tokens(latents)
        return tokens

    def lookup(self, weights: PartWeights, tokens: jax.Array) -> jax.Array:
        """Turns tokens ``[N, h, w]`` into float32 code vectors ``[N, h, w, D]``, which carry gradients."""
        codes: jax.Array = self._part(weights, "quantizer").lookup(tokens)
        return codes

    def _part(self, weights: PartWeights, name: str) -> Any:
        if name not in self.modules:
            raise UserError("the codec makes tokens but has no decoder for images; take one that has")
        module = self.modules[name]
        return nnx.merge(nnx.graphdef(module), module_state(module, weights[name], f"functions, {name}"))

    @staticmethod
    def _scaled(images: jax.Array, given: tuple[Any, Any], wanted: tuple[Any, Any]) -> jax.Array:
        """Maps float images from one range to another."""
        (low, high), (start, end) = given, wanted
        return (images.astype(jnp.float32) - low) * ((end - start) / (high - low)) + start


def inference_config(config: ModelConfig) -> ModelConfig:
    """Removes what acts in training only: dropout's random state, the statistics of moving averages."""
    quantizer = "nearest" if config.quantizer == "ema" else config.quantizer
    return dataclasses.replace(config, dropout=0.0, quantizer=quantizer)


def abstract_parts(config: ModelConfig, dtype: DTypeLike, names: Iterable[str]) -> dict[str, nnx.Module]:
    """Returns the parts of a codec of these names, without values; ``config`` is one for inference."""
    builders = {
        "encoder": lambda: TokenEncoder(config, dtype=dtype, rngs=_rngs()),
        "quantizer": lambda: make_quantizer(config, rngs=_rngs()),
        "decoder": lambda: TokenDecoder(config, dtype=dtype, rngs=_rngs()),
    }
    return {name: nnx.eval_shape(builders[name]) for name in names}


def merge_parts(modules: Mapping[str, nnx.Module], states: Mapping[str, Any]) -> dict[str, Any]:
    """Returns modules with the values of their states."""
    return {name: nnx.merge(nnx.graphdef(module), states[name]) for name, module in modules.items()}


class _OneKey:
    """Stands for the random state of weights that nobody draws, whose tracing would take half a second."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        """Returns the key of every weight."""
        return self._key


def _rngs() -> Any:
    return _OneKey()


def check_value_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """Returns a range of float images.

    Raises:
      UserError: not two finite numbers, the lesser one first.
    """
    low, high = map(float, value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"value_range {value_range}: give the lower and the upper end, such as (0, 1) or (-1, 1)"
        )
    return low, high


def to_levels(images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Turns float images in a range into uint8, each value to the nearest of 256 levels, as files hold them.

    Raises:
      UserError: values outside of the range by more than half a level, or not numbers.
    """
    low, high = check_value_range(value_range)
    levels = (np.asarray(images, np.float32) - np.float32(low)) * np.float32(_LEVELS / (high - low))
    if images.size and not -0.5 <= levels.min() <= levels.max() <= _LEVELS + 0.5:
        raise UserError(
            f"images from {images.min():.4g} to {images.max():.4g} lie outside of [{low:g}, {high:g}]: "
            "give the value_range that they have"
        )
    return np.clip(np.round(levels), 0, _LEVELS).astype(np.uint8)
