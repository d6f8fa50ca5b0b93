"""Named architectures, and the codecs whose weights come with the package."""

import dataclasses
from pathlib import Path

from vqgan.config import ModelConfig

# Small enough for two CPU cores; the codec of the demo and of the tests.
_TINY = ModelConfig(
    resolution=128,
    ch=16,
    ch_mult=(1, 2, 3, 4),
    num_res_blocks=1,
    attn_resolutions=(),
    mid_attention=False,
    z_channels=64,
    embed_dim=8,
    codebook_size=1024,
    norm_groups=8,
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": _TINY,
    # The encoder of tiny, four times as many codes, and a decoder of twice the width.
    "small": dataclasses.replace(_TINY, codebook_size=4096, decoder_ch=32),
    # Four pixels a token: trained on two CPU cores in half an hour by the training preset cpu-64.
    "f4-512": ModelConfig(
        resolution=64,
        ch=16,
        ch_mult=(1, 2, 4),
        num_res_blocks=1,
        attn_resolutions=(),
        mid_attention=False,
        z_channels=64,
        embed_dim=16,
        codebook_size=512,
        norm_groups=8,
    ),
    # The published sizes of arXiv 2012.09841, table 9 (ImageNet and f8 variants).
    "f16-1024": ModelConfig(codebook_size=1024),
    "f16-16384": ModelConfig(codebook_size=16384),
    "f8-1024": ModelConfig(ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), codebook_size=1024),
    "f8-16384": ModelConfig(ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), codebook_size=16384),
}

PRETRAINED_DIR = Path(__file__).parent / "pretrained"


def pretrained_names() -> list[str]:
    """Lists the codecs whose weights come with the package."""
    return sorted(path.name for path in PRETRAINED_DIR.iterdir() if (path / "codec.json").is_file())
