"""Tokens that are no grid, of several scales or in a sequence, through every command that takes tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.browsing.browse_images import patch_of
from vqgan import open_tokens
from vqgan.codec_checkpoint import save_codec
from vqgan.config import ModelConfig
from vqgan.model.parameters import codec_parameter_shapes
from vqgan.shards import METADATA_KEY
from vqgan.token_layouts import ScalesConfig, ViTConfig

SCALES = ModelConfig(
    resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    norm_groups=4, z_channels=4, embed_dim=4, codebook_size=32, quantizer="scales", quant_conv_kernel=3,
    scales=ScalesConfig((1, 2, 5, 8), 2),
)  # fmt: skip
SEQUENCE = ModelConfig(
    resolution=16, ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), mid_attention=False,
    norm_groups=4, z_channels=4, embed_dim=6, codebook_size=32, quantizer="cosine", quant_conv=False,
    vit=ViTConfig(tokens=6, patch=8, encoder_width=64, encoder_layers=1, decoder_patch=4, decoder_width=64,
                  decoder_layers=1, pixel_codes=16),
)  # fmt: skip
SMALL = ("model.layers=1", "model.width=16", "model.heads=1", "train.steps=2", "train.batch_size=2",
         "data.holdout=0", "data.samples=0")  # fmt: skip


def random_codec(path: Path, config: ModelConfig) -> Path:
    rng = np.random.default_rng(0)
    shapes = codec_parameter_shapes(config)
    weights: dict[str, Any] = {
        part: {name: rng.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in named.items()}
        for part, named in shapes.items()
    }
    save_codec(path, config, weights)
    return path


def tokenize(vqgan: Any, source: Path, codec: Path, output: Path, side: int = 16) -> Any:
    return vqgan(
        "tokenize", "--input", source, "--codec", codec, "--output", output, "--image-size", side, "--quiet"
    )


@pytest.mark.parametrize(("config", "length"), [(SCALES, 94), (SEQUENCE, 6)], ids=["scales", "sequence"])
def test_tokens_say_how_they_lie(
    config: ModelConfig, length: int, few: Path, vqgan: Any, tmp_path: Path
) -> None:
    codec, tokens = random_codec(tmp_path / "codec", config), tmp_path / "tokens"
    assert tokenize(vqgan, few, codec, tokens).code == 0
    assert vqgan("verify", tokens, "--codec", codec, "--input", few).code == 0
    opened = open_tokens(str(tokens))
    assert (opened.layout, opened.grid) == (config.layout, (1, length))
    assert opened.take([0]).tokens.shape == (1, length)
    (shard,) = (tokens / "data").iterdir()
    footer = json.loads(pq.read_metadata(shard).metadata[METADATA_KEY])
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert footer["layout"] == manifest["layout"] == config.layout
    assert f"{config.layout} of {length} tokens" in (tokens / "README.md").read_text()
    assert "takes 16x16 alone" in tokenize(vqgan, few, codec, tmp_path / "none", 24).line


def test_a_prior_of_sequences_learns_and_draws(few: Path, vqgan: Any, tmp_path: Path) -> None:
    codec, tokens, prior = random_codec(tmp_path / "codec", SEQUENCE), tmp_path / "tokens", tmp_path / "prior"
    assert tokenize(vqgan, few, codec, tokens).code == 0
    settings = [part for setting in SMALL for part in ("--set", setting)]
    assert vqgan("train-prior", "--tokens", tokens, "--output", prior, "--quiet", *settings).code == 0
    drawn = ("sample", "--prior", prior, "--count", 2, "--quiet")
    assert vqgan(*drawn, "--output", tmp_path / "samples").code == 0
    assert (
        vqgan("decode", "--tokens", tmp_path / "samples", "--output", tmp_path / "images", "--quiet").code
        == 0
    )
    with Image.open(next((tmp_path / "images" / "images").rglob("*.png"))) as image:
        assert image.size == (16, 16)
    for flags in (("--grid", "2x94"), ("--given", tokens, "--keep-rows", 1)):
        assert "no grid (layout sequence)" in vqgan(*drawn, "--output", tmp_path / "none", *flags).line


def test_a_layout_that_is_not_the_codec_s_is_damage(few: Path, vqgan: Any, tmp_path: Path) -> None:
    codec, tokens = random_codec(tmp_path / "codec", SEQUENCE), tmp_path / "tokens"
    assert tokenize(vqgan, few, codec, tokens).code == 0
    path = tokens / "manifest.json"
    path.write_text(path.read_text().replace('"layout": "sequence"', '"layout": "scales"'))
    assert 'is "scales", expected sequence' in vqgan("inspect", tokens).line


def test_a_token_without_a_place_stands_for_the_whole_image() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    assert patch_of(pixels, (4, 4), 5).shape == (4, 4, 3)
    assert patch_of(pixels, (1, 32), 5, "sequence").shape == pixels.shape
