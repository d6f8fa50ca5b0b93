"""The named architectures are the published ones."""

import jax
import numpy as np
import pytest
from flax import nnx

from vqgan.codec_checkpoint import read_info
from vqgan.config import ModelConfig
from vqgan.model.vqgan import VQGAN
from vqgan.presets import PRESETS, PRETRAINED_DIR, pretrained_names


def parameters(config: ModelConfig) -> int:
    model = nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(("name", "millions"), [("f16-1024", 72.14), ("f16-16384", 76.07)])
def test_parameter_counts(name: str, millions: float) -> None:
    assert round(parameters(PRESETS[name]) / 1e6, 2) == millions


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_name_tells_downsampling_and_codes(name: str) -> None:
    config = PRESETS[name]
    if name not in ("tiny", "small"):
        assert name == f"f{config.downsampling}-{config.codebook_size}"


def test_pretrained_names_are_folders_with_a_codec() -> None:
    assert pretrained_names() == ["small", "tiny", "tiny-v1"]
    assert (PRETRAINED_DIR / "tiny" / "codec.json").is_file()


def test_small_is_as_its_preset_says() -> None:
    info = read_info("small")
    assert info.config == PRESETS["small"]
    files = [path for path in info.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    assert parameters(info.config) == 2_495_195


def test_both_decoders_of_tiny_are_for_the_same_tokens() -> None:
    """``tiny`` has another decoder for the tokens of ``tiny-v1``."""
    now, before = read_info("tiny"), read_info("tiny-v1")
    assert (now.fingerprint, now.quantizer_sha256) == (before.fingerprint, before.quantizer_sha256)
    assert now.decoder_sha256 != before.decoder_sha256
