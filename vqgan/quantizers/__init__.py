"""Quantizers: one file each, behind the protocol of :mod:`vqgan.quantizers.base`."""

from collections.abc import Callable

from flax import nnx

from vqgan.config import ModelConfig
from vqgan.quantizers.base import Quantized, Quantizer, Statistic
from vqgan.quantizers.cosine import CosineQuantizer
from vqgan.quantizers.ema import EMAQuantizer
from vqgan.quantizers.fsq import FSQQuantizer
from vqgan.quantizers.gumbel import GumbelQuantizer
from vqgan.quantizers.lfq import LFQQuantizer
from vqgan.quantizers.nearest import NearestQuantizer

__all__ = [
    "CosineQuantizer",
    "EMAQuantizer",
    "FSQQuantizer",
    "GumbelQuantizer",
    "LFQQuantizer",
    "NearestQuantizer",
    "Quantized",
    "Quantizer",
    "Statistic",
    "make_quantizer",
]

_QUANTIZERS: dict[str, Callable[[ModelConfig, nnx.Rngs], Quantizer]] = {
    "nearest": lambda config, rngs: NearestQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "cosine": lambda config, rngs: CosineQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "gumbel": lambda config, rngs: GumbelQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "ema": lambda config, rngs: EMAQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "fsq": lambda config, rngs: FSQQuantizer(config.fsq_levels),
    "lfq": lambda config, rngs: LFQQuantizer(config.embed_dim),
}


def make_quantizer(config: ModelConfig, *, rngs: nnx.Rngs) -> Quantizer:
    """The quantizer that a configuration asks for."""
    return _QUANTIZERS[config.quantizer](config, rngs)
