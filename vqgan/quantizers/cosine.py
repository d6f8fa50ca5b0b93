"""Nearest code by angle: latents and codes are normalised to unit length.

*Vector-quantized Image Modeling with Improved VQGAN* (arXiv 2110.04627), section 3.2. With few
dimensions (8 or so) it keeps large codebooks in use.
"""

import jax

from vqgan.quantizers.nearest import NearestQuantizer
from vqgan.quantizers.vectors import unit_length


class CosineQuantizer(NearestQuantizer):
    """A codebook ``[K, D]`` of any lengths; both lookup directions use the codes' directions only.

    Losses are those of the normalised vectors.
    """

    def comparable(self, vectors: jax.Array) -> jax.Array:
        """``[..., D]`` vectors at unit length."""
        return unit_length(vectors)
