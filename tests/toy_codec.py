"""The toy codec of all tests: a real one, whose weights are so few that it costs next to nothing."""

import dataclasses

import numpy as np
from flax import nnx

from vqgan.codec_checkpoint import PARTS
from vqgan.config import ModelConfig
from vqgan.model.vqgan import VQGAN

TOY = ModelConfig(
    resolution=32,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    mid_attention=False,
    z_channels=8,
    embed_dim=4,
    codebook_size=64,
    norm_groups=4,
)
"""Two by two pixels a token."""

TOY_WITH_ATTENTION = dataclasses.replace(TOY, resolution=16, mid_attention=True, codebook_size=32)
"""Has every kind of layer."""

TOY_IN_TRAINING = dataclasses.replace(TOY, resolution=16, ch_mult=(1, 1), codebook_size=16)
"""Has few shapes of weights, so that little is compiled."""


def toy_weights(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draws weights of :data:`TOY` whose tokens spread over the codebook; nothing is compiled for them."""
    rng = np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: VQGAN(TOY, rngs=nnx.Rngs(0)))
    weights: dict[str, dict[str, np.ndarray]] = {}
    for part in PARTS:
        flat = nnx.to_flat_state(nnx.state(getattr(model, part), nnx.Param))
        weights[part] = {".".join(map(str, path)): _values(param.shape, rng) for path, param in flat}
    return weights


def _values(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
