"""Codecs written as LlamaGen's and vqgan-jax's checkpoints: read back they are the same, bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.importing import export_codec
from tests.vqgan.importers.foreign import random_weights
from vqgan import Codec, codec_checkpoint
from vqgan.channels import ChannelsConfig
from vqgan.config import ModelConfig
from vqgan.errors import UserError
from vqgan.importers.export_formats import FORMATS
from vqgan.importers.exporting import export_checkpoint

LLAMAGEN = ModelConfig(
    resolution=16, ch_mult=(1, 1), attn_resolutions=(8,), z_channels=16, embed_dim=8, codebook_size=64,
    quantizer="cosine",
)  # fmt: skip
VQGAN_JAX = ModelConfig(
    resolution=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(16,), z_channels=16,
    embed_dim=8, codebook_size=64, input_range=(0.0, 1.0),
)  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


def save(folder: Path, config: ModelConfig) -> Path:
    return codec_checkpoint.save_codec(folder / "codec", config, random_weights(config)).path


@pytest.mark.parametrize(
    ("to", "config", "file"),
    [
        ("llamagen", LLAMAGEN, "model.safetensors"),
        ("llamagen", dataclasses.replace(LLAMAGEN, quantizer="nearest"), "model.safetensors"),
        ("vqgan-jax", VQGAN_JAX, "flax_model.msgpack"),
        ("vqgan-jax", dataclasses.replace(VQGAN_JAX, channels=ChannelsConfig(4)), "flax_model.msgpack"),
    ],
    ids=["llamagen", "llamagen-nearest", "vqgan-jax", "vqgan-jax-rgba"],
)
def test_what_is_read_back_is_the_same(to: str, config: ModelConfig, file: str, tmp_path: Path) -> None:
    path = save(tmp_path, config)
    export_codec(str(path), str(tmp_path / "out"), to)
    theirs, ours = codec_checkpoint.read_info(tmp_path / "out"), codec_checkpoint.read_info(path)
    assert theirs.config == ours.config
    assert (theirs.fingerprint, theirs.decoder_sha256) == (ours.fingerprint, ours.decoder_sha256)
    assert theirs.card["origin"]["format"].endswith(to)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["README.md", "config.json", file]


@pytest.mark.parametrize("to", ["diffusers", "safetensors"])
def test_channels_and_their_ranges_come_back(to: str, tmp_path: Path) -> None:
    channels = ChannelsConfig(4, ranges=((0, 1000),), input_ranges=((0, 1), (0, 1), (-1, 1), (0, 2)))
    path = save(tmp_path, dataclasses.replace(VQGAN_JAX, channels=channels))
    export_codec(str(path), str(tmp_path / "out"), to)
    theirs, ours = codec_checkpoint.read_info(tmp_path / "out"), codec_checkpoint.read_info(path)
    assert theirs.config == ours.config
    assert (theirs.fingerprint, theirs.decoder_sha256) == (ours.fingerprint, ours.decoder_sha256)
    if to == "diffusers":
        said = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (said["in_channels"], said["out_channels"]) == (4, 4)


@pytest.mark.parametrize(("to", "config"), [("llamagen", LLAMAGEN), ("vqgan-jax", VQGAN_JAX)])
def test_tokens_are_the_same_by_names_and_native_configuration_alone(
    to: str, config: ModelConfig, tmp_path: Path
) -> None:
    """As somebody else's file would be read, who has no metadata of ours."""
    path = save(tmp_path, config)
    export_codec(str(path), str(tmp_path / "out"), to)
    if to == "llamagen":
        from safetensors.numpy import load_file, save_file

        file = tmp_path / "out" / "model.safetensors"
        save_file(load_file(file), file)
    theirs = Codec.load(f"{tmp_path}/out?resolution={config.resolution}", batch_size=2)
    tokens = theirs.encode(IMAGES)
    assert len(np.unique(tokens)) > 4
    np.testing.assert_array_equal(tokens, Codec.load(path, batch_size=2).encode(IMAGES))


def test_what_llamagen_asks_for_stands_in_the_folder(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    export_codec(str(save(tmp_path, LLAMAGEN)), str(tmp_path / "out"), "llamagen")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "codebook_size": 64,
        "codebook_embed_dim": 8,
        "codebook_l2_norm": True,
        "encoder_ch_mult": [1, 1],
        "decoder_ch_mult": [1, 1],
        "z_channels": 16,
    }
    # LlamaGen loads strictly; this is a buffer of its training.
    assert load_file(tmp_path / "out" / "model.safetensors")["quantize.codebook_used"].shape == (65536,)
    assert "load_state_dict" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("to", "fields", "says"),
    [
        ("llamagen", {"ch": 64}, "ch is 128 there, not 64"),
        ("llamagen", {"input_range": (0.0, 1.0)}, "input_range is -1,1 there, not 0,1"),
        ("llamagen", {"attn_resolutions": ()}, "attention stands at the lowest level and in the middle"),
        ("llamagen", {"mid_attention": False}, "attention stands at the lowest level and in the middle"),
        ("llamagen", {"quantizer": "gumbel"}, "quantizer gumbel"),
        ("llamagen", {"quantizer": "lfq", "codebook_size": 256}, "quantizer lfq has no codebook"),
        ("llamagen", {"double_z": True}, "double_z"),
        ("llamagen", {"quant_conv_kernel": 3}, "quant_conv_kernel"),
        ("llamagen", {"channels": ChannelsConfig(4)}, "images have 3 channels there, not 4"),
        ("llamagen", {"channels": ChannelsConfig(3, ((0, 9),))}, "channels.ranges: pixels have one range"),
        ("vqgan-jax", {"channels": ChannelsConfig(1, (), ((0, 1),))}, "channels.input_ranges: pixels have"),
        ("vqgan-jax", {"norm_groups": 8}, "norm_groups is 32 there, not 8"),
        ("vqgan-jax", {"quantizer": "cosine"}, "quantizer cosine"),
        ("vqgan-jax", {"mid_attention": False}, "attention always stands in the middle"),
        ("vqgan-jax", {"stem_channels": 64}, "its first convolution has another width"),
        ("diffusers", {"stem_channels": 64}, "its first convolution has another width"),
        ("diffusers", {"resamp_with_conv": False}, "resampling without convolutions"),
        ("safetensors", {"haar_patch": 2}, "haar_patch"),
    ],
)
def test_what_a_format_lacks_is_named(to: str, fields: dict[str, Any], says: str) -> None:
    config = dataclasses.replace(LLAMAGEN if to == "llamagen" else VQGAN_JAX, **fields)
    assert any(says in lacking for lacking in FORMATS[to].lacks(config))


def test_what_is_lacking_is_said_once(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMAGEN, quantizer="inner_product")
    with pytest.raises(UserError) as caught:
        export_checkpoint(str(tmp_path / "out"), "llamagen", config, {}, {})
    assert str(caught.value).count("inner_product") == 1


def test_a_refusal_leaves_nothing_and_what_is_there_stays(tmp_path: Path, refused: Any) -> None:
    path = save(tmp_path, dataclasses.replace(VQGAN_JAX, norm_groups=8))
    with refused("^--to vqgan-jax cannot express this codec: norm_groups is 32 there, not 8$"):
        export_codec(str(path), str(tmp_path / "out"), "vqgan-jax")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with refused("such as mine; give a new folder"):
        export_codec(str(path), str(tmp_path / "out"), "safetensors")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine"]
