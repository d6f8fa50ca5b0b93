"""Quantizers: one file each, behind the protocol of :mod:`vqgan.quantizers.base`."""

from vqgan.quantizers.base import Quantized, Quantizer
from vqgan.quantizers.nearest import NearestQuantizer

__all__ = ["NearestQuantizer", "Quantized", "Quantizer"]
