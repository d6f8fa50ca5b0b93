"""Quantizers: one file each, behind the protocol of :mod:`vqgan.quantizers.base`."""

from flax import nnx

from vqgan.config import ModelConfig
from vqgan.quantizers.base import Quantized, Quantizer
from vqgan.quantizers.cosine import CosineQuantizer
from vqgan.quantizers.gumbel import GumbelQuantizer
from vqgan.quantizers.nearest import NearestQuantizer

__all__ = [
    "CosineQuantizer",
    "GumbelQuantizer",
    "NearestQuantizer",
    "Quantized",
    "Quantizer",
    "make_quantizer",
]

_QUANTIZERS: dict[str, type[NearestQuantizer | GumbelQuantizer]] = {
    "nearest": NearestQuantizer,
    "cosine": CosineQuantizer,
    "gumbel": GumbelQuantizer,
}


def make_quantizer(config: ModelConfig, *, rngs: nnx.Rngs) -> NearestQuantizer | GumbelQuantizer:
    """The quantizer that a configuration asks for."""
    return _QUANTIZERS[config.quantizer](config.codebook_size, config.embed_dim, rngs=rngs)
