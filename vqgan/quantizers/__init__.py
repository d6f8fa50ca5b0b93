"""Quantizers: latents to tokens and back, behind the class of :mod:`vqgan.quantizers.base`.

Losses that only concern the quantizer live here; their weights, and placing and reviving codes, in training.
"""

from collections.abc import Callable

from flax import nnx

from vqgan.config import ModelConfig
from vqgan.quantizers.base import Quantized, QuantizeOptions, Quantizer, Statistic
from vqgan.quantizers.gumbel import GumbelQuantizer
from vqgan.quantizers.lookup_free import FSQQuantizer, LFQQuantizer
from vqgan.quantizers.nearest import (
    CosineQuantizer,
    EMAQuantizer,
    InnerProductQuantizer,
    NearestQuantizer,
    UnitCodesQuantizer,
)
from vqgan.quantizers.scales import ScalesQuantizer

__all__ = [
    "CosineQuantizer",
    "EMAQuantizer",
    "FSQQuantizer",
    "GumbelQuantizer",
    "InnerProductQuantizer",
    "LFQQuantizer",
    "NearestQuantizer",
    "QuantizeOptions",
    "Quantized",
    "Quantizer",
    "ScalesQuantizer",
    "Statistic",
    "UnitCodesQuantizer",
    "make_quantizer",
]

_QUANTIZERS: dict[str, Callable[[ModelConfig, nnx.Rngs], Quantizer]] = {
    "nearest": lambda config, rngs: NearestQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "cosine": lambda config, rngs: CosineQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "gumbel": lambda config, rngs: GumbelQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "ema": lambda config, rngs: EMAQuantizer(config.codebook_size, config.embed_dim, rngs=rngs),
    "fsq": lambda config, rngs: FSQQuantizer(config.fsq_levels, config.fsq_bound),
    "lfq": lambda config, rngs: LFQQuantizer(config.embed_dim),
    "inner_product": lambda config, rngs: InnerProductQuantizer(
        config.codebook_size, config.embed_dim, rngs=rngs
    ),
    "nearest_unit": lambda config, rngs: UnitCodesQuantizer(
        config.codebook_size, config.embed_dim, rngs=rngs
    ),
    "scales": lambda config, rngs: _scales(config, rngs),
}


def _scales(config: ModelConfig, rngs: nnx.Rngs) -> ScalesQuantizer:
    assert config.scales is not None
    return ScalesQuantizer(config.codebook_size, config.embed_dim, config.scales, rngs=rngs)


def make_quantizer(config: ModelConfig, *, rngs: nnx.Rngs) -> Quantizer:
    """Makes the quantizer that a configuration asks for."""
    return _QUANTIZERS[config.quantizer](config, rngs)
